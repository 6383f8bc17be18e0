"""Loss spikes are seen against a robust scale, reported, or rolled back and left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pretrain.config import SpikeConfig
from pretrain.errors import PretrainError
from pretrain.spikes import FILE, LeftOut, SpikeWatch
from tests.pretrain import faults
from tests.ranks import QUICK, last, losses, pretrain, pretrain_well, records, refused

FAULTS = Path(faults.__file__)
SPIKE = 24  # counted from 0


def test_noise_and_a_slow_fall_are_no_spikes_and_a_jump_is() -> None:
    watch, noise = SpikeWatch(SpikeConfig()), np.random.default_rng(3)
    falling = [3 - step / 1000 + 0.05 * noise.standard_normal() for step in range(1000)]
    assert [watch.sees(loss) for loss in falling] == [None] * 1000
    why = watch.sees(3.5)
    assert why is not None
    assert why.startswith("its loss 3.5 is")
    assert watch.sees(falling[-1]) is None
    assert len(watch.recent) == 200
    assert 3.5 not in watch.recent


def test_the_scale_is_that_of_the_median_absolute_deviation() -> None:
    """Losses 1 and 3 in turn: median 2, deviation 1, spread 1.4826; ten spreads above the median is 16.826."""
    for loss, seen in ((16.8, False), (16.9, True)):
        watch = SpikeWatch(SpikeConfig(), [1.0, 3.0] * 20)
        assert (watch.sees(loss) is not None) is seen
    assert SpikeWatch(SpikeConfig(), [2.0] * 19).sees(1e9) is None, "too few losses to judge by"
    assert SpikeWatch(SpikeConfig(), [2.0] * 40).sees(2.21) is not None, "the least spread is a hundredth"


def test_what_is_left_out_is_kept_on_disk(tmp_path: Path) -> None:
    LeftOut(tmp_path).add(7, 9)
    again = LeftOut(tmp_path)
    assert [step for step in range(12) if step in again] == [7, 8]
    (tmp_path / FILE).write_text("[[7,")
    with pytest.raises(PretrainError, match="is damaged"):
        LeftOut(tmp_path)


@pytest.fixture
def arguments(synthetic_corpus: Path, tmp_path: Path) -> list[str]:
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "budget.steps=32"]
    return [*base, "checkpoint.every_steps=10"]


@pytest.mark.slow
def test_a_spike_is_reported_and_training_goes_on(arguments: list[str], tmp_path: Path) -> None:
    results = pretrain([f"spike={SPIKE}:9", "--", *arguments, "run.name=run"], ranks=2, script=FAULTS)
    assert [code for code, _, _ in results] == [0, 0], results
    assert f"step {SPIKE + 1} is a loss spike" in results[0][2]
    assert [record["step"] for record in records(tmp_path / "run", "spike")] == [SPIKE + 1]
    assert records(tmp_path / "run")[-1]["spikes"] == 1
    quiet = pretrain(
        [f"spike={SPIKE}:9", "--", *arguments, "run.name=quiet", "spikes.action=ignore"], ranks=2, script=FAULTS
    )
    assert "spike" not in quiet[0][2]
    assert losses(tmp_path / "quiet") == losses(tmp_path / "run")


@pytest.mark.slow
def test_a_spike_is_rolled_back_and_left_out(arguments: list[str], tmp_path: Path) -> None:
    roll = [f"spike={SPIKE}:9", "--", *arguments, "run.name=run", "spikes.action=roll_back"]
    results = pretrain(roll, ranks=2, script=FAULTS)
    assert [code for code, _, _ in results] == [75, 75], results
    run = tmp_path / "run"
    assert json.loads((run / FILE).read_text()) == [[SPIKE, SPIKE + 1]]
    assert last(run).progress.step == 20
    assert [code for code, _, _ in pretrain(roll, ranks=2, script=FAULTS)] == [0, 0]
    assert last(run).progress.left_out_steps == 1
    assert [record["step"] for record in records(run)] == [step for step in range(1, 33) if step != SPIKE + 1]
    # Up to the spike the run is the undisturbed one, and after it it lacks that step.
    pretrain_well([*arguments, "run.name=plain"], ranks=2)
    np.testing.assert_allclose(losses(run)[:SPIKE], losses(tmp_path / "plain")[:SPIKE], rtol=1e-6)
    assert losses(run)[SPIKE] != losses(tmp_path / "plain")[SPIKE + 1]
    # On the same checkpoint another run with the same file is the same.
    assert last(run).progress.optimizer_steps == 31


@pytest.mark.slow
def test_a_run_that_spikes_again_and_again_is_given_up(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / FILE).write_text("[[1, 2], [3, 4]]")
    settings = [*arguments, "run.name=run", "spikes.action=roll_back", "spikes.most=2"]
    results = pretrain([f"spike={SPIKE + 2}:9", "--", *settings], ranks=2, script=FAULTS)
    assert "after 2 were left out already" in refused(results)
