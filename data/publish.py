"""A directory that is complete or does not exist: build aside, then rename; one builder at a time.

The build lives in the sibling `.NAME.partial`, which carries the identity of its job. A builder that was killed leaves
it, and the same job continues in it; another job empties it first. It takes no decision on what is inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from data.manifest import MANIFEST, file_sha256

_JOB = "job.json"
_FINISHED = "finished"  # holds the hash of the manifest that was built
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def partial_directory(output: Path, job: str, overwrite: bool) -> Iterator[Path]:
    """The directory to build in, holding what the same ``job`` left there and nothing else.

    Removed if the body raises an Exception; left for a restart on Ctrl-C or a kill. Raises DataError where the output
    exists and ``overwrite`` is false, or where another process is building the same output.
    """
    if output.exists() and not overwrite:
        raise DataError(f"{output}: already exists; set overwrite=true to replace it, or choose another output.")
    partial = output.parent / f".{output.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{partial}: cannot be made ({error.strerror}); choose another output.") from error
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{partial}: another prepare is building this corpus; wait for it or end it.") from error
        try:
            marker = partial / _JOB
            if not marker.exists() or marker.read_text() != job:
                _empty(partial)
                write_durably(marker, job.encode())
            yield partial
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise DataError(
                    f"{output}: writing failed ({error.strerror or error}); nothing was left behind."
                ) from error
            raise
        shutil.rmtree(partial)
    finally:
        os.close(lock)


def mark_finished(built: Path) -> None:
    """Says that the job has built all of ``built``, a directory in its partial one, so that a restart need not."""
    write_durably(built.parent / _FINISHED, file_sha256(built / MANIFEST).encode())


def is_finished(built: Path) -> bool:
    """Whether ``built`` is what this job built: a kill right after publishing may leave there what it replaced."""
    marker, manifest = built.parent / _FINISHED, built / MANIFEST
    return marker.is_file() and manifest.is_file() and marker.read_text() == file_sha256(manifest)


def publish(built: Path, output: Path) -> None:
    """Renames a finished directory into place, exchanging it with the one that is there."""
    sync_directory(built)
    if output.exists():
        if not _exchange(built, output):
            aside = built.parent / "replaced"
            os.rename(output, aside)  # file systems that cannot exchange: no output for an instant, never half of one
            os.rename(built, output)
    else:
        os.rename(built, output)
    sync_directory(output.parent)


def write_durably(path: Path, content: bytes) -> None:
    """The file has this content or, after a crash at any instant, what it had before."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Forces a file's content to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two directories in one step (Linux's renameat2); False where system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
