"""What stands in the place of a selected token: `<mask>`, a random one of a pool, or the token itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data import randomness

I64 = npt.NDArray[np.int64]


class Corruption:
    """``pool``: ids that random tokens are drawn from, uniformly. ``vocabulary``: number of ids.

    ``differs``: a random token is never the original one; otherwise one in len(pool) is.
    """

    def __init__(
        self, mask_id: int, pool: I64, vocabulary: int, mask_share: float, random_share: float, differs: bool
    ) -> None:
        self._mask_id, self._pool, self._differs = mask_id, pool, differs
        self._mask_share, self._random_share = mask_share, random_share
        self._place = np.full(vocabulary, -1)
        self._place[pool] = np.arange(len(pool))

    def replace(self, original: I64, positions: I64, keys: npt.NDArray[np.uint64], units: I64 | None = None) -> I64:
        """[n] for tokens ``original`` at ``positions`` of samples with ``keys``.

        Tokens of one sample with the same ``units`` share their fate (masked, random, kept); each has its own unless
        given. Random tokens are drawn for each token in any case.
        """
        fate = randomness.uniform(randomness.keys(randomness.key("fate"), keys), positions if units is None else units)
        draws = randomness.bits(randomness.keys(randomness.key("letter"), keys), positions)
        place, n = self._place[original], len(self._pool)
        if self._differs:
            # One of the n - 1 places after the original, cyclically; a letter outside the pool may become any of it.
            other = np.where(place >= 0, (place + 1 + randomness.below(draws, n - 1)) % n, randomness.below(draws, n))
        else:
            other = randomness.below(draws, n)
        replaced = np.where(fate < self._mask_share, self._mask_id, original)
        random = (fate >= self._mask_share) & (fate < self._mask_share + self._random_share)
        return np.where(random, self._pool[other], replaced)
