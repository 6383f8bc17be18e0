"""Every key that says how a run is run does what it says. (What decides the mathematics: test_ranks, test_resume.)"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.loader import prefetched
from pretrain.checkpoint import steps_on_disk
from tests.pretrain import faults
from tests.ranks import QUICK, last, losses, pretrain, pretrain_well, records

FAULTS = Path(faults.__file__)


@pytest.fixture
def train(synthetic_corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(*settings: str, ranks: int = 1, name: str = "run", steps: int = 8) -> Path:
        where = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", f"run.name={name}"]
        pretrain_well([*QUICK, *where, f"budget.steps={steps}", *settings], ranks)
        return tmp_path / name

    return run


def saved(run: Path) -> list[int]:
    return sorted(step for step, _ in steps_on_disk(run / "checkpoints"))


@pytest.mark.slow
def test_checkpoint_every_steps_keep_and_permanent(train) -> None:
    assert saved(train(name="end")) == [8]
    assert saved(train("checkpoint.every_steps=3", name="every")) == [3, 6, 8]
    settings = ["checkpoint.every_steps=1", "checkpoint.keep=2", "checkpoint.permanent_every_steps=3"]
    assert saved(train(*settings, name="kept")) == [3, 6, 7, 8]


@pytest.mark.slow
def test_checkpoint_every_minutes(synthetic_corpus, tmp_path) -> None:
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run", "budget.steps=12"]
    command = ["slow_steps=0.1", "--", *QUICK, *settings, "checkpoint.every_minutes=0.005", "checkpoint.keep=99"]
    results = pretrain(command, 2, script=FAULTS)
    assert {code for code, _, _ in results} == {0}, results
    assert len(saved(tmp_path / "run")) >= 3


def test_run_seed_changes_the_data_and_the_weights(train) -> None:
    assert losses(train("run.seed=1", name="one"))[0] != losses(train("run.seed=2", name="two"))[0]


def test_run_directory_holds_the_resolved_recipe_and_the_environment(train) -> None:
    run = train("compute.threads=2", ranks=2, name="called")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["run"]["name"], recipe["compute"]["threads"], recipe["model"]["width"]) == ("called", 2, 32)
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["ranks"], environment["threads_per_rank"]) == (2, 2)
    assert environment["cpu_products"] in ("oneDNN", "MKL")
    assert environment["packages"]["deepspeed"] == "0.19.8"
    assert len(list((run / "logs").iterdir())) == 2


def test_the_recipe_that_a_run_wrote_repeats_it(train, tmp_path) -> None:
    run = train()
    again = ["--config", str(run / "recipe.yaml"), f"run.directory={tmp_path}", "run.name=again"]
    pretrain_well(again)
    assert losses(tmp_path / "again") == losses(run)


def test_compute_peak_tflops_gives_mfu(train) -> None:
    assert records(train(name="unknown"))[-1]["mfu"] is None
    record = records(train("compute.peak_tflops=0.5", name="known"))[-1]
    np.testing.assert_allclose(record["mfu"], record["tflops_per_device"] / 0.5)


def test_compute_prefetch_steps_works_that_far_ahead_and_changes_nothing(train) -> None:
    one, seven = (losses(train(f"compute.prefetch_steps={n}", name=f"ahead{n}")) for n in (1, 7))
    assert one == seven
    begun: list[int] = []

    class Planner:
        def step(self, number: int) -> int:
            begun.append(number)
            return number

    for ahead in (1, 5):
        begun.clear()
        steps = prefetched(Planner(), 0, 100, ahead)
        assert [next(steps) for _ in range(3)] == [0, 1, 2]
        for _ in range(1000):
            if len(begun) >= 3 + ahead + 1:
                break
            time.sleep(0.005)
        steps.close()
        assert len(begun) == 3 + ahead + 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_compute_compile_changes_the_losses_by_rounding_only(train, stage) -> None:
    stage_setting = f"deepspeed.zero_stage={stage}"
    compiled = train("compute.compile=true", stage_setting, name="compiled")
    np.testing.assert_allclose(losses(compiled), losses(train(stage_setting, name="eager")), rtol=1e-5)
    assert losses(compiled) != losses(train(stage_setting, name="eager2")), "nothing was compiled"


def test_deepspeed_keys_pass_through(synthetic_corpus, tmp_path) -> None:
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run", "budget.steps=2"]
    keys = ["deepspeed.zero_stage=2", "deepspeed.config.zero_optimization.reduce_bucket_size=12345"]
    keys += ["deepspeed.config.wall_clock_breakdown=true"]
    ((code, out, err),) = pretrain(["print_config=1", "--", *QUICK, *settings, *keys], script=FAULTS)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("DEEPSPEED ")]
    config = json.loads(line.removeprefix("DEEPSPEED "))
    assert (config["zero_optimization"]["stage"], config["zero_optimization"]["reduce_bucket_size"]) == (2, 12345)
    assert config["wall_clock_breakdown"] is True
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_clipping"] == 2.5
    assert last(tmp_path / "run").written_by == {"ranks": 1, "zero_stage": 2}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_small_buckets_change_nothing(train, stage) -> None:
    zero = "deepspeed.config.zero_optimization"
    small = [f"{zero}.{key}=500" for key in ("reduce_bucket_size", "allgather_bucket_size")]
    usual, changed = (train(f"deepspeed.zero_stage={stage}", *s, ranks=2, name=f"{len(s)}") for s in ([], small))
    np.testing.assert_allclose(losses(changed), losses(usual), rtol=1e-6)


def test_tracking_log_every_steps_averages_over_the_steps_between(train) -> None:
    every = records(train(name="every"))
    some = records(train("tracking.log_every_steps=3", name="some"))
    assert [record["step"] for record in some] == [3, 6, 8]
    weighted = sum(r["loss"] * r["targets"] for r in every[:3]) / sum(r["targets"] for r in every[:3])
    np.testing.assert_allclose(some[0]["loss"], weighted, rtol=1e-6)


def test_tracking_tensorboard_is_written_where_it_is_wanted(train) -> None:
    assert not (train(name="without") / "tensorboard").exists()
    assert list((train("tracking.tensorboard=true", name="with") / "tensorboard").iterdir())


@pytest.mark.slow
def test_validation_every_steps_sequences_and_baselines(train) -> None:
    assert records(train(name="without"), "validation") == []
    run = train("validation.every_steps=3", "validation.sequences=16", name="with")
    assert [(r["step"], r["sequences"]) for r in records(run, "validation")] == [(3, 16), (6, 16), (8, 16)]
    assert len(records(run, "references")) == 1
    end = train("validation.every_steps=0", "validation.sequences=16", "validation.baselines=false", name="end")
    assert [r["step"] for r in records(end, "validation")] == [8]
    assert records(end, "references") == []
    assert losses(run) == losses(end), "validation must not touch training"


@pytest.mark.slow
def test_validation_is_the_same_on_any_number_of_ranks(train) -> None:
    settings = ["validation.every_steps=0", "validation.sequences=40"]
    one, two = (records(train(*settings, ranks=n, name=f"{n}"), "validation")[0] for n in (1, 2))
    assert one["targets"] == two["targets"]
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
