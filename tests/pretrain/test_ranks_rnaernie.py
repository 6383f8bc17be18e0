"""RNAErnie's decoder is its embedding: one parameter in two places, at every way to divide it over ranks.

At stage 3 every parameter is partitioned here, also those that by their size would stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import QUICK, last, losses, pretrain_well

STEPS = 12
MODEL = ["model.name=rnaernie", "model.vocab=57", "objective.alphabet=rnaernie", f"budget.steps={STEPS}"]
PARTITION_ALL = "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"


@pytest.fixture(scope="module")
def train(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    directory = tmp_path_factory.mktemp("runs")

    def run(ranks: int, stage: int, *extra: str) -> Path:
        name = f"ranks{ranks}-zero{stage}-{len(extra)}"
        if not (directory / name).exists():
            settings = [f"run.directory={directory}", f"run.name={name}", f"data.corpus={synthetic_corpus}"]
            settings += [f"deepspeed.zero_stage={stage}", "batch.tokens_per_micro_batch=256", *MODEL]
            settings += [PARTITION_ALL] if stage == 3 else []
            pretrain_well([*QUICK, *settings, *extra], ranks)
        return directory / name

    return run


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_a_tied_decoder_trains_alike_at_every_zero_stage(train, stage: int) -> None:
    require_equal(train(2, stage), train(1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_blocks_change_nothing(train, stage: int) -> None:
    require_equal(train(2, stage, "model.checkpointing=true"), train(1, 0))


def require_equal(run: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    assert losses(reference)[-1] < losses(reference)[0] - 0.3
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)
    ours, theirs = last(run).weights(), last(reference).weights()
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - x).abs().max()) for name, x in theirs.items()) < 1e-4
    assert {"embed.weight", "token_type.weight", "head.out.bias"} <= ours.keys()
