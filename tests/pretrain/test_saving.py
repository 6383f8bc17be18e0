"""Checkpoints written while training goes on: what is saved, when it is there, and what stops do to it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain import saving
from pretrain.checkpoint import WEIGHT, Checkpoint, Progress, steps_on_disk
from pretrain.saving import Saver
from tests.pretrain import faults
from tests.pretrain.test_checkpoint import ALONE, FakeEngine
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


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files are written once this is set."""
    opened, plain = threading.Event(), saving.save_file

    def save_file(tensors: dict, path: Path) -> None:
        assert opened.wait(60)
        plain(tensors, path)

    monkeypatch.setattr(saving, "save_file", save_file)
    return opened


def test_what_is_saved_is_the_state_at_the_beginning(tmp_path, gate) -> None:
    """Training changes weights, optimizer state and progress before the first byte is written."""
    engine, progress = FakeEngine(stage=2), Progress(3, "corpus", recent_losses=[1.0])
    before = {key: values.clone() for key, values in engine.flat.items()}
    saver = Saver(tmp_path, engine, ALONE, 2, None, "run: {}\n")
    saver.begin(progress)
    for values in engine.flat.values():
        values.add_(1)
    progress.step, engine.optimizer_steps = 4, 6
    progress.recent_losses.append(2.0)
    assert not saver.settled()
    assert steps_on_disk(tmp_path) == []
    gate.set()
    saved = saver.finish()
    found = Checkpoint(tmp_path / "step-00000003")
    found.verify()
    assert (saved.step, saved.path) == (3, found.path)
    assert saved.bytes == sum(file["bytes"] for file in found.files)
    assert (found.progress.step, found.progress.optimizer_steps, found.progress.recent_losses) == (3, 5, [1.0])
    for kind, name in found.contents():
        assert torch.equal(found.read(kind, name, 0, len(before[kind, name])), before[kind, name])
    assert saver.finish() is None
    assert not saver.settled()


def test_the_parts_of_a_save_follow_each_other(tmp_path, gate) -> None:
    saver = Saver(tmp_path, FakeEngine(), ALONE, 2, None, "")
    assert not saver.settled()
    saver.begin(Progress(1, "corpus"))
    assert not saver.settled()
    gate.set()
    wait_for(saver.settled)
    assert steps_on_disk(tmp_path) == [], "in place before all ranks have written"
    assert saver.go_on() is None
    wait_for(saver.settled)
    assert saver.go_on().step == 1
    assert [step for step, _ in steps_on_disk(tmp_path)] == [1]


def test_a_saver_removes_what_is_superseded(tmp_path) -> None:
    saver = Saver(tmp_path, FakeEngine(), ALONE, 2, 4, "")
    for step in range(1, 8):
        saver.begin(Progress(step, "corpus"))
        saver.finish()
    assert [step for step, _ in steps_on_disk(tmp_path)] == [7, 6, 4]


# ----- in runs


@pytest.fixture(scope="module")
def command(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path]]:
    directory = tmp_path_factory.mktemp("runs")
    base = [*QUICK, *DROPOUT, f"data.corpus={synthetic_corpus}", f"run.directory={directory}", "checkpoint.keep=99"]

    def make(name: str, *settings: str) -> tuple[list[str], Path]:
        return [*base, f"run.name={name}", "checkpoint.every_steps=4", *settings], directory / name

    return make


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_training_goes_on_meanwhile_and_checkpoints_are_the_same(command, stage) -> None:
    """A file takes longer than several steps; every checkpoint has the bits that one written at once has."""
    keys = ["budget.steps=20", f"deepspeed.zero_stage={stage}", "checkpoint.every_steps=10"]
    at_once, reference = command(f"at-once-{stage}", *keys, "checkpoint.background=false")
    pretrain_well(at_once, ranks=2)
    arguments, run = command(f"meanwhile-{stage}", *keys)
    results = pretrain(["slow_save=0.5", "--", *arguments], ranks=2, script=FAULTS)
    assert [code for code, _, _ in results] == [0, 0], results
    assert losses(run) == losses(reference)
    saves = {name: records(path, "checkpoint") for name, path in (("run", run), ("reference", reference))}
    assert [save["step"] for save in saves["run"]] == [10, 20]
    assert [(save["step"], save["complete_at_step"]) for save in saves["reference"]] == [(10, 10), (20, 20)]
    assert saves["run"][0]["complete_at_step"] > 10, "training waited until the checkpoint was complete"
    assert saves["run"][0]["seconds"] >= 0.5
    for step in (10, 20):
        one, other = (Checkpoint(path / "checkpoints" / f"step-{step:08d}") for path in (run, reference))
        one.verify()
        assert same_bits(one, other)
        steady = ("step", "sequences", "nucleotides", "tokens", "optimizer_steps")
        assert [getattr(one.progress, key) for key in steady] == [getattr(other.progress, key) for key in steady]
    assert any(kind == WEIGHT for kind, _ in last(run).contents())


@pytest.mark.slow
def test_a_second_save_waits_for_the_first(command) -> None:
    arguments, run = command("slow", "budget.steps=12")
    results = pretrain(["slow_save=0.3", "--", *arguments], ranks=2, script=FAULTS)
    assert [code for code, _, _ in results] == [0, 0], results
    assert [step for step, _ in steps_on_disk(run / "checkpoints")] == [12, 8, 4]


@pytest.mark.slow
def test_a_kill_while_a_file_is_written_leaves_the_checkpoint_before(command) -> None:
    arguments, run = command("killed", "budget.steps=20")
    whole, reference = command("whole", "budget.steps=20")
    pretrain_well(whole, ranks=2)
    ranks = start(["slow_save=0.3", "slow_steps=0.05", "--", *arguments], ranks=2, script=FAULTS)
    wait_for(lambda: steps_on_disk(run / "checkpoints") and logged_steps(run) >= 9)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    assert logged_steps(run) > last(run).progress.step
    pretrain_well(arguments, ranks=2)
    assert losses(run) == losses(reference)
    assert same_bits(last(run), last(reference))
    assert not list((run / "checkpoints").glob(".step-*"))


@pytest.mark.slow
def test_a_signal_while_a_file_is_written_loses_neither_checkpoint(command) -> None:
    arguments, run = command("stopped", "budget.steps=200", "checkpoint.every_steps=100")
    ranks = start(["slow_save=2", "slow_steps=0.02", "--", *arguments], ranks=2, script=FAULTS)
    wait_for(lambda: logged_steps(run) > 100)
    assert list((run / "checkpoints").glob(".step-00000100.partial"))
    ranks[1].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in finish(ranks)] == [75, 75]
    (later, _), (earlier, _) = steps_on_disk(run / "checkpoints")
    assert earlier == 100 < later
    for _, path in steps_on_disk(run / "checkpoints"):
        Checkpoint(path).verify()


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile_ends_the_run_with_a_sentence(command) -> None:
    """The first checkpoint fits under the limit of a file's size, which then sinks."""
    arguments, run = command("full", "budget.steps=400", "checkpoint.every_steps=40")
    told = refused(pretrain(["full_disk_at=80", "--", *arguments], ranks=2, script=FAULTS))
    assert "step-00000080" in told
    assert "cannot be written" in told
    assert [step for step, _ in steps_on_disk(run / "checkpoints")] == [40]
    last(run).verify()
    assert not list((run / "checkpoints").glob(".step-*"))
    pretrain_well([*arguments, "budget.steps=44"], ranks=2)
    assert [record["step"] for record in records(run)] == list(range(1, 45))


@pytest.mark.slow
def test_kills_after_every_save_do_not_fill_the_disk(command) -> None:
    """Each comes when a checkpoint is in place and the superseded ones are still there."""
    arguments, run = command("crowded", "budget.steps=24", "checkpoint.keep=2")
    for step in (4, 8, 12, 16, 20):
        pretrain([f"kill_in_save=0:{step}:before-rotate", "--", *arguments], script=FAULTS)
        found = [number for number, _ in steps_on_disk(run / "checkpoints")]
        assert found[0] == step
        assert len(found) <= 2 + 1
    pretrain_well(arguments)
    assert [number for number, _ in steps_on_disk(run / "checkpoints")] == [24, 20]
