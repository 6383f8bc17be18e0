"""One run, one writer: a second start is refused and writes nothing; a killed run can be started again at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pretrain import run_lock
from pretrain.errors import PretrainError
from pretrain.report import write_report
from pretrain.run_lock import NAME, RunLock
from tests.pretrain import faults
from tests.ranks import (
    ROOT,
    finish,
    logged_steps,
    losses,
    pretrain,
    pretrain_well,
    records,
    refused,
    start,
    wait_for,
    with_dropout,
)

FAULTS = Path(faults.__file__)


def running(run: list[str], directory: Path, ranks: int):
    """The ranks of a run that trains, and its directory, three steps into it."""
    first = start(["slow_steps=0.2", "--", *run, "run.name=run", "checkpoint.every_steps=2"], ranks, script=FAULTS)
    wait_for(lambda: logged_steps(directory / "run") >= 3)
    return first


def files(run: Path) -> dict[Path, int]:
    """Every file and how large it is, of what a running process does not change by itself."""
    changing = ("heartbeats", "checkpoints", "metrics.jsonl", "logs")
    return {path: path.stat().st_size for path in run.rglob("*") if path.relative_to(run).parts[0] not in changing}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_start_is_refused_and_the_first_goes_on(synthetic_corpus: Path, tmp_path: Path, ranks: int) -> None:
    own = with_dropout(synthetic_corpus, tmp_path, steps=40)
    first = running(own, tmp_path, ranks)
    run, before = tmp_path / "run", files(tmp_path / "run")
    logs = {path: path.read_text() for path in (run / "logs").iterdir()}
    second = pretrain(["lock_patience=0.5", "--", *own, "run.name=run"], ranks, script=FAULTS)
    assert [one.poll() for one in first] == [None] * ranks, "it must not have ended meanwhile"
    said = refused(second)
    assert re.search(
        rf"process {first[0].pid} on {re.escape(socket.gethostname())} \(since .*\) is training this run and writes to "
        rf"{re.escape(str(run))}.*kill {first[0].pid} on .* lets it save and stop.*choose another run\.name$",
        said,
    ), said
    assert sum("waiting up to" in err for _, _, err in second) == 1
    assert files(run) == before
    for path, text in logs.items():  # what the first wrote since is one log, without a word of the second
        assert path.read_text().startswith(text)
        assert "is training this run" not in path.read_text()
    first[0].send_signal(signal.SIGTERM)  # as the sentence says
    assert [code for code, _, _ in finish(first)] == [75] * ranks
    steps = [record["step"] for record in records(run)]
    assert steps == list(range(1, len(steps) + 1))
    assert (run / NAME).read_text() == "", "it says that nobody holds it"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_can_be_started_again_at_once(synthetic_corpus: Path, tmp_path: Path, ranks: int) -> None:
    own = with_dropout(synthetic_corpus, tmp_path, steps=6)
    pretrain_well([*own, "run.name=whole"], ranks)
    first = running(own, tmp_path, ranks)
    for one in first:
        one.kill()
    second = pretrain([*own, "run.name=run"], ranks)  # without waiting for the first
    assert [code for code, _, _ in second] == [0] * ranks, second
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_start_waits_for_the_end_of_the_one_before(synthetic_corpus: Path, tmp_path: Path) -> None:
    """The old process still saves when the new one begins, as after a requeue; the new one continues what it saved."""
    own = with_dropout(synthetic_corpus, tmp_path, steps=40)
    first = running(own, tmp_path, ranks=1)
    second = start([*own, "run.name=run", "budget.steps=40"])
    wait_for(lambda: "waiting up to" in second[0].stderr_so_far())
    first[0].send_signal(signal.SIGTERM)
    assert first[0].wait(60) == 75
    assert [code for code, _, _ in finish(second)] == [0]
    steps = [record["step"] for record in records(tmp_path / "run")]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_what_only_reads_a_run_does_not_ask_for_the_lock(synthetic_corpus: Path, tmp_path: Path) -> None:
    first = running(with_dropout(synthetic_corpus, tmp_path, steps=40), tmp_path, ranks=1)
    assert len(write_report(tmp_path / "run", tmp_path / "report")) == 3
    for script, more in (("evaluate.py", ["--corpus", synthetic_corpus]), ("export.py", ["--to", tmp_path / "out"])):
        arguments = [str(one) for one in (tmp_path / "run", *more)]
        ((code, _, err),) = pretrain(arguments, script=ROOT / "launch" / script)
        assert code == 0, err
    first[0].kill()


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks_is_told_once(synthetic_corpus: Path, tmp_path: Path, code: str) -> None:
    own = with_dropout(synthetic_corpus, tmp_path, steps=2)
    ((ended, _, err),) = pretrain([f"no_locks={code}", "--", *own, "run.name=run"], script=FAULTS)
    assert ended == 0, err
    told = (tmp_path / "run" / "logs" / "rank-00000.log").read_text()
    assert told.count("has no locks") == 1
    assert os.strerror(getattr(errno, code)) in told
    assert len(losses(tmp_path / "run")) == 2


def test_a_failing_disk_is_one_sentence_for_all_ranks(synthetic_corpus: Path, tmp_path: Path) -> None:
    own = with_dropout(synthetic_corpus, tmp_path, steps=2)
    said = refused(pretrain(["no_locks=EIO", "--", *own, "run.name=run"], 2, script=FAULTS))
    assert f"{tmp_path / 'run' / NAME} cannot be locked (" in said


HOLDER = """
import multiprocessing, os, subprocess, sys, time
from pathlib import Path
from pretrain.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]), 1)
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
forked.start()
started = subprocess.Popen(["sleep", "60"], close_fds=False)  # as a library that passes everything on
plain = os.fork()
if plain == 0:
    time.sleep(60)
    os._exit(0)
print(forked.pid, started.pid, plain, flush=True)
time.sleep(60)
"""


def test_orphaned_children_of_a_killed_process_do_not_keep_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    children = [int(pid) for pid in holder.stdout.readline().split()]
    try:
        with pytest.raises(PretrainError, match=f"process {holder.pid} on "):
            RunLock(tmp_path, 0.1)
        holder.kill()
        holder.wait()
        assert all(Path(f"/proc/{child}").exists() for child in children), "orphans must be there for this test"
        RunLock(tmp_path, 0.1).release()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, 0.1)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    with pytest.raises(PretrainError, match="is training this run"):
        RunLock(tmp_path, 0.1)
    lock.release()
    lock.release()
    RunLock(tmp_path, 0.1).release()


def test_what_a_process_left_behind_means_nothing(tmp_path: Path) -> None:
    """Text of a holder that is gone, a number that another process has by now, or something that is no text at all."""
    for content in (json.dumps({"pid": 1, "host": "elsewhere", "since": "now", "job": None}), "{", "[1]"):
        (tmp_path / NAME).write_text(content)
        lock = RunLock(tmp_path, 0)
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        lock.release()


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (
            {"pid": 7, "host": "node3", "since": "2025-01-02 03:04:05", "job": "55"},
            "process 7 on node3 (since 2025-01-02 03:04:05, Slurm job 55) is training this run and writes to runs/a, "
            "and a second start would damage it; wait until it has ended (kill 7 on node3 lets it save and stop) and "
            "start the same command again, or choose another run.name",
        ),
        (
            {},
            "another process, which has not said who it is, is training this run and writes to runs/a, and a second "
            "start would damage it; wait until it has ended (or stop it) and start the same command again, or choose "
            "another run.name",
        ),
    ],
)
def test_the_sentence(holder: dict[str, object], said: str) -> None:
    assert run_lock.refusal(Path("runs/a"), holder) == said


@pytest.mark.parametrize(
    ("host", "longest", "seconds"), [(None, 9, 0.3), ("elsewhere", 9, 0.9), ("elsewhere", 0.1, 0.1)]
)
def test_how_long_a_start_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host, longest, seconds
) -> None:
    """Longer for another host, whose process cannot be seen; never longer than the other ranks wait for this one."""
    monkeypatch.setattr(run_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(run_lock, "PATIENCE_ELSEWHERE", 0.9)
    lock = RunLock(tmp_path, 0)
    holder = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(holder | {"host": host or holder["host"]}))
    since = time.monotonic()
    with pytest.raises(PretrainError, match="is training this run"):
        RunLock(tmp_path, longest)
    assert seconds <= time.monotonic() - since < seconds + 0.5
    assert capsys.readouterr().err.count("waiting up to") == 1
    lock.release()
