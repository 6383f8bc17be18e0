"""A run that is killed at any instant continues exactly, on the same ranks and stage or on others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint import Checkpoint, newest, steps_on_disk
from tests.pretrain import faults
from tests.ranks import (
    DROPOUT,
    QUICK,
    finish,
    last,
    logged_steps,
    losses,
    pretrain,
    pretrain_well,
    records,
    refused,
    same_bits,
    start,
    wait_for,
)

FAULTS = Path(faults.__file__)
STEPS = 36
KILLS = ("any time", "while saving", "one rank")
PLACES = ["before-write", "torn-write", "before-hash", "before-manifest", "before-rename", "before-rotate"]


@pytest.fixture(scope="module")
def command(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path]]:
    """(arguments, run directory) of a run with dropout that saves after every second step."""
    directory = tmp_path_factory.mktemp("runs")
    base = [*QUICK, *DROPOUT, f"data.corpus={synthetic_corpus}", f"run.directory={directory}", "checkpoint.keep=2"]
    base += [f"budget.steps={STEPS}", "checkpoint.every_steps=2", "validation.sequences=16", "validation.every_steps=6"]

    def make(name: str, *settings: str) -> tuple[list[str], Path]:
        return [*base, f"run.name={name}", *settings], directory / name

    return make


@pytest.fixture(scope="module")
def whole(command) -> Callable[..., Path]:
    """An uninterrupted run with dropout; the same arguments train once."""
    done: dict[str, Path] = {}

    def run(stage: int, precision: str = "fp32") -> Path:
        name = f"whole-zero{stage}-{precision}"
        if name not in done:
            arguments, done[name] = command(name, f"deepspeed.zero_stage={stage}", f"compute.precision={precision}")
            pretrain_well(arguments, ranks=2)
        return done[name]

    return run


def newest_step(run: Path) -> int:
    return max((step for step, _ in steps_on_disk(run / "checkpoints")), default=0)


def require_same_run(run: Path, reference: Path) -> None:
    """Weights, optimizer state and losses bit for bit; training and validation records of every step, once."""
    assert last(run).progress.step == last(reference).progress.step == STEPS
    assert same_bits(last(run), last(reference))
    assert losses(run) == losses(reference)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    scores = [[(r["step"], r["loss"]) for r in records(each, "validation")] for each in (run, reference)]
    assert scores[0] == scores[1]
    assert [step for step, _ in scores[0]] == list(range(6, STEPS + 1, 6))
    assert len(records(run, "references")) == 1


def kill(ranks: list, run: Path, moment: str, chance: random.Random) -> None:
    """SIGKILL at a random moment, in the midst of a save, or of one rank only (the others then end by themselves)."""
    begun = newest_step(run) + chance.randrange(1, STEPS // (len(KILLS) + 1))
    wait_for(lambda: newest_step(run) >= begun)
    if moment == "while saving":
        wait_for(lambda: list((run / "checkpoints").glob(".step-*.partial")))
    time.sleep(chance.uniform(0, 0.02))
    for rank in ranks[:1] if moment == "one rank" else ranks:
        rank.kill()
    assert all(code != 0 for code, _, _ in finish(ranks, timeout=60)), "the run was over before the kill"


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        pytest.param(0, "fp32", marks=pytest.mark.slow),
        pytest.param(3, "bf16", marks=pytest.mark.slow),
        pytest.param(1, "bf16", marks=pytest.mark.soak),
        pytest.param(2, "bf16", marks=pytest.mark.soak),
        pytest.param(3, "fp32", marks=pytest.mark.soak),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(command, whole, stage, precision) -> None:
    reference = whole(stage, precision)
    chance = random.Random()
    arguments, run = command(
        f"killed-zero{stage}-{precision}", f"deepspeed.zero_stage={stage}", f"compute.precision={precision}"
    )
    for moment in KILLS:
        kill(start(arguments, ranks=2), run, moment, chance)
    pretrain_well(arguments, ranks=2)
    require_same_run(run, reference)


@pytest.mark.parametrize(
    ("rank", "place"),
    [
        (0, "before-rename"),
        *(pytest.param(0, place, marks=pytest.mark.slow) for place in PLACES if place != "before-rename"),
        *(pytest.param(1, place, marks=pytest.mark.slow) for place in PLACES[:3]),
    ],
)
def test_a_kill_at_any_place_of_a_save_leaves_a_usable_checkpoint(command, whole, rank, place) -> None:
    arguments, run = command(f"save-{rank}-{place}")
    results = pretrain([f"kill_in_save={rank}:8:{place}", "--", *arguments], ranks=2, script=FAULTS)
    assert results[rank][0] == -9
    assert results[1 - rank][0] not in (0, -9)
    assert newest_step(run) == (8 if place == "before-rotate" else 6)
    last(run).verify()
    pretrain_well(arguments, ranks=2)
    require_same_run(run, whole(0))
    assert not list((run / "checkpoints").glob(".step-*")), "what the kill left is still there"


@pytest.mark.slow
def test_a_kill_between_saving_and_validating_loses_no_validation(command, whole) -> None:
    arguments, run = command("unvalidated")
    slow = ["slow_validation=1", "--", *arguments, "checkpoint.background=false"]
    ranks = start(slow, ranks=2, script=FAULTS)
    wait_for(lambda: newest_step(run) == 6 and logged_steps(run) == 6)
    time.sleep(0.3)
    ranks[0].kill()
    finish(ranks)
    assert records(run, "validation") == []
    pretrain_well(arguments, ranks=2)
    require_same_run(run, whole(0))


def test_a_finished_run_started_again_changes_nothing(command) -> None:
    arguments, run = command("finished", "budget.steps=6")
    pretrain_well(arguments)
    living = ("logs", "heartbeats")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name not in living}
    assert "done: 6 steps" in pretrain_well(arguments)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_a_run_continues_on_other_ranks_and_zero_stages(command) -> None:
    """Losses as if uninterrupted. Without dropout: its masks depend on the rank."""
    plain = ["model.attention_dropout=0", "model.residual_dropout=0", "schedule.decay_steps=11"]
    arguments, run = command("moved", *plain)
    reference, one_go = command("unmoved", *plain)
    pretrain_well([*reference, "budget.steps=15"])
    for ranks, stage, steps in [(2, 2, 5), (1, 0, 10), (3, 3, 15)]:
        pretrain_well([*arguments, f"budget.steps={steps}", f"deepspeed.zero_stage={stage}"], ranks)
        assert last(run).written_by == {"ranks": ranks, "zero_stage": stage}
    np.testing.assert_allclose(losses(run), losses(one_go), rtol=1e-5)
    assert last(run).progress.optimizer_steps == 15


@pytest.mark.slow
def test_a_bf16_run_continues_in_fp32_from_its_fp32_masters(command) -> None:
    arguments, run = command("precise", "schedule.decay_steps=20")
    pretrain_well([*arguments, "budget.steps=7", "compute.precision=bf16", "deepspeed.zero_stage=2"], ranks=2)
    saved = last(run).weights()
    assert any((values != values.bfloat16()).any() for values in saved.values()), "masters were rounded to bf16"
    pretrain_well([*arguments, "budget.steps=14"], ranks=1)
    assert len(losses(run)) == 14


@pytest.mark.slow
def test_a_run_with_its_state_on_the_host_is_resumed(command) -> None:
    keys = ["deepspeed.offload=true", "deepspeed.zero_stage=2", "compute.precision=bf16", "schedule.decay_steps=12"]
    whole, reference = command("offload-whole", *keys, "budget.steps=12")
    pretrain_well(whole, ranks=2)
    arguments, run = command("offload", *keys)
    for steps in (5, 12):
        pretrain_well([*arguments, f"budget.steps={steps}"], ranks=2)
    assert same_bits(last(run), last(reference))


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(3, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.soak),
    ],
)
def test_slow_weights_are_resumed(command, stage) -> None:
    """Stopped at steps that are no multiple of lookahead's six."""
    keys = ["optimizer.name=ranger", f"deepspeed.zero_stage={stage}", "schedule.decay_steps=16"]
    whole, reference = command(f"ranger-whole-{stage}", *keys, "budget.steps=16")
    pretrain_well(whole, ranks=2)
    arguments, run = command(f"ranger-{stage}", *keys)
    for steps in (4, 9, 16):
        pretrain_well([*arguments, f"budget.steps={steps}"], ranks=2)
    assert same_bits(last(run), last(reference))
    assert losses(run) == losses(reference)


def test_another_optimizer_is_refused(command) -> None:
    arguments, _ = command("optimizers", "budget.steps=2")
    pretrain_well(arguments)
    assert "holds the state of the optimizer adamw" in refused(pretrain([*arguments, "optimizer.name=ranger"]))


@pytest.mark.slow
def test_a_run_continues_from_the_checkpoint_that_is_named(command) -> None:
    arguments, run = command("source", "budget.steps=8", "checkpoint.keep=9")
    pretrain_well(arguments)
    named, other = command("named", "budget.steps=8", f"run.resume={run / 'checkpoints' / 'step-00000004'}")
    pretrain_well(named)
    assert losses(other) == losses(run)[4:]
    assert same_bits(last(other), last(run))
    assert isinstance(newest(run / "checkpoints"), Checkpoint)
