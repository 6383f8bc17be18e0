"""RNA-MSM under ZeRO: alignments of different shapes on every rank, and the same losses however it is split."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import pretrain

SCRIPT = Path(__file__).parent / "train_alignments.py"


def run(ranks, stage, *options):
    results = pretrain([str(stage), *options], ranks, script=SCRIPT)
    assert [code for code, _, _ in results] == [0] * ranks, results
    found = json.loads(results[0][1].splitlines()[-1])
    assert found["whole"]
    return found["losses"]


@pytest.fixture(scope="module")
def alone():
    losses = run(1, 0)
    assert losses[0] == pytest.approx(np.log(6), abs=0.1)
    assert losses[-1] < losses[0]
    return losses


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_two_ranks_equal_one(alone, stage):
    np.testing.assert_allclose(run(2, stage), alone, rtol=1e-5)


@pytest.mark.slow
def test_recomputed_blocks_change_nothing(alone):
    np.testing.assert_allclose(run(2, 3, "checkpointing"), alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 1), (2, 2), (1, 3)])
def test_every_other_stage_too(alone, ranks, stage):
    np.testing.assert_allclose(run(ranks, stage), alone, rtol=1e-5)
