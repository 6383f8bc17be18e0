"""Which level masks a sequence: by weights that may change over the run, per sample or for the whole global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from data import randomness
from data.masking.options import BATCH, LEVELS, RAMP, STAGED, LevelWeights, Ramp, Stage

F64 = npt.NDArray[np.float64]


class LevelChoice:
    """``weights``, ``stages`` and ``ramp`` as in data/masking/options.py; ``schedule`` says which of them count."""

    def __init__(
        self, weights: LevelWeights, schedule: str, stages: Sequence[Stage], ramp: Ramp, choose_per: str
    ) -> None:
        self._weights, self._schedule, self._ramp = _array(weights), schedule, ramp
        self._stages = [(stage.until, _array(stage)) for stage in stages]
        self._per_batch = choose_per == BATCH

    def probabilities(self, fraction: float) -> F64:
        """[levels] at this fraction of the run's steps, in the order of LEVELS; sums to 1."""
        if self._schedule == STAGED:
            weights = next((w for until, w in self._stages if fraction < until), self._stages[-1][1])
            staged: F64 = weights / weights.sum()
            return staged
        if self._schedule == RAMP:
            ramp = self._ramp
            share = ramp.max * min(max((fraction - ramp.start) / (ramp.end - ramp.start), 0.0), 1.0)
            others = self._weights.copy()
            others[0] = 0.0
            found: F64 = others / others.sum() * share
            found[0] = 1.0 - share
            return found
        mixed: F64 = self._weights / self._weights.sum()
        return mixed

    def choose(self, keys: npt.NDArray[np.uint64], fraction: float = 1.0, batch_key: int = 0) -> npt.NDArray[np.int64]:
        """[n] index into LEVELS per sample. ``batch_key`` is the same for all samples of a step."""
        bounds = np.cumsum(self.probabilities(fraction))
        if self._per_batch:
            draws = np.full(len(keys), randomness.uniform(randomness.key(batch_key, "level"), np.zeros(1))[0])
        else:
            draws = randomness.uniform(randomness.keys(randomness.key("level"), keys), np.zeros(len(keys)))
        # The last bound may be 1 - 1e-16; a level without weight is never met, as its bound repeats the one before.
        return np.searchsorted(bounds / bounds[-1], draws, side="right")

    @property
    def possible(self) -> list[str]:
        """The levels that occur at any time of the run."""
        if self._schedule == STAGED:
            used = np.sum([weights for _, weights in self._stages], axis=0) > 0
        else:
            used = self._weights > 0
            if self._schedule == RAMP:
                used[0] = True
        return [level for level, found in zip(LEVELS, used.tolist(), strict=True) if found]


def _array(weights: LevelWeights) -> F64:
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    return np.array([values[level] for level in LEVELS], dtype=np.float64)
