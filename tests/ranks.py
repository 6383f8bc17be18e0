"""Starting real training processes from tests: N ranks of launch/pretrain.py, as a launcher would start them."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from pretrain.checkpoint import Checkpoint, newest
from pretrain.distributed import free_port

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN = ROOT / "launch" / "pretrain.py"
TINY = [
    "model.size=null",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.ffn=40",
    "model.attention_dropout=0",
    "model.residual_dropout=0",
]
QUICK = ["--config", str(ROOT / "tests" / "tiny.yaml")]  # tests append what they are about
DROPOUT = ["model.attention_dropout=0.1", "model.residual_dropout=0.1"]


def with_dropout(corpus: Path, directory: Path, steps: int) -> list[str]:
    """Arguments of a run with dropout, but its name; nothing is saved before the end unless a signal asks for it."""
    return [*QUICK, *DROPOUT, f"data.corpus={corpus}", f"run.directory={directory}", f"budget.steps={steps}"]


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun and deepspeed give a worker."""
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


class Forker:
    """The process of tests/forker.py, from this side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "forker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.close)
        self._unread = b""
        self.codes: dict[int, int] = {}  # of ranks that ended

    def close(self) -> None:
        """End the forker, and with it every rank that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, request: Mapping[str, object]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while (pid := self._read(60)) is None:
            pass
        self.codes.pop(pid, None)
        return pid

    def _read(self, timeout: float) -> int | None:
        """Take in what the forker says; returns the pid of a rank that started."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        said = os.read(self._process.stdout.fileno(), 65536)
        assert said, "tests/forker.py has ended"
        *lines, self._unread = (self._unread + said).split(b"\n")
        started = None
        for line in map(json.loads, lines):
            if "ended" in line:
                self.codes[line["ended"]] = line["code"]
            else:
                started = line["started"]
        return started

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code, or None if the rank still runs after ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while pid not in self.codes and (left := until - time.monotonic()) > 0:
            self._read(left)
        return self.codes.get(pid)


forker = cache(Forker)


class Rank:
    """One rank; the methods are those of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path):
        self._folder = tempfile.TemporaryDirectory(prefix="rank-")
        self._out, self._err = (Path(self._folder.name, name) for name in ("stdout", "stderr"))
        self.returncode: int | None = None
        self.pid = forker().start(
            {
                "command": list(command),
                "environment": dict(env),
                "cwd": str(cwd),
                "stdout": str(self._out),
                "stderr": str(self._err),
            }
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = forker().wait(self.pid, 0.001)
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self.returncode = forker().wait(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def stderr_so_far(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    ranks: int = 1,
    cwd: Path | None = None,
    script: Path = PRETRAIN,
    env: Mapping[str, str] | None = None,
) -> list[Rank]:
    """One process per rank, output captured."""
    port = free_port()
    return [
        Rank([str(script), *arguments], {**environment(rank, ranks, port), **(env or {})}, cwd or ROOT)
        for rank in range(ranks)
    ]


def finish(processes: list[Rank], timeout: float = 240) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of every rank; kills all when one does not end in time."""
    try:
        return [(p.returncode, *texts) for p in processes for texts in [p.communicate(timeout=timeout)]]
    finally:
        for process in processes:
            process.kill()


def pretrain(
    arguments: Sequence[str],
    ranks: int = 1,
    cwd: Path | None = None,
    script: Path = PRETRAIN,
    env: Mapping[str, str] | None = None,
) -> list[tuple[int, str, str]]:
    return finish(start(arguments, ranks, cwd, script, env))


def pretrain_well(arguments: Sequence[str], ranks: int = 1, cwd: Path | None = None) -> str:
    """As `pretrain`, for runs that must succeed; returns what rank 0 printed."""
    results = pretrain(arguments, ranks, cwd)
    assert [code for code, _, _ in results] == [0] * ranks, results
    return results[0][1]


def refused(results: list[tuple[int, str, str]]) -> str:
    """The one sentence that all ranks together ended with; asserts that there is one, no traceback, and exit code 2."""
    told = [line for _, _, err in results for line in err.splitlines() if line.startswith("error:")]
    assert [code for code, _, _ in results] == [2] * len(results), results
    assert len(told) == 1, results
    assert not any("Traceback" in err for _, _, err in results), results
    return told[0]


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def records(run: Path, kind: str = "train") -> list[dict]:
    """Records of metrics.jsonl of one kind; asserts that each step stands in the file once and in order."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [record for record in map(json.loads, lines) if record["kind"] == kind]
    steps = [record["step"] for record in found]
    assert steps == sorted(set(steps))
    return found


def losses(run: Path) -> list[float]:
    """Training losses by step."""
    return [record["loss"] for record in records(run)]


def logged_steps(run: Path) -> int:
    """Training steps that a running process has logged so far."""
    path = run / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def last(run: Path) -> Checkpoint:
    found = newest(run / "checkpoints")
    assert found is not None
    return found


def same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether weights and optimizer state agree bit for bit, however they were cut into files."""
    kept = one.contents()
    return (
        one.progress.optimizer_steps == other.progress.optimizer_steps
        and kept == other.contents()
        and all(
            torch.equal(one.read(kind, name, 0, n), other.read(kind, name, 0, n))
            for kind, name in kept
            for n in [int(torch.Size(one.shapes[name]).numel())]
        )
    )
