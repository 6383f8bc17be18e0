"""Which samples a step trains on: a pure function of (corpus shape, seed, global batch, step).

Step s trains on positions [s*N, (s+1)*N) of an endless order, N being the recipe's sequences per global batch. Epoch e
is a keyed permutation of all units: the blocks are permuted, then the units inside windows of 262,144. A window is
computed when it is needed (a few milliseconds) and nothing is ever stored, so any step of a corpus of any size is
found at once, and the state to resume is the step number alone.

A unit is a sequence, or in a clustered corpus a cluster, from which each epoch draws one member afresh: so every epoch
and every step is cluster-disjoint. In a mixture a corpus supplies a share of every step (data/share.py).

It does not know ranks, micro-batches or files. A step that spans two epochs trains on no unit twice: units that the
step already has from the old epoch change places with later ones of the new epoch (this needs a corpus of at least
four global batches; a smaller corpus repeats units within such a step, and one smaller than N within every step).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from data import randomness
from data.errors import DataError
from data.share import Share

I64: TypeAlias = npt.NDArray[np.int64]
Key = TypeVar("Key")
Value = TypeVar("Value")

WINDOW = 262_144


@dataclass
class Order:
    """The endless order of samples of one corpus.

    block_counts: [blocks] sequences per block, in corpus order; sample ids count through the blocks.
    pointers: [clusters + 1], cluster c holding the samples pointers[c] : pointers[c + 1]; None without clusters.
    share: the part of every step that this corpus supplies; all of it unless given.
    """

    block_counts: I64
    seed: int
    global_batch: int
    window: int = WINDOW
    pointers: I64 | None = None
    share: Share | None = None
    samples_per_epoch: int = field(init=False)  # units: sequences, or clusters

    def __post_init__(self) -> None:
        self.block_counts = np.asarray(self.block_counts, dtype=np.int64)
        if self.pointers is not None:
            self.block_counts = _runs(len(self.pointers) - 1)
        self.samples_per_epoch = int(self.block_counts.sum())
        if self.samples_per_epoch == 0:
            raise DataError("the corpus holds no sequence, so there is nothing to train on; prepare it again")
        if self.global_batch < 1:
            raise DataError(f"a global batch of {self.global_batch} sequences is not possible; it must be at least 1")
        self._share = self.share or Share(self.global_batch)
        self._block_first = np.cumsum(self.block_counts) - self.block_counts
        self._windows: OrderedDict[tuple[int, int], I64] = OrderedDict()
        self._blocks: OrderedDict[int, tuple[I64, I64]] = OrderedDict()
        self._exchanges: OrderedDict[int, tuple[I64, I64]] = OrderedDict()

    def step(self, step: int) -> tuple[I64, I64]:
        """Samples of one step that this corpus supplies: (epoch [n], sample id [n]); n is N without a mixture."""
        return self.positions(self._share.before(step), self._share.before(step + 1))

    def epochs_before(self, step: int) -> float:
        """Passes over the corpus that are complete before ``step``, as a fraction."""
        return self._share.before(step) / self.samples_per_epoch

    def positions(self, start: int, stop: int) -> tuple[I64, I64]:
        """Samples at positions [start, stop) of this corpus's order: (epoch [n], sample id [n])."""
        epochs, ids = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.samples_per_epoch)
            last = min(first + stop - start, self.samples_per_epoch)
            epochs.append(np.full(last - first, epoch, dtype=np.int64))
            ids.append(self._members(epoch, self._epoch_slice(epoch, first, last)))
            start += last - first
        return np.concatenate(epochs), np.concatenate(ids)

    def _members(self, epoch: int, units: I64) -> I64:
        """The sample that each unit stands for in this epoch: of a cluster, one member, drawn by key."""
        if self.pointers is None:
            return units
        first, size = self.pointers[units], self.pointers[units + 1] - self.pointers[units]
        draws = randomness.bits(randomness.key(self.seed, "member", epoch), units)
        return np.asarray(first, dtype=np.int64) + randomness.below(draws, size)

    def _epoch_slice(self, epoch: int, first: int, last: int) -> I64:
        """Units at positions [first, last) of one epoch."""
        ids = self._permuted_slice(epoch, first, last)
        where, what = self._exchanged(epoch)
        low, high = np.searchsorted(where, [first, last])
        ids[where[low:high] - first] = what[low:high]
        return ids

    def _exchanged(self, epoch: int) -> tuple[I64, I64]:
        """Positions of this epoch whose unit was exchanged, ascending, and the unit that stands there instead.

        Keeps the step that spans the boundary to the previous epoch free of repeats. With four global batches or more
        an exchange reaches at most 2N into the epoch and never its own last N, so epochs do not depend on each other
        in a chain.
        """
        total, boundary = self.samples_per_epoch, epoch * self.samples_per_epoch
        step = self._share.step_of(boundary)
        # Units of the spanning step that the old and the new epoch supply.
        from_old, from_new = boundary - self._share.before(step), self._share.before(step + 1) - boundary
        if epoch == 0 or from_old == 0 or total < 4 * self._share.most:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing
        if epoch not in self._exchanges:
            old = self._permuted_slice(epoch - 1, total - from_old, total)
            head = self._permuted_slice(epoch, 0, from_new)
            repeats = np.flatnonzero(np.isin(head, old))
            after = self._permuted_slice(epoch, len(head), len(head) + from_old + len(repeats))
            fresh = np.flatnonzero(~np.isin(after, old))[: len(repeats)]
            where = np.concatenate([repeats, len(head) + fresh])
            what = np.concatenate([after[fresh], head[repeats]])
            ascending = np.argsort(where)
            _remember(self._exchanges, epoch, (where[ascending], what[ascending]))
        return self._exchanges[epoch]

    def _permuted_slice(self, epoch: int, first: int, last: int) -> I64:
        """Positions [first, last) of the keyed permutation of one epoch, as a fresh array."""
        parts = []
        while first < last:
            window, offset = divmod(first, self.window)
            ids = self._permuted_window(epoch, window)[offset : offset + last - first]
            parts.append(ids)
            first += len(ids)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _permuted_window(self, epoch: int, window: int) -> I64:
        if (epoch, window) not in self._windows:
            blocks, ends = self._permuted_blocks(epoch)
            start = window * self.window
            stop = min(start + self.window, self.samples_per_epoch)
            # The blocks that overlap [start, stop) of the permuted blocks laid end to end, and the part of each.
            low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
            chosen, chosen_ends = blocks[low:high], ends[low:high]
            counts = self.block_counts[chosen]
            skip = np.maximum(start - (chosen_ends - counts), 0)
            take = counts - skip - np.maximum(chosen_ends - stop, 0)
            firsts = self._block_first[chosen] + skip
            ids = np.arange(stop - start) + np.repeat(firsts - (np.cumsum(take) - take), take)
            shuffle = randomness.permutation(randomness.key(self.seed, "window", epoch, window), len(ids))
            _remember(self._windows, (epoch, window), ids[shuffle])
        return self._windows[epoch, window]

    def _permuted_blocks(self, epoch: int) -> tuple[I64, I64]:
        """(block numbers in this epoch's order [blocks], cumulative sample counts in that order [blocks])."""
        if epoch not in self._blocks:
            blocks = randomness.permutation(randomness.key(self.seed, "blocks", epoch), len(self.block_counts))
            _remember(self._blocks, epoch, (blocks, np.cumsum(self.block_counts[blocks])))
        return self._blocks[epoch]


def _runs(units: int, size: int = 1024) -> I64:
    """Clusters have no blocks of their own: runs of neighbours, which lie together on disk."""
    return np.diff(np.append(np.arange(0, units, size), units)).astype(np.int64)


def _remember(cache: OrderedDict[Key, Value], key: Key, value: Value, most: int = 3) -> None:
    """Keep the newest few: a step needs at most the last window of an epoch and the first ones of the next."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)


def sample_keys(seed: int, epochs: npt.ArrayLike, ids: npt.ArrayLike) -> randomness.U64:
    """[n] one key per sample of a step: crops, masks and flips derive from it and from nothing else."""
    per_epoch = randomness.keys(randomness.key(seed, "sample"), epochs)
    return randomness.mix((per_epoch ^ np.asarray(ids).astype(np.uint64)) + randomness.GOLDEN)
