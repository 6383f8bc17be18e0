"""Requests to stop, turned into a flag that the loop looks at once per step.

A handler must not save: launchers signal ranks one after another, and a checkpoint needs all of them together. The
flag of every rank is summed over ranks in the step's one collective, so all save the same step and exit together.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

RESUBMIT = 75  # exit code (EX_TEMPFAIL): saved, start the same command again


_launchers_at_start: list[int] | None = None


def end_when_asked() -> None:
    """Let SIGTERM and SIGUSR1 end this process with RESUBMIT: it has not begun, so starting again loses nothing.

    Also notes which launchers are above this process. Call it before anything slow: one that is killed while this
    process imports would otherwise not be missed, and the run go on without it.
    """
    global _launchers_at_start
    _launchers_at_start = _launchers()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: os._exit(RESUBMIT))


class StopRequest:
    """Becomes set by SIGTERM, SIGUSR1 (Slurm's early warning), Ctrl-C, or when the launcher of this rank is gone.

    A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._launchers = _launchers() if _launchers_at_start is None else _launchers_at_start
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def requested(self) -> bool:
        """Looked at between steps: a killed `deepspeed` command leaves its workers running unless they notice."""
        if self.reason is None and self._launchers and _launchers(len(self._launchers)) != self._launchers:
            self.reason = "the launcher is gone"
        return self.reason is not None


def _launchers(most: int = 2) -> list[int]:
    """Process ids of the DeepSpeed or torchrun processes above this one, nearest first; none for plain python."""
    found: list[int] = []
    parent = os.getppid()
    while len(found) < most and parent > 1:
        try:
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
            status = Path(f"/proc/{parent}/stat").read_text()
        except OSError:  # it ended meanwhile, or this system has no /proc
            break
        if b"deepspeed" not in command and b"torchrun" not in command and b"torch.distributed" not in command:
            break
        found.append(parent)
        parent = int(status.rpartition(")")[2].split()[1])
    return found
