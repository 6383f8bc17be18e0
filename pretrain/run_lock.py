"""One run, one writer: rank 0 holds a lock on `lock` in the run directory for as long as the run lives.

The kernel holds the lock for the process (flock), so it is gone whenever the process is, SIGKILL and loss of power
included, and nothing stale can be left. The file says who holds it; it stays, and means nothing by itself. A process
that is ending may hold the lock for a moment longer, so a start waits before it gives up: shortly for a process of this
host, longer for one of another, whose lock a network file system lets go of only after a lease (NFS 4: about 90 s).

What only reads a run (reports, exports, evaluation) takes no lock. Children do not keep it: a child that is started as
a program loses the file at once, and one that is forked closes it first thing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

from pretrain.errors import PretrainError

NAME = "lock"
PATIENCE = 15.0  # seconds that a start waits for a process of this host
PATIENCE_ELSEWHERE = 120.0  # for one of another host
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_held: set[int] = set()  # file descriptors


def _let_go_in_child() -> None:
    """A lock lasts until its last copy is closed, so an orphaned child must have none. Closing one releases nothing."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


class RunLock:
    """The lock of a run directory, held from here on. One process of a run makes it, before anything is written there.

    ``longest``: seconds to wait in any case at most. Raises PretrainError if another process still holds it then, or
    the file cannot be made.
    """

    def __init__(self, run: Path, longest: float) -> None:
        self.unsupported: str | None = None  # why there is no lock, in a sentence, where the file system has none
        self._fd: int | None = None
        path = run / NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise PretrainError(f"{path} cannot be written ({error}); mend it, or set run.directory") from error
        try:
            self._take(fd, run, longest)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(fd)
        _write_holder(fd)

    def _take(self, fd: int, run: Path, longest: float) -> None:
        since, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self.unsupported = (
                        f"the file system of {run} has no locks ({error}), so nothing keeps a second start of this run "
                        "from writing there too; start it once only"
                    )
                    return
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                    raise PretrainError(f"{run / NAME} cannot be locked ({error}); mend it") from error
            holder = _holder(fd)
            patience = PATIENCE if holder.get("host", _host()) == _host() else PATIENCE_ELSEWHERE
            left = since + min(patience, longest) - time.monotonic()
            if left <= 0:
                raise PretrainError(refusal(run, holder))
            if not told:
                told = True
                print(f"{named(holder)} writes to {run}; waiting up to {left:.0f} s for its end", file=sys.stderr)
            time.sleep(min(0.2, left))

    def release(self) -> None:
        """At the end of the run, when everything is written. The end of the process does the same."""
        if self._fd not in _held:  # released, or this is a child, where the number may be another file's
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        _held.discard(self._fd)
        os.close(self._fd)
        self._fd = None


def refusal(run: Path, holder: dict[str, object]) -> str:
    """One sentence: who writes to the run directory, and what to do."""
    end = f"kill {holder['pid']} on {holder['host']} lets it save and stop" if "pid" in holder else "or stop it"
    return (
        f"{named(holder)} is training this run and writes to {run}, and a second start would damage it; wait until it "
        f"has ended ({end}) and start the same command again, or choose another run.name"
    )


def named(holder: dict[str, object]) -> str:
    if "pid" not in holder:  # it has just taken the lock, or its disk is full
        return "another process, which has not said who it is,"
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']}{job})"


def _host() -> str:
    return socket.gethostname()


def _write_holder(fd: int) -> None:
    """Who holds the lock, for the message of another start; a full disk only makes that message say less."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    content = {"pid": os.getpid(), "host": _host(), "since": since, "job": os.environ.get("SLURM_JOB_ID")}
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, (json.dumps(content) + "\n").encode(), 0)


def _holder(fd: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pid", "host", "since"} <= found.keys() else {}
