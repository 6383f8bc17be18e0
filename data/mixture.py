"""Several corpora trained on together, each with its weight and its own epochs, seen as one.

The samples of all corpora are numbered through: corpus k's sample i is offset[k] + i. `Mixture` answers what the loader
asks of a corpus (lengths, letters) and of an order (the samples of a step), so the loader knows nothing of mixtures.
A mixture of one corpus is that corpus in every respect: the same order, the same masks, the same fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data import randomness
from data.order import Order
from data.share import shares
from data.structures import StructureTable

I64 = npt.NDArray[np.int64]


@dataclass
class _PerSample:
    """An array of every corpus, such as its lengths, indexed by sample numbers over all, without copies of it."""

    name: str
    corpora: list[Any]
    offsets: I64

    def __getitem__(self, ids: I64) -> I64:
        result = np.empty(len(ids), dtype=np.int64)
        for corpus, places, local in _by_corpus(self.corpora, self.offsets, ids):
            result[places] = getattr(corpus, self.name)[local]
        return result


class Mixture:
    """Corpora by name, in this order, with weights of any positive scale; all of one kind.

    Raises DataError as `data.share.shares` and `data.order.Order` do.
    """

    def __init__(
        self,
        corpora: Mapping[str, Any],
        weights: Sequence[float],
        seed: int,
        global_batch: int,
        structures: StructureTable | None = None,
    ) -> None:
        self._structures = structures
        self.names, self.corpora = list(corpora), list(corpora.values())
        counts = np.array([corpus.count for corpus in self.corpora], dtype=np.int64)
        self.offsets: I64 = np.cumsum(counts) - counts
        self.lengths = _PerSample("lengths", self.corpora, self.offsets)
        self.depths = _PerSample("depths", self.corpora, self.offsets)  # of alignments
        self.seed, self.global_batch = seed, global_batch
        self.count, self.nucleotides = int(counts.sum()), sum(int(c.lengths.sum(dtype=np.int64)) for c in self.corpora)
        self.orders = [
            Order(
                corpus.block_counts,
                seed if place == 0 else randomness.key(seed, "corpus", place),
                global_batch,
                pointers=corpus.clusters,
                share=share,
            )
            for place, (corpus, share) in enumerate(zip(self.corpora, shares(weights, global_batch), strict=True))
        ]
        self.weights = list(weights)

    @property
    def fingerprint(self) -> str:
        """What training data this is: the corpus's own, or a hash over all corpora and weights in order.

        Structures are part of it where there are any.
        """
        if len(self.corpora) == 1 and self._structures is None:
            return self.corpora[0].fingerprint
        parts = [f"{c.fingerprint} {weight!r}" for c, weight in zip(self.corpora, self.weights, strict=True)]
        if self._structures is not None:
            parts.append(f"structures {self._structures.fingerprint}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def step(self, step: int) -> tuple[I64, I64]:
        """Samples of one step: (epoch of its own corpus [N], sample number over all corpora [N])."""
        drawn = [order.step(step) for order in self.orders]
        epochs = np.concatenate([epoch for epoch, _ in drawn])
        ids = np.concatenate([ids + offset for (_, ids), offset in zip(drawn, self.offsets, strict=True)])
        return epochs, ids

    def epochs_before(self, step: int) -> float:
        """Passes over the first corpus before ``step``."""
        return self.orders[0].epochs_before(step)

    def epochs_by_corpus(self, step: int) -> dict[str, float]:
        """Passes over each corpus before ``step``."""
        return {name: order.epochs_before(step) for name, order in zip(self.names, self.orders, strict=True)}

    def letters(self, ids: I64) -> list[npt.NDArray[np.uint8]]:
        """ASCII letters of each sample, as `data.index.Corpus.letters`."""
        return self._gather("letters", ids)

    def alignments(self, ids: I64) -> list[Any]:
        """As `data.alignments.AlignmentCorpus.alignments`."""
        return self._gather("alignments", ids)

    def profiles(self, ids: I64) -> list[Any]:
        """As `data.reactivity.ReactivityCorpus.profiles`."""
        return self._gather("profiles", ids)

    def _gather(self, content: str, ids: I64) -> list[Any]:
        result: list[Any] = [None] * len(ids)
        for corpus, places, local in _by_corpus(self.corpora, self.offsets, ids):
            for place, one in zip(places.tolist(), getattr(corpus, content)(local), strict=True):
                result[place] = one
        return result

    @property
    def type_names(self) -> list[str]:
        """RNA type of each type id. A later corpus may know more types, never other ones (data/rna_types.py)."""
        return max((corpus.type_names for corpus in self.corpora), key=len)

    def types(self, ids: I64) -> npt.NDArray[np.uint8]:
        """RNA type id of each sample, as `data.index.Corpus.types`."""
        result = np.zeros(len(ids), dtype=np.uint8)
        for corpus, places, local in _by_corpus(self.corpora, self.offsets, ids):
            result[places] = corpus.types(local)
        return result

    @property
    def has_structures(self) -> bool:
        return self._structures is not None

    def structures(self, ids: I64) -> list[bytes | None]:
        """Dot-bracket structure of each sample, None where there is none."""
        assert self._structures is not None
        return [self._structures.of(letters) for letters in self.letters(ids)]


def _by_corpus(corpora: list[Any], offsets: I64, ids: I64) -> list[tuple[Any, I64, I64]]:
    """(corpus, places in ``ids``, sample numbers within it) for every corpus that occurs."""
    owner = np.searchsorted(offsets, ids, side="right") - 1
    found = []
    for number in np.unique(owner).tolist():
        places = np.flatnonzero(owner == number)
        found.append((corpora[number], places, ids[places] - offsets[number]))
    return found
