"""A tied decoder under ZeRO: one tensor in the optimizer and in checkpoints, and the same losses however it is split.

AIDO.RNA is the model with one. At stage 3 every parameter is partitioned here, the tied one too, which by its size
would otherwise stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import QUICK, last, losses, pretrain_well

STEPS = 8
TIED = ["model.name=aido_rna", "model.size=null", "objective.alphabet=aido_rna", f"budget.steps={STEPS}"]
PARTITION_ALL = "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"


@pytest.fixture(scope="module")
def train(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    directory, done = tmp_path_factory.mktemp("tied"), {}

    def run(ranks: int, stage: int, *extra: str) -> Path:
        name = f"ranks{ranks}-zero{stage}-{len(extra)}"
        if name not in done:
            settings = [f"run.directory={directory}", f"run.name={name}", f"data.corpus={synthetic_corpus}"]
            settings += [f"deepspeed.zero_stage={stage}", *([PARTITION_ALL] if stage == 3 else [])]
            pretrain_well([*QUICK, *TIED, *settings, *extra], ranks)
            done[name] = directory / name
        return done[name]

    return run


def require_equal(run: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)
    one, other = last(run).weights(), last(reference).weights()
    assert one.keys() == other.keys()
    assert "embed.weight" in one
    assert not any("out.weight" in name and name.startswith("head") for name in one)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4


@pytest.mark.parametrize("stage", [0, 3])
def test_zero_stages_on_two_ranks_equal_one_rank(train, stage) -> None:
    require_equal(train(2, stage), train(1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)])
def test_every_other_stage_too(train, ranks, stage) -> None:
    require_equal(train(ranks, stage), train(1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_blocks_change_nothing(train, stage) -> None:
    require_equal(train(2, stage, "model.checkpointing=true"), train(1, 0))


def test_both_ends_of_the_model_train_the_tied_matrix(train, synthetic_corpus) -> None:
    """The rows of letters move as inputs and as answers, those of unused tokens as wrong answers only."""
    from pretrain import recipe
    from pretrain.initialise import build_model

    settings = recipe.load(QUICK[1], [*QUICK[2:], *TIED, f"data.corpus={synthetic_corpus}", "run.directory=unused"])
    before = build_model(settings).state_dict()["embed.weight"]
    moved = (last(train(2, 3)).weights()["embed.weight"] - before).abs().amax(dim=1)
    assert (moved > 1e-4).all(), moved
