"""The node-local directory that staged corpora lie in, as the processes of a node share it.

    CACHE/NAME/corpus/   the files of a corpus, each whole and checked or absent; NAME is made of its hashes
    CACHE/NAME/state/    unfinished files, wishes for shards, and the sentence of a failure
    CACHE/manifests/     the manifest of each url that is in use
    CACHE/locks/         never removed: a lock outlives what it protects

A wish (an empty file per thread that waits) asks whoever stages for a shard and keeps it from being evicted until that
thread has mapped it. Locks are flock's: the kernel frees them when a process ends, however it ends. Nothing here reads
the network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data.publish import write_durably

WISH_SECONDS = 6.0  # a wish that is not renewed is forgotten


class Lock:
    """A file lock of this process; closing it, or the end of the process, frees it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, shared: bool = False, wait: bool = True) -> bool:
        """Also turns a lock that is held into the other kind (not at once: another process may come between)."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Cache:
    """CACHE itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests = root / "manifests"

    def lock(self, name: str) -> Lock:
        return Lock(self.root / "locks" / name)

    def names(self) -> list[str]:
        return sorted(p.parent.name for p in self.root.glob("*/corpus"))

    def bytes(self) -> int:
        return sum(_size(path) for path in self.root.glob("*/corpus/*"))

    def evict_another(self, kept: str) -> bool:
        """Removes the corpus that was used longest ago, if any but ``kept`` is used by no process."""
        unused = [name for name in self.names() if name != kept]
        for name in sorted(unused, key=lambda one: _mtime(self.root / one / "state")):
            lock = self.lock(f"{name}.use")
            try:
                if lock.take(wait=False):
                    shutil.rmtree(self.root / name, ignore_errors=True)
                    return not (self.root / name / "corpus").exists()
            finally:
                lock.close()
        return False


def url_key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:24]


class Shelf:
    """One corpus in the cache. Holds it in use, so that no other process evicts it, until ``close``."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.cache, self.name = cache, name
        self.corpus, self.state = cache.root / name / "corpus", cache.root / name / "state"
        self._use = cache.lock(f"{name}.use")
        self._use.take(shared=True)
        for folder in (self.corpus, self.state, self._wishes):
            folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.state)
        self._mine = uuid.uuid4().hex
        self._wish_of_thread: dict[int, Path] = {}

    @property
    def _wishes(self) -> Path:
        return self.state / "wishes"

    @property
    def _failure(self) -> Path:
        return self.state / "failure"

    def part(self, file: str) -> Path:
        return self.state / f"{file}.part"

    def place(self, file: str, content: bytes) -> None:
        """Writes a small file of the corpus unless it is there with this content."""
        path = self.corpus / file
        with self._gate():
            if not path.exists() or path.read_bytes() != content:
                write_durably(path, content)

    def wish(self, file: str) -> None:
        """Asks for a file in the name of this thread; its wish before this one has been fulfilled and is withdrawn."""
        mine = self._wishes / f"{file}--{self._mine}-{threading.get_ident()}"
        with self._gate():
            mine.touch()
            before = self._wish_of_thread.get(threading.get_ident(), mine)
            if before != mine:
                before.unlink(missing_ok=True)
            self._wish_of_thread[threading.get_ident()] = mine

    def wished(self) -> list[str]:
        """Files that processes wait for or are about to map, the oldest wish first."""
        now, found = time.time(), []
        for path in self._wishes.iterdir():
            made = _mtime(path)
            if now - made > WISH_SECONDS:
                path.unlink(missing_ok=True)
            else:
                found.append((made, path.name.rpartition("--")[0]))
        return list(dict.fromkeys(name for _, name in sorted(found)))

    def evict(self, file: str) -> bool:
        """Removes a file unless it is wished for. A process that has mapped it keeps reading what it mapped."""
        with self._gate():
            if file in self.wished():
                return False
            (self.corpus / file).unlink(missing_ok=True)
            return True

    def report(self, sentence: str) -> None:
        """Tells the processes that wait why they wait in vain."""
        aside = self._failure.with_name(f"failure.{self._mine}")
        aside.write_text(sentence)
        os.replace(aside, self._failure)

    def failure_since(self, moment: float) -> str | None:
        """The sentence that was reported after ``moment`` (time.time()), if any."""
        return self._failure.read_text() if _mtime(self._failure) >= moment else None

    def show_life(self) -> None:
        """Bytes are coming: whoever waits may go on waiting."""
        (self.state / "alive").touch()

    def alive_at(self) -> float:
        return _mtime(self.state / "alive")

    def stager_lock(self) -> Lock:
        return self.cache.lock(f"{self.name}.stager")

    @contextlib.contextmanager
    def _gate(self) -> Iterator[None]:
        lock = self.cache.lock(f"{self.name}.gate")
        try:
            lock.take()
            yield
        finally:
            lock.close()

    def close(self) -> None:
        for path in self._wishes.glob(f"*--{self._mine}-*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.state)
        self._use.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # evicted by another process meanwhile
        return 0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
