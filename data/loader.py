"""The micro-batches of one rank, step after step, prepared ahead by one thread.

A step goes through four pure stages: which samples (`order`), where each goes (`layout`), their letters (`index`, a
memory map), their corruption (`collate`, given by the objective). A thread does this a few steps ahead: numpy releases
the interpreter lock where it matters, and a thread shares memory, where worker processes would copy every batch.
There is nothing to save: a loader started at step s yields exactly what any other loader yields from step s on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data import layout
from data.order import sample_keys

Collate = Callable[[list[npt.NDArray[np.uint8]], npt.NDArray[np.uint64]], Any]


class Sequences(Protocol):
    """What the loader needs of a corpus; `data.index.Corpus` and `data.mixture.Mixture` are such."""

    lengths: Any  # lengths[ids] gives nucleotides per sample

    def letters(self, ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]: ...


class Steps(Protocol):
    """What the loader needs of an order; `data.order.Order` and `data.mixture.Mixture` are such."""

    seed: int

    def step(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...

    def epochs_before(self, step: int) -> float: ...


@dataclass
class Step:
    """One rank's share of a step. Counts are of the whole step, over all ranks, as planned from lengths."""

    number: int
    micro_batches: list[Any]
    epoch: float  # epochs begun and the fraction of the current one, at the end of the step
    sequences: int
    tokens: int
    nucleotides: int


@dataclass
class StepPlanner:
    """Computes any step of a run for one rank.

    token_lengths maps [n] nucleotides to [n] tokens a sample is planned with, after cropping; collate turns letters and
    keys into a micro-batch, and must accept an empty list.
    """

    corpus: Sequences
    order: Steps
    collate: Collate
    token_lengths: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
    tokens_per_micro_batch: int
    rank: int = 0
    ranks: int = 1

    def step(self, number: int) -> Step:
        epochs, ids = self.order.step(number)
        nucleotides = self.corpus.lengths[ids].astype(np.int64)
        tokens = self.token_lengths(nucleotides)
        keys = sample_keys(self.order.seed, epochs, ids)
        mine = layout.plan_step(tokens, self.ranks, self.tokens_per_micro_batch)[self.rank]
        return Step(
            number=number,
            micro_batches=[self.collate(self.corpus.letters(ids[chosen]), keys[chosen]) for chosen in mine],
            epoch=self.order.epochs_before(number + 1),
            sequences=len(ids),
            tokens=int(tokens.sum()),
            nucleotides=int(np.minimum(nucleotides, tokens).sum()),
        )


def prefetched(planner: StepPlanner, first: int, stop: int, ahead: int = 3) -> Iterator[Step]:
    """Steps [first, stop), computed by a thread up to ``ahead`` steps early. An error in the thread is raised here."""
    ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(thing: Step | BaseException) -> bool:
        while not closed.is_set():
            try:
                ready.put(thing, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for number in range(first, stop):
                if not put(planner.step(number)):
                    return
        except BaseException as error:  # handed over whole: the training thread decides what it means
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        for _ in range(first, stop):
            step = ready.get()
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        closed.set()
        thread.join()
