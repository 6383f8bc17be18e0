"""Asked to stop, all ranks save the same step and exit with 75; the same command then continues exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import signals
from pretrain.checkpoint import steps_on_disk
from pretrain.distributed import free_port
from pretrain.signals import RESUBMIT
from tests.pretrain import faults
from tests.ranks import (
    PRETRAIN,
    ROOT,
    Rank,
    finish,
    last,
    logged_steps,
    losses,
    pretrain_well,
    records,
    same_bits,
    start,
    wait_for,
    with_dropout,
)

FAULTS = Path(faults.__file__)
STEPS = 30


@pytest.fixture(scope="module")
def base(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(arguments but run.name, run.directory): nothing is saved before the end unless a signal asks for it."""
    directory = tmp_path_factory.mktemp("runs")
    return with_dropout(synthetic_corpus, directory, STEPS), directory


@pytest.fixture(scope="module")
def whole(base) -> Callable[[int], Path]:
    done: set[int] = set()

    def run(ranks: int) -> Path:
        if ranks not in done:
            done.add(ranks)
            pretrain_well([*base[0], f"run.name=whole{ranks}"], ranks)
        return base[1] / f"whole{ranks}"

    return run


def slowed(arguments: list[str], ranks: int, seconds: float = 0.02) -> list[Rank]:
    """Ranks whose steps take long enough for a signal to come in the midst of training."""
    return start([f"slow_steps={seconds}", "--", *arguments], ranks, script=FAULTS)


def require_saved_and_continue(results, arguments: list[str], run: Path, reference: Path, ranks: int) -> None:
    assert [code for code, _, _ in results] == [RESUBMIT] * ranks, results
    ((step, path),) = steps_on_disk(run / "checkpoints")
    assert 0 < step < STEPS
    assert last(run).progress.step == step == len(losses(run))
    assert sum("saved, the same command continues" in err for _, _, err in results) == 1
    pretrain_well(arguments, ranks)
    assert losses(run) == losses(reference)
    assert same_bits(last(run), last(reference))
    assert path.is_dir()


@pytest.mark.parametrize(
    ("number", "signalled"),
    [
        pytest.param(signal.SIGTERM, [1], marks=pytest.mark.slow),
        (signal.SIGUSR1, [0, 1]),
        pytest.param(signal.SIGTERM, [0, 1], marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, [0], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, [0, 1], marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, [1], marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_any_rank_stops_all_at_one_step_and_loses_nothing(base, whole, number, signalled) -> None:
    name = f"{signal.Signals(number).name}-{signalled}"
    arguments, run = [*base[0], f"run.name={name}"], base[1] / name
    ranks = slowed(arguments, 2)
    wait_for(lambda: logged_steps(run) >= 3)
    for rank in signalled:
        ranks[rank].send_signal(number)
    require_saved_and_continue(finish(ranks), arguments, run, whole(2), 2)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_second_one_interrupts_at_once(base) -> None:
    arguments, run = [*base[0], "run.name=impatient"], base[1] / "impatient"
    (rank,) = slowed(arguments, 1, seconds=4.0)  # both signals must come within one step
    wait_for(lambda: logged_steps(run) >= 1)
    time.sleep(1.5)  # until the next step has begun: between steps the first signal saves at once
    rank.send_signal(signal.SIGINT)
    time.sleep(0.1)
    rank.send_signal(signal.SIGINT)
    ((code, _, err),) = finish([rank])
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert steps_on_disk(run / "checkpoints") == []


def test_a_second_ctrl_c_that_comes_in_a_destructor_interrupts_after_the_step(monkeypatch) -> None:
    """Python prints what is raised there and goes on."""
    monkeypatch.setattr(signals, "_launchers_at_start", [])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        request = signals.StopRequest()
        assert not request.requested()
        signal.raise_signal(signal.SIGINT)
        assert request.requested()

        class Destroyed:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
        Destroyed()
        with pytest.raises(KeyboardInterrupt):
            request.requested()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_signal_before_the_first_step_is_kept(base, whole) -> None:
    arguments, run = [*base[0], "run.name=early"], base[1] / "early"
    (rank,) = start(arguments)
    wait_for(lambda: (run / "logs" / "rank-00000.log").exists())
    rank.send_signal(signal.SIGTERM)
    ((code, _, err),) = finish([rank])
    assert code == RESUBMIT, err
    pretrain_well(arguments)
    assert losses(run) == losses(whole(1))
    assert same_bits(last(run), last(whole(1)))


@pytest.mark.parametrize("at", ["during training", "at the end"])
@pytest.mark.slow
def test_a_signal_during_validation_does_not_lose_the_validation(base, at) -> None:
    every = 10 if at == "during training" else 0
    name = f"validating-{every}"
    validation = [f"validation.every_steps={every}", "validation.sequences=64", "validation.baselines=false"]
    arguments, run = [*base[0], f"run.name={name}", *validation], base[1] / name
    ranks = start(["slow_validation=0.5", "--", *arguments], 2, script=FAULTS)
    wait_for(lambda: logged_steps(run) == (every or STEPS))
    time.sleep(0.2)
    ranks[1].send_signal(signal.SIGUSR1)
    results = finish(ranks)
    assert [code for code, _, _ in results] == [RESUBMIT] * 2, results
    assert records(run, "validation") == []
    pretrain_well(arguments, 2)
    assert [record["step"] for record in records(run, "validation")] == ([10, 20, 30] if every else [30])


def processes_with(text: str) -> list[int]:
    """Processes whose command line holds ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [("runner", signal.SIGTERM), ("launcher", signal.SIGKILL)])
def test_workers_save_and_end_by_themselves_when_their_launcher_is_killed(base, whole, victim, number) -> None:
    """SIGTERM to the `deepspeed` command ends that alone; its workers must notice."""
    name = f"orphans-{victim}"
    arguments, run = [*base[0], f"run.name={name}"], base[1] / name
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    slow = [str(FAULTS), "slow_steps=0.1", "--", *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    output = subprocess.DEVNULL
    runner = subprocess.Popen([*command, *slow], cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        wait_for(lambda: runner.poll() is not None or logged_steps(run) >= 3, timeout=120)
        below = [pid for pid in processes_with(f"run.name={name}") if pid != runner.pid]
        assert len(below) == 3, "DeepSpeed's launcher and two workers"
        os.kill(runner.pid if victim == "runner" else min(below), number)
        runner.wait(60)
        wait_for(lambda: processes_with(f"run.name={name}") == [], timeout=60)
    finally:
        for pid in processes_with(f"run.name={name}"):
            os.kill(pid, signal.SIGKILL)
        runner.wait(10)
    assert 0 < last(run).progress.step < STEPS
    pretrain_well(arguments, 2)
    assert losses(run) == losses(whole(2))
    assert same_bits(last(run), last(whole(2)))


@pytest.mark.slow
def test_the_script_started_by_plain_python_handles_signals_too(base, whole) -> None:
    arguments, run = [*base[0], "run.name=plain"], base[1] / "plain"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(PRETRAIN), *arguments], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: logged_steps(run) >= 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    require_saved_and_continue([(process.returncode, "", err.decode())], arguments, run, whole(1), 1)
