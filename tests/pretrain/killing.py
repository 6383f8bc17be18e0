"""Starting a run in the ways that people do, and killing one of its processes or all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.distributed import free_port
from tests.launch.test_launchers import BIN, shell
from tests.pretrain import faults
from tests.ranks import ROOT, Rank, start

FAULTS = Path(faults.__file__)
DEEPSPEED, TORCHRUN, OUR_TORCHRUN, DIRECT = "deepspeed", "torchrun", "our torchrun", "ranks alone"
LAUNCHER, CHILD, ONE_RANK, ALL = "launcher", "launcher's child", "one rank", "everything"
WAYS = [
    *((DEEPSPEED, victim) for victim in (LAUNCHER, CHILD, ONE_RANK, ALL)),  # the command starts the real launcher
    *((TORCHRUN, victim) for victim in (LAUNCHER, ONE_RANK, ALL)),
    *((DIRECT, victim) for victim in (ONE_RANK, ALL)),
]


def processes_with(text: str) -> dict[int, dict[str, str]]:
    """Processes whose command line holds ``text``, with their environment; those that have ended do not count."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                found[int(entry.name)] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        except OSError:  # it ended meanwhile
            continue
    return found


class Started:
    """A run under one of the launchers, or its ranks alone. ``name`` is its run.name, which no other run has."""

    def __init__(self, how: str, name: str, arguments: Sequence[str], ranks: int, output: Path):
        self.name, self.output, self._ranks = name, output, list[Rank]()
        self._launcher: subprocess.Popen[bytes] | None = None
        commands = {
            DEEPSPEED: [BIN / "deepspeed", "--num_gpus", ranks, "--master_port", free_port(), FAULTS],
            TORCHRUN: [BIN / "torchrun", "--nproc-per-node", ranks, "--standalone", FAULTS],
            OUR_TORCHRUN: [
                *(sys.executable, ROOT / "launch" / "torchrun.py", "--nproc-per-node", ranks, "--standalone", FAULTS)
            ],
        }
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell started with `&`; it is inherited
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if how == DIRECT:
            self._ranks = start(arguments, ranks, script=FAULTS)
            return
        with output.open("wb") as file:
            self._launcher = subprocess.Popen(
                [*map(str, commands[how]), *arguments],
                cwd=ROOT,
                env=shell(DS_ACCELERATOR="cpu"),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Pid of everything that runs -> `launcher`, `launcher's child` or the number of a rank."""
        if self._launcher is None:
            return {rank.pid: str(number) for number, rank in enumerate(self._ranks) if rank.poll() is None}
        below = processes_with(f"run.name={self.name}")
        below.pop(self._launcher.pid, None)  # known better here: while it starts it has no command line
        running = {} if self._launcher.poll() is not None else {self._launcher.pid: LAUNCHER}
        return running | {pid: environment.get("RANK", CHILD) for pid, environment in below.items()}

    def kill(self, victim: str, draw: float, number: int = signal.SIGKILL) -> str:
        """Send a signal; ``draw`` in [0, 1) chooses among ranks. Returns who got it.

        Where the victim is not there yet, all that is there gets it.
        """
        running = self.processes()
        if victim == ALL:
            chosen = sorted(running, key=lambda pid: running[pid] != LAUNCHER)
        elif victim == ONE_RANK:
            ranks = sorted(pid for pid, what in running.items() if what.isdigit())
            chosen = [ranks[int(draw * len(ranks))]] if ranks else [*running]
        else:
            chosen = [pid for pid, what in running.items() if what == victim] or [*running]
        for pid in chosen:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return ", ".join(running[pid] for pid in chosen)

    def wait(self, timeout: float) -> list[int]:
        """Wait until nothing of it runs; fails when that takes too long. Exit codes of what was started here."""
        until = time.monotonic() + timeout
        while left := self.processes():
            if time.monotonic() > until:
                self.kill(ALL, 0)
                raise AssertionError(f"still running after {timeout} s: {left}\n{self.told()}")
            time.sleep(0.05)
        if self._launcher is not None:
            return [self._launcher.wait(10)]
        return [rank.wait(10) for rank in self._ranks]

    def told(self) -> str:
        if self._launcher is not None:
            return self.output.read_text(errors="replace")
        return "\n".join(text for rank in self._ranks for text in rank.communicate(10))
