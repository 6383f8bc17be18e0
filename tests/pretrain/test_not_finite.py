"""A gradient that is not finite skips the step on all ranks and is counted; too many in a row end the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpoint
from tests.pretrain import faults
from tests.ranks import QUICK, last, pretrain, pretrain_well, records, refused, same_bits

FAULTS = Path(faults.__file__)
STAGES = [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))]


@pytest.fixture
def arguments(synthetic_corpus: Path, tmp_path: Path) -> list[str]:
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run", "budget.steps=8"]
    return [*QUICK, *settings, "checkpoint.every_steps=1", "checkpoint.keep=9"]


def saved(tmp_path: Path, step: int) -> Checkpoint:
    return Checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_with_a_loss_of_one_rank_that_is_not_finite_is_skipped_on_all(arguments, tmp_path, stage) -> None:
    results = pretrain(["nan_loss=1:3:4", "--", *arguments, f"deepspeed.zero_stage={stage}"], 2, script=FAULTS)
    assert [code for code, _, _ in results] == [0, 0], results
    assert [record["skipped_steps"] for record in records(tmp_path / "run")] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [record["loss"] is None for record in records(tmp_path / "run")] == [3 <= step <= 4 for step in range(8)]
    assert same_bits(saved(tmp_path, 3), saved(tmp_path, 5))
    assert not same_bits(saved(tmp_path, 5), saved(tmp_path, 6))
    assert last(tmp_path / "run").progress.skipped_steps == 2
    assert last(tmp_path / "run").progress.optimizer_steps == 6
    assert all(bool(values.isfinite().all()) for values in last(tmp_path / "run").weights().values())
    assert sum(err.count("the step is skipped") for _, _, err in results) == 2


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (2, "bf16"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0, "fp32"), (2, "fp32"), (3, "bf16")]),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in [(1, "fp32"), (3, "fp32"), (1, "bf16"), (0, "bf16_autocast")]
        ),
    ],
)
def test_a_gradient_that_overflows_on_one_rank_is_skipped_on_all(arguments, tmp_path, stage, precision) -> None:
    """The loss is finite and logged; the gradient is not."""
    settings = [f"deepspeed.zero_stage={stage}", f"compute.precision={precision}"]
    results = pretrain(["infinite_gradient=1:3:3", "--", *arguments, *settings], 2, script=FAULTS)
    assert [code for code, _, _ in results] == [0, 0], results
    assert [record["skipped_steps"] for record in records(tmp_path / "run")] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert None not in [record["loss"] for record in records(tmp_path / "run")]
    assert same_bits(saved(tmp_path, 3), saved(tmp_path, 4))
    assert not same_bits(saved(tmp_path, 4), saved(tmp_path, 5))
    assert last(tmp_path / "run").progress.optimizer_steps == 7
    assert all(bool(values.isfinite().all()) for values in last(tmp_path / "run").weights().values())


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))])
def test_training_stops_after_the_configured_number_in_a_row(arguments, tmp_path, stage) -> None:
    settings = ["optimizer.stop_after_skipped=3", f"deepspeed.zero_stage={stage}"]
    told = refused(pretrain(["nan_loss=1:3:99", "--", *arguments, *settings], 2, script=FAULTS))
    assert "3 steps in a row" in told
    assert "step 6" in told
    assert "optimizer.learning_rate" in told
    assert last(tmp_path / "run").progress.step == 5
    assert same_bits(last(tmp_path / "run"), saved(tmp_path, 3))


def test_single_ones_apart_do_not_add_up(arguments, tmp_path) -> None:
    faulty = ["nan_loss=0:1:1", "nan_loss=0:3:3", "nan_loss=0:5:5", "--", *arguments, "optimizer.stop_after_skipped=2"]
    ((code, _, err),) = pretrain(faulty, script=FAULTS)
    assert code == 0, err
    assert last(tmp_path / "run").progress.skipped_steps == 3


def test_the_count_of_skipped_steps_survives_a_restart(arguments, tmp_path) -> None:
    pretrain(["nan_loss=0:1:2", "--", *arguments, "budget.steps=4"], script=FAULTS)
    pretrain_well(arguments)
    assert [record["skipped_steps"] for record in records(tmp_path / "run")] == [0, 1, 2, 2, 2, 2, 2, 2]
