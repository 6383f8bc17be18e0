"""Noticing that a mapped file is changed while it is read.

A map shows what its file holds now, not what was there when it was checked: if another program writes into the file,
letters become others, and reading what lies behind the end of a file that was cut kills the process (SIGBUS), on which
nothing can be said any more. So readers ask before they read; that takes two system calls, some microseconds. A file
that was replaced or removed is no trouble: its map stays as it was.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from data.errors import DataError


def map_file(path: Path) -> mmap.mmap:
    """The whole file, to be read. Raises DataError if it cannot be mapped."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EMFILE:
            raise DataError(
                f"{path}: too many open files; raise the limit (`ulimit -n`) or prepare larger shards."
            ) from error
        raise DataError(f"{path}: cannot be mapped ({error}); copy the corpus again or prepare it again.") from error


class MappedFile:
    """``mapped``: all of the file ``path``, as it is now."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self._path, self._mapped, self._length = path, mapped, len(mapped)
        status = os.stat(path)
        self._identity, self._modified = (status.st_dev, status.st_ino), status.st_mtime_ns

    def changed(self) -> bool:
        """Whether it was written to since the last call; raises DataError if it was cut."""
        size = self._mapped.size()  # of the file that is mapped, whatever has its name by now
        if size < self._length:
            raise DataError(
                f"{self._path}: has {size} bytes, but had {self._length} when reading began; it was cut by another "
                "program; copy the corpus again or prepare it again, and leave it alone while it is read."
            )
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        if (status.st_dev, status.st_ino) != self._identity or status.st_mtime_ns == self._modified:
            return False
        self._modified = status.st_mtime_ns
        return True
