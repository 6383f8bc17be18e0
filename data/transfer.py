"""Fetching one file so that it is complete and right or not there: resumed, retried, checked, renamed into place.

Bytes go to a .part file beside a small record of url, version and size. A broken transfer continues there as long as
the remote file is the same; if it changed, it starts again. Failures that may pass are retried with growing waits, and
only failures in a row without a new byte count. A file that does not match its published size or hash is fetched anew
once, then refused. It does not know what the file is for.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data import checksums
from data.errors import DataError
from data.publish import sync_directory
from data.remote import PASSING, Stream, Unavailable, open_at
from data.urls import shown

log = logging.getLogger("rnafoundry")

OnBytes = Callable[[int, "int | None"], None]  # bytes so far, bytes of the whole file if known
_CHUNK = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Expected:
    """What was published about a file. checksums: {algorithm of `data.checksums`: value}."""

    bytes: int | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    tries: int = 8  # failures in a row without a new byte
    first_wait: float = 1.0  # seconds, doubled after each failure
    longest_wait: float = 60.0
    timeout: float = 60.0  # seconds without a byte before a connection counts as dropped
    downloads: int = 2  # of a file whose bytes turn out wrong


@dataclass(frozen=True)
class Fetched:
    bytes: int
    version: str
    checked: str  # the strongest thing that was compared: an algorithm, "size", or "" for nothing


class Stopped(Exception):
    """The caller's ``stop`` was set; what has come is kept for the next time."""


def fetch(
    url: str,
    to: Path,
    part: Path,
    expected: Expected | None = None,
    patience: Patience | None = None,
    on_bytes: OnBytes | None = None,
    stop: threading.Event | None = None,
    allow_pipe: bool = False,
) -> Fetched:
    """Puts the file at ``to`` through ``part`` (same file system). Raises DataError, or Stopped."""
    one = _Transfer(
        url,
        to,
        part,
        expected or Expected(),
        patience or Patience(),
        on_bytes or (lambda done, total: None),
        stop or threading.Event(),
        allow_pipe,
    )
    try:
        return one.run()
    except OSError as error:  # of this disk: those of the network were dealt with
        if error.errno in _FULL:
            raise DataError(
                f"{to}: the disk is full; what has come is kept, free some space and start again to continue."
            ) from error
        raise DataError(f"{to}: cannot be written ({error.strerror or error}); check the directory.") from error


@dataclass
class _Transfer:
    url: str
    to: Path
    part: Path
    expected: Expected
    patience: Patience
    on_bytes: OnBytes
    stop: threading.Event
    allow_pipe: bool

    def run(self) -> Fetched:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        failures = wrong = 0
        while True:
            before = self._size()
            try:
                version, size = self._receive()
            except Unavailable as error:
                failures = 1 if self._size() > before else failures + 1
                if failures >= self.patience.tries:
                    raise DataError(
                        f"{shown(self.url)}: cannot be fetched, {failures} tries in a row failed ({error}); check "
                        "the network and start again to continue."
                    ) from error
                wait = min(self.patience.first_wait * 2 ** (failures - 1), self.patience.longest_wait)
                wait = max(wait, min(error.wait, self.patience.longest_wait))
                log.warning("%s: %s; trying again in %.1f s", shown(self.url), error, wait)
                if self.stop.wait(wait):
                    raise Stopped from error
                continue
            problem, checked = self._compare(size)
            if problem is None:
                return self._publish(version, checked)
            self._discard()
            wrong += 1
            if wrong >= self.patience.downloads:
                raise DataError(
                    f"{shown(self.url)}: {problem}, {wrong} times in a row; the remote file or what was published "
                    "about it is wrong: check the url and the figures in the config."
                )
            log.warning("%s: %s; fetching it again", shown(self.url), problem)

    def _receive(self) -> tuple[str, int | None]:
        """All bytes of the file into the part; its version and size. Raises Unavailable, DataError or Stopped."""
        have, version = self._resumable()
        stream = self._open(have, version)
        try:
            if stream.start and stream.version != version:  # changed, and the server sent the rest of the new one
                stream.close()
                stream = self._open(0, "")
            self._record(stream)
            self._require_space(stream)
            done = stream.start
            with open(self.part, "r+b" if done else "wb") as file:
                file.truncate(done)
                file.seek(done)
                while chunk := self._read(stream):
                    file.write(chunk)
                    done += len(chunk)
                    self.on_bytes(done, stream.size)
                    if self.stop.is_set():
                        raise Stopped
                file.flush()
                os.fsync(file.fileno())
            if stream.size is not None and done < stream.size:
                raise Unavailable(f"the connection ended after {done:,} of {stream.size:,} bytes")
            return stream.version, stream.size
        finally:
            stream.close()

    def _open(self, start: int, version: str) -> Stream:
        return open_at(self.url, start, version, self.patience.timeout, self.allow_pipe)

    def _read(self, stream: Stream) -> bytes:
        try:
            return stream.read(_CHUNK)
        except Unavailable:
            raise
        except PASSING as error:
            raise Unavailable(str(error) or type(error).__name__) from error

    def _resumable(self) -> tuple[int, str]:
        """(byte to continue at, version that the part is of); 0 unless the rest is sure to fit to what is there."""
        try:
            record = json.loads(self._record_path.read_text())
            url, version, size = record["url"], record["version"], record["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
        have = self._size()
        # Without a version only a hash can tell that the two halves are of one file.
        sure = version or self.expected.checksums
        if url != self.url or not sure or (size is not None and have > size):
            return 0, ""
        # A whole part was left between its last byte and its renaming. A range must ask for something.
        return (have - 1 if have and have == size else have), version

    def _record(self, stream: Stream) -> None:
        record = {"url": self.url, "version": stream.version, "bytes": stream.size}
        if not stream.start:
            self.part.unlink(missing_ok=True)  # else a kill here would leave the old bytes beside the new version
        self._record_path.write_text(json.dumps(record))

    def _require_space(self, stream: Stream) -> None:
        if stream.size is None:
            return
        free, missing = shutil.disk_usage(self.part.parent).free, stream.size - stream.start
        if missing > free:
            raise DataError(
                f"{self.to}: the disk is full: {missing / 1e9:,.2f} GB are still to come and {free / 1e9:,.2f} GB are "
                "free; free some space and start again to continue."
            )

    def _compare(self, told: int | None) -> tuple[str | None, str]:
        """(what is wrong, None if nothing; the strongest thing compared)."""
        size = self._size()
        for source, wanted in (("was published with", self.expected.bytes), ("should have", told)):
            if wanted is not None and size != wanted:
                return f"has {size:,} bytes and {source} {wanted:,}", ""
        for algorithm in checksums.ALGORITHMS:
            if algorithm in self.expected.checksums:
                wanted_sum = self.expected.checksums[algorithm].lower()
                found = checksums.checksum(self.part, algorithm)
                if found != wanted_sum:
                    return f"does not match its published {algorithm} ({found}, expected {wanted_sum})", ""
                return None, algorithm
        if self.to.name.endswith(".gz"):
            with open(self.part, "rb") as file:
                if file.read(2) != b"\x1f\x8b":
                    return "is no gzip file, the server sent something else in its place", ""
        return None, "size" if told is not None or self.expected.bytes is not None else ""

    def _publish(self, version: str, checked: str) -> Fetched:
        size = self._size()
        os.replace(self.part, self.to)
        self._record_path.unlink(missing_ok=True)
        sync_directory(self.to.parent)
        return Fetched(size, version, checked)

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self._record_path.unlink(missing_ok=True)

    @property
    def _record_path(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def _size(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0


def read_bytes(url: str, patience: Patience | None = None, allow_pipe: bool = False) -> bytes:
    """A small file, such as a listing or a manifest, retried. Raises DataError."""
    patience = patience or Patience()
    for attempt in range(1, patience.tries + 1):
        try:
            stream = open_at(url, timeout=patience.timeout, allow_pipe=allow_pipe)
            try:
                content = b"".join(iter(lambda: stream.read(_CHUNK), b""))  # noqa: B023 (used at once)
            finally:
                stream.close()
            if stream.size is None or len(content) == stream.size:
                return content
            raise Unavailable("the connection ended early")
        except PASSING as error:
            if attempt == patience.tries:
                raise DataError(
                    f"{shown(url)}: cannot be read, {attempt} tries failed ({error}); check the network and the url."
                ) from error
            wait = min(patience.first_wait * 2 ** (attempt - 1), patience.longest_wait)
            wait = max(wait, min(getattr(error, "wait", 0.0), patience.longest_wait))
            log.warning("%s: %s; trying again in %.1f s", shown(url), error, wait)
            time.sleep(wait)
    raise AssertionError("tries is at least 1")
