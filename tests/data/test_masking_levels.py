"""The choice of the masking level: weights, stages, ramp, per sample and per batch (specs: rnaernie 4.4)."""

from __future__ import annotations

import numpy as np
import pytest

from data.masking.levels import LevelChoice
from data.masking.options import LEVELS, LevelWeights, Ramp, Stage
from tests.data.masking import keys

THIRDS = [Stage(until=1 / 3, base=1), Stage(until=2 / 3, span=1), Stage(until=1, motif=2, npmi=2)]


def choice(weights: LevelWeights, schedule: str = "mix", per: str = "sample") -> LevelChoice:
    return LevelChoice(weights, schedule, THIRDS, Ramp(), per)


def test_levels_are_chosen_in_proportion_to_their_weights():
    own = choice(LevelWeights(base=2, span=1, motif=0, npmi=0, pair=1))
    counts = np.bincount(own.choose(keys(40_000)), minlength=len(LEVELS))
    for found, share in zip(counts, (0.5, 0.25, 0, 0, 0.25), strict=True):
        assert abs(found / 40_000 - share) < 3 * np.sqrt(share * (1 - share) / 40_000) + 1e-12


def test_by_default_the_three_levels_of_the_original_are_equally_likely():
    assert choice(LevelWeights()).probabilities(0.5) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert choice(LevelWeights()).possible == ["base", "span", "motif"]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, [1, 0, 0, 0, 0]),
        (0.33, [1, 0, 0, 0, 0]),
        (0.34, [0, 1, 0, 0, 0]),
        (0.67, [0, 0, 0.5, 0.5, 0]),
        (1.0, [0, 0, 0.5, 0.5, 0]),
    ],
)
def test_stages(fraction, expected):
    own = choice(LevelWeights(), "staged")
    assert own.probabilities(fraction).tolist() == expected
    assert set(own.choose(keys(200), fraction)) == set(np.flatnonzero(expected))
    assert own.possible == ["base", "span", "motif", "npmi"]


@pytest.mark.parametrize(("fraction", "share"), [(0, 0), (0.15, 0), (0.5, 0.25), (0.85, 0.5), (0.9, 0.5), (1, 0.5)])
def test_the_ramp_of_structrfm(fraction, share):
    own = choice(LevelWeights(base=0, span=0, motif=1, pair=3), "ramp")
    assert own.probabilities(fraction) == pytest.approx([1 - share, 0, share / 4, 0, share * 3 / 4])
    assert own.possible == ["base", "motif", "pair"]


def test_per_batch_all_samples_have_one_level_that_only_the_batch_key_decides():
    own = choice(LevelWeights(), per="batch")
    levels = []
    for step in range(300):
        whole = own.choose(keys(20), 0.5, batch_key=step)
        assert len(set(whole.tolist())) == 1
        assert own.choose(keys(3, seed=1), 0.5, batch_key=step).tolist() == whole[:3].tolist()
        levels.append(int(whole[0]))
    counts = np.bincount(levels, minlength=3)
    assert (abs(counts - 100) < 3 * np.sqrt(300 * 2 / 9)).all()


def test_per_sample_the_batch_key_decides_nothing():
    own = choice(LevelWeights())
    assert own.choose(keys(50), 0.5, 1).tolist() == own.choose(keys(50), 0.5, 2).tolist()
