"""Which samples a step trains on: a pure function of (corpus shape, seed, global batch, step).

Step s trains on positions [s*N, (s+1)*N) of an endless order, N being the recipe's sequences per global batch. Epoch e
is a keyed permutation of all samples: the blocks are permuted, then the samples inside windows of 262,144. A window is
computed when it is needed (a few milliseconds) and nothing is ever stored, so any step of a corpus of any size is
found at once, and the state to resume is the step number alone.

It does not know ranks, micro-batches or files. A step that spans two epochs trains on no sample twice: samples that
the step already has from the old epoch change places with later ones of the new epoch (this needs a corpus of at least
four global batches; a smaller corpus repeats samples within such a step, and one smaller than N within every step).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from data import randomness
from data.errors import DataError

I64: TypeAlias = npt.NDArray[np.int64]

WINDOW = 262_144


@dataclass
class Order:
    """The endless order of samples of one corpus.

    block_counts: [blocks] samples per block, in corpus order; sample ids count through the blocks.
    """

    block_counts: I64
    seed: int
    global_batch: int
    window: int = WINDOW
    samples_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.block_counts = np.asarray(self.block_counts, dtype=np.int64)
        self.samples_per_epoch = int(self.block_counts.sum())
        if self.samples_per_epoch == 0:
            raise DataError("the corpus holds no sequence, so there is nothing to train on; prepare it again")
        if self.global_batch < 1:
            raise DataError(f"a global batch of {self.global_batch} sequences is not possible; it must be at least 1")
        self._block_first = np.cumsum(self.block_counts) - self.block_counts
        self._windows: OrderedDict[tuple[int, int], I64] = OrderedDict()
        self._blocks: OrderedDict[int, tuple[I64, I64]] = OrderedDict()
        self._exchanges: OrderedDict[int, tuple[I64, I64]] = OrderedDict()

    def step(self, step: int) -> tuple[I64, I64]:
        """Samples of one step: (epoch [N], sample id [N])."""
        return self.positions(step * self.global_batch, (step + 1) * self.global_batch)

    def positions(self, start: int, stop: int) -> tuple[I64, I64]:
        """Samples at global positions [start, stop): (epoch [n], sample id [n])."""
        epochs, ids = [], []
        while start < stop:
            epoch, first = divmod(start, self.samples_per_epoch)
            last = min(first + stop - start, self.samples_per_epoch)
            epochs.append(np.full(last - first, epoch, dtype=np.int64))
            ids.append(self._epoch_slice(epoch, first, last))
            start += last - first
        return np.concatenate(epochs), np.concatenate(ids)

    def _epoch_slice(self, epoch: int, first: int, last: int) -> I64:
        """Sample ids at positions [first, last) of one epoch."""
        ids = self._permuted_slice(epoch, first, last)
        where, what = self._exchanged(epoch)
        low, high = np.searchsorted(where, [first, last])
        ids[where[low:high] - first] = what[low:high]
        return ids

    def _exchanged(self, epoch: int) -> tuple[I64, I64]:
        """Positions of this epoch whose sample was exchanged, ascending, and the sample that stands there instead.

        Keeps the step that spans the boundary to the previous epoch free of repeats. With four global batches or more
        an exchange reaches at most 2N into the epoch and never its own last N, so epochs do not depend on each other
        in a chain.
        """
        n, total = self.global_batch, self.samples_per_epoch
        from_old = (epoch * total) % n  # samples of the spanning step that the old epoch supplies
        if epoch == 0 or from_old == 0 or total < 4 * n:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing
        if epoch not in self._exchanges:
            old = self._permuted_slice(epoch - 1, total - from_old, total)
            head = self._permuted_slice(epoch, 0, n - from_old)
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


def _remember(cache: OrderedDict, key: object, value: object, most: int = 3) -> None:  # type: ignore[type-arg]
    """Keep the newest few: a step needs at most the last window of an epoch and the first ones of the next."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)


def sample_keys(seed: int, epochs: npt.ArrayLike, ids: npt.ArrayLike) -> randomness.U64:
    """[n] one key per sample of a step: crops, masks and flips derive from it and from nothing else."""
    per_epoch = randomness.keys(randomness.key(seed, "sample"), epochs)
    return randomness.mix((per_epoch ^ np.asarray(ids).astype(np.uint64)) + randomness.GOLDEN)
