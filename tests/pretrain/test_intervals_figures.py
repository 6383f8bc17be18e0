"""The acceptance figures of the preset rnaernie-code, with the published motif lists (specs: rnaernie 4.2, 12).

The figures were measured on 200 random sequences per length. Masks of the published code depend on length and first
base alone at the span level, so those 200 are worth 4; a standard error is taken accordingly.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.masking.budget import budgets
from data.masking.options import LEVELS
from data.masking.words import WordScanner
from pretrain.objectives.intervals import Intervals
from pretrain.objectives.intervals_config import IntervalsConfig
from tests.data.masking import keys, packed, random_texts

LENGTHS = (22, 50, 100, 200, 508)
FRACTIONS = {
    "base": (0.136, 0.160, 0.150, 0.150, 0.150),
    "span": (0.097, 0.144, 0.141, 0.146, 0.148),
    "motif": (0, 0.138, 0.136, 0.144, 0.147),
}
WORTH = {"base": 4, "span": 4, "motif": 200}
COUNT = 1000


@pytest.fixture(scope="module")
def objective(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Intervals:
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(shared_data / "motifs/rnaernie_motifs.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    database = [str(folder / "motif" / name) for name in ("ATtRACT.txt", "SpliceAid.txt")]
    mined = [str(folder / "motif/Statistics.txt")]
    return Intervals(IntervalsConfig.of(preset="rnaernie-code", motif={"files": database, "mined": mined}))


def masks(objective: Intervals, level: str, length: int) -> np.ndarray:
    """[COUNT, length] selected?"""
    batch = packed(*random_texts(COUNT, length, seed=length))
    found = objective.engine.select_at(batch, keys(COUNT), np.full(COUNT, LEVELS.index(level)))
    chosen = np.zeros(COUNT * length, dtype=bool)
    chosen[found.place] = True
    return chosen.reshape(COUNT, length)


@pytest.mark.parametrize("level", list(FRACTIONS))
@pytest.mark.parametrize("place", range(len(LENGTHS)))
def test_mean_masked_fraction(objective, level, place):
    length, expected = LENGTHS[place], FRACTIONS[level][place]
    chosen = masks(objective, level, length)
    error = chosen.mean(axis=1).std() * np.sqrt(1 / WORTH[level] + 1 / COUNT)
    assert abs(chosen.mean() - expected) <= 3 * error + 0.0005  # the figures have three digits
    assert (chosen.sum(axis=1) <= budgets(np.array([length]), 0.15, 512)).all()
    if level == "base":
        assert (chosen.sum(axis=1) == {22: 3, 50: 8, 100: 15, 200: 30, 508: 76}[length]).all()
    if level == "span" and length == 22:  # windows of 3, 2 and 1 end at the last place that spans reach
        assert chosen.mean() == pytest.approx((3 + 2 + 1) / 3 / 22, abs=3 * error)


def test_run_lengths_of_spans(objective):
    chosen = np.pad(masks(objective, "span", 508), ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8)))
    runs = np.bincount(edges[1::2] - edges[::2])
    shares = [runs[1:5].sum() / runs.sum(), *(runs[5:9] / runs.sum())]
    for found, expected in zip(shares, (0.05, 0.45, 0.22, 0.15, 0.11), strict=True):
        assert abs(found - expected) <= 0.005 + 3 * np.sqrt(expected / runs.sum())


def test_spans_leave_the_last_nine_bases_and_nothing_up_to_nine(objective):
    touched = masks(objective, "span", 508).any(axis=0)
    assert touched[:-9].all()
    assert not touched[-9:].any()
    assert not masks(objective, "span", 9).any()


def test_up_to_23_nucleotides_the_motif_level_selects_nothing_and_from_24_on_something(objective):
    assert not masks(objective, "motif", 23).any()
    assert masks(objective, "motif", 24).any(axis=1).mean() > 0.9


def test_motif_targets_have_a_quarter_of_each_nucleotide_and_no_u_with_the_published_spelling(objective):
    batch = packed(*random_texts(COUNT, 300))
    level = np.full(COUNT, LEVELS.index("motif"))
    broken = Intervals(objective.config)
    database, mined = broken.words["motif"]
    spelled = [[word.replace("U", "T") for word in words.words] for words in (database, mined)]
    shares = []
    for own in (objective, broken):
        if own is broken:
            own.engine.scanners["motif"] = WordScanner(*spelled)
        targets = batch.letters[own.engine.select_at(batch, keys(COUNT), level).place]
        shares.append(np.bincount(targets, minlength=256)[list(b"ACGU")] / len(targets))
    assert shares[0] == pytest.approx([0.25] * 4, abs=0.04)
    assert shares[1][3] == 0
    assert shares[1][:3] == pytest.approx([0.38, 0.29, 0.32], abs=0.05)  # measured on nRC in the specification


def test_coverage_by_motif_length_in_random_rna(objective):
    batch = packed(*random_texts(300, 300, seed=9))
    words = objective.words["motif"][0].words
    for shortest, expected in ((4, 0.96), (5, 0.85), (6, 0.69), (7, 0.44), (8, 0.045), (9, 0.01)):
        hits = WordScanner([w for w in words if shortest <= len(w) <= 12]).scan(batch.texts(np.arange(300)))
        covered = np.zeros((300, 301), dtype=int)
        np.add.at(covered, (hits.sample, hits.start), 1)
        np.add.at(covered, (hits.sample, hits.stop), -1)
        assert (np.cumsum(covered, axis=1)[:, :300] > 0).mean() == pytest.approx(expected, abs=0.012)
        if shortest == 4:
            assert len(hits.start) / 300 == pytest.approx(227, rel=0.02)
