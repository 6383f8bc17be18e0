"""Requests to stop, turned into a flag that the loop looks at once per step.

A handler must not save: launchers signal ranks one after another, and a checkpoint needs all of them together. The
flag of every rank is summed over ranks in the step's one collective, so all save the same step and exit together.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import NamedTuple

RESUBMIT = 75  # exit code (EX_TEMPFAIL): saved, start the same command again
_launchers_at_start: list[int] | None = None
_begun = threading.Event()


def end_when_asked() -> None:
    """Let SIGTERM, SIGUSR1 and the loss of the launcher end this process with RESUBMIT: starting again loses nothing.

    For as long as there is nothing to save: until the first StopRequest. Call it before anything slow, so that a
    launcher that is killed while this process imports, or looks for ranks that were never started, is missed.
    """
    global _launchers_at_start
    _launchers_at_start = _launchers()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: os._exit(RESUBMIT))
    if _launchers_at_start or _says_launched():
        threading.Thread(target=_end_without_launcher, name="launcher", daemon=True).start()


def _end_without_launcher() -> None:
    while not _begun.wait(1.0):
        if _launchers_changed(_launchers_at_start or []) or _launcher_was_lost():
            print("the launcher is gone; training had not begun", file=sys.stderr, flush=True)
            os._exit(RESUBMIT)


class StopRequest:
    """Becomes set by SIGTERM, SIGUSR1 (Slurm's early warning), Ctrl-C, or when the launcher of this rank is gone.

    A second Ctrl-C interrupts at once, or where Python drops what a handler raises, as in a destructor, after the step.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._interrupted = False
        self._launchers = _launchers() if _launchers_at_start is None else _launchers_at_start
        self._lost = _launcher_was_lost()
        _begun.set()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            self._interrupted = True
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def requested(self) -> bool:
        """Looked at between steps: a killed `deepspeed` command leaves its workers running unless they notice."""
        if self._interrupted:
            raise KeyboardInterrupt
        if self.reason is None and (self._lost or _launchers_changed(self._launchers)):
            self.reason = "the launcher is gone"
        return self.reason is not None


def _launchers(most: int = 2) -> list[int]:
    """Process ids of the DeepSpeed or torchrun processes above this one, nearest first; none for plain python."""
    found: list[int] = []
    for above in islice(_ancestors(), most):
        command = b"\0".join(above.command)
        if above.pid == 1 or not (b"deepspeed" in command or b"torchrun" in command or b"torch.distributed" in command):
            break
        found.append(above.pid)
    return found


def _launchers_changed(before: list[int]) -> bool:
    return bool(before) and _launchers(len(before)) != before


def _says_launched() -> bool:
    """Whether torchrun or DeepSpeed started this process, by the environment."""
    return bool({"TORCHELASTIC_RUN_ID", "CROSS_RANK"} & os.environ.keys())


def _launcher_was_lost() -> bool:
    """Whether a launcher started this process and was killed before this process could look.

    torchrun and DeepSpeed say in the environment that they start a process, and are Python themselves: if there is no
    Python above, they are gone. Likewise `deepspeed` above its launch.py, to which it gives a level for its log; the
    launch.py of another node, which pdsh starts, has none.
    """
    ancestors = list(_ancestors()) if _says_launched() else []
    if not ancestors:  # or this system has no /proc
        return False
    pythons = [above for above in ancestors if above.is_python]
    if not pythons:
        return True
    local = b"deepspeed.launcher.launch" in pythons[0].command and any(
        argument.startswith(b"--log_level=") for argument in pythons[0].command
    )
    return local and len(pythons) == 1


class _Ancestor(NamedTuple):
    pid: int
    command: list[bytes]
    is_python: bool  # as far as this user may know


def _ancestors() -> Iterator[_Ancestor]:
    """The processes above this one, nearest first."""
    parent = os.getppid()
    while parent > 0:
        folder = Path(f"/proc/{parent}")
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "stat").read_text()
        except OSError:  # it ended meanwhile, or this system has no /proc
            break
        try:
            interpreter = os.readlink(folder / "exe")
        except OSError:  # another user's
            interpreter = ""
        yield _Ancestor(parent, command, "python" in os.path.basename(interpreter))
        parent = int(status.rpartition(")")[2].split()[1])
