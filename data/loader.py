"""The micro-batches of one rank, step after step, prepared ahead by one thread.

A step goes through four pure stages: which samples (`order`), where each goes (`layout`), their content (`index`, a
memory map), their corruption (`collate`). What content is read, what a sample costs and how it is corrupted is the
objective's. A thread does this a few steps ahead: numpy releases the interpreter lock where it matters, and a thread
shares memory, where worker processes would copy every batch. There is nothing to save: a loader started at step s
yields exactly what any other loader yields from step s on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data import layout, randomness
from data.order import sample_keys

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """When a micro-batch is trained on, for objectives that change in time or choose once for a whole step.

    The same on every rank and in every micro-batch of a step.
    """

    step: int  # of the run
    fraction: float  # of the stage's steps that are done, 0 at its first
    key: int  # of the step

    @classmethod
    def last(cls) -> Moment:
        """For validation: as at the end of a run, and always the same."""
        return cls(step=0, fraction=1.0, key=randomness.key("validation"))


class Objective(Protocol):
    """What the loader asks of an objective (pretrain/objectives)."""

    one_per_micro_batch: bool  # samples are not packed together
    # An objective that has a true `padded` pads the samples of a micro-batch to the longest (data/layout.py).

    def read(self, corpus: Any, ids: I64) -> Any:
        """The samples' content, a list."""
        ...

    def costs(self, corpus: Any, ids: I64) -> I64:
        """[n] tokens (or what else its micro-batches are limited by) that each sample is planned with."""
        ...

    def collate(self, samples: Any, keys: npt.NDArray[np.uint64], moment: Moment) -> Any:
        """A micro-batch from samples and one key each; empty lists are possible."""
        ...


class Lengths(Protocol):
    """What the loader itself needs of a corpus; `data.index.Corpus` and `data.mixture.Mixture` are such."""

    lengths: Any  # lengths[ids] gives nucleotides per sample


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
    """Computes any step of a run, or of one stage of it, for one rank.

    budget: what the costs of a micro-batch may add up to. first: the number of the stage's first step, at which the
    order begins; steps: how many steps the stage has.
    """

    corpus: Lengths
    order: Steps
    objective: Objective
    budget: int
    rank: int = 0
    ranks: int = 1
    first: int = 0
    steps: int = 1

    def step(self, number: int) -> Step:
        local = number - self.first
        epochs, ids = self.order.step(local)
        nucleotides = self.corpus.lengths[ids].astype(np.int64)
        costs = self.objective.costs(self.corpus, ids)
        keys = sample_keys(self.order.seed, epochs, ids)
        moment = Moment(number, local / max(self.steps, 1), randomness.key(self.order.seed, "step", local))
        alone, padded = self.objective.one_per_micro_batch, getattr(self.objective, "padded", False)
        mine = layout.plan_step(costs, self.ranks, self.budget, alone, padded)[self.rank]
        return Step(
            number=number,
            micro_batches=[
                self.objective.collate(self.objective.read(self.corpus, ids[chosen]), keys[chosen], moment)
                for chosen in mine
            ],
            epoch=self.order.epochs_before(local + 1),
            sequences=len(ids),
            tokens=int(costs.sum()),
            nucleotides=int(np.minimum(nucleotides, costs).sum()),
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
