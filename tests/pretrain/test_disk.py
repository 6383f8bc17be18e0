"""A disk that fills up and directories that vanish, in the midst of a run: one sentence on all ranks, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint import steps_on_disk
from tests.pretrain import faults
from tests.ranks import (
    QUICK,
    finish,
    last,
    logged_steps,
    losses,
    pretrain_well,
    records,
    refused,
    same_bits,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow

FAULTS = Path(faults.__file__)
STEPS = 40


@pytest.fixture(scope="module")
def settings(synthetic_corpus: Path) -> list[str]:
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"budget.steps={STEPS}", "run.name=run"]
    return [*base, "checkpoint.keep=2", "compute.timeout_minutes=2"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    pretrain_well([*settings, f"run.directory={directory}"], 2)
    return directory / "run"


def slowed(arguments: list[str], *more: str) -> list:
    return start([*more, "slow_steps=0.1", "--", *arguments], 2, script=FAULTS)


# ----- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 4 MB; needs root."""
    directory = tmp_path / "disk"
    directory.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)], capture_output=True)
    if made.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Take what is free."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return path


@pytest.mark.parametrize(
    "saving",
    [pytest.param(5, id="a checkpoint"), pytest.param(0, id="the log alone", marks=pytest.mark.soak)],
)
def test_a_disk_that_fills_up_ends_the_run_with_a_sentence_and_loses_nothing_saved(
    settings, whole, small_disk, saving
) -> None:
    arguments, run = [*settings, f"run.directory={small_disk}", f"checkpoint.every_steps={saving}"], small_disk / "run"
    ranks = slowed(arguments)
    wait_for(lambda: logged_steps(run) >= (7 if saving else 2), timeout=120)
    filler = fill(small_disk)
    told = refused(finish(ranks))
    assert "No space left" in told
    assert str(run) in told
    assert not list((run / "checkpoints").glob(".step-*"))
    assert [step % 5 for step, _ in steps_on_disk(run / "checkpoints")] == ([0] if saving else [])
    filler.unlink()
    pretrain_well(arguments, 2)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))


@pytest.mark.soak
def test_a_disk_that_is_full_for_a_while_costs_no_record(settings, whole, small_disk) -> None:
    arguments, run = [*settings, f"run.directory={small_disk}"], small_disk / "run"
    ranks = slowed(arguments)
    wait_for(lambda: logged_steps(run) >= 2, timeout=120)
    filler = fill(small_disk)
    size = (run / "metrics.jsonl").stat().st_size
    time.sleep(1.0)
    assert (run / "metrics.jsonl").stat().st_size - size < 4096
    filler.unlink()
    results = finish(ranks)
    assert [code for code, _, _ in results] == [0, 0], results
    assert "its records are kept until it can" in results[0][2]
    assert not any("Traceback" in err for _, _, err in results)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)


# ----- directories that vanish


@pytest.mark.parametrize(
    "vanishing",
    [
        pytest.param("run", marks=pytest.mark.soak),
        pytest.param("run/checkpoints", marks=pytest.mark.soak),
        pytest.param("run/checkpoints/.step-00000010.partial", id="partial"),
    ],
)
def test_a_directory_that_vanishes_during_a_save_ends_the_run_with_a_sentence(
    settings, whole, tmp_path, vanishing
) -> None:
    """Renamed away, as an unmounted file system is; brought back, the run goes on from the last good checkpoint."""
    arguments, run = [*settings, f"run.directory={tmp_path}", "checkpoint.every_steps=5"], tmp_path / "run"
    away = tmp_path / "away"
    results = finish(slowed(arguments, f"vanish_in_save=10:{tmp_path / vanishing}:{away}"))
    told = refused(results)
    assert "step-00000010" in told
    assert "cannot be written" in told
    assert away.is_dir()
    if not vanishing.endswith("partial"):
        assert not list(tmp_path.joinpath(vanishing).rglob("step-*"))
        shutil.rmtree(tmp_path / vanishing, ignore_errors=True)
        away.rename(tmp_path / vanishing)
    assert last(run).progress.step == 5
    pretrain_well(arguments, 2)
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))
