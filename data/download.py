"""Raw files of public archives -> raw/SOURCE/FILE, several at a time; a second run fetches only what is missing.

For each source: its urls are expanded by the archive's listings, the published checksum files are read, and every file
is fetched by `data.transfer`, which resumes, retries and checks. A finished file is written down in
`.downloaded.jsonl` beside it and not asked for again: to have it anew, remove it. A file that was put there by hand is
compared with what was published about it and otherwise taken as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urljoin

from data import checksums, listing
from data.download_config import DownloadSource
from data.errors import DataError
from data.remote import NotReadable
from data.transfer import Expected, OnBytes, Patience, Stopped, fetch, read_bytes
from data.urls import shown

log = logging.getLogger("rnafoundry")

Progress = Callable[[str, int, int], None]  # phase, done, total
PARALLEL = 4
_RECORD = ".downloaded.jsonl"
_BYTES_SHOWN = 8  # sources of so many files or fewer show the bytes of each, others count files


@dataclass(frozen=True)
class Downloaded:
    """A file that is there. ``checked``: the strongest published figure it was compared with, "size", or ""."""

    source: str
    path: Path
    url: str
    bytes: int
    checked: str
    fetched: bool  # by this call


def download(
    sources: Sequence[DownloadSource],
    to: Path,
    progress: Progress | None = None,
    parallel: int = PARALLEL,
    patience: Patience | None = None,
) -> list[Downloaded]:
    """Fetches what is missing below ``to``, ``parallel`` files at a time. Raises DataError at the first failure.

    What was fetched until then stays, whole files and parts: the same call continues.
    """
    if parallel < 1:
        raise DataError(f"parallel is {parallel}, expected at least 1.")
    found: list[Downloaded] = []
    for source in sources:
        if source.download is None:
            found += _local_files(source)
            continue
        folder = to / source.name
        with _locked(folder), ThreadPoolExecutor(parallel, thread_name_prefix="download") as pool:
            found += _Source(source, folder, progress or _silent, patience or Patience(), pool).run()
    return found


@dataclass
class _Source:
    source: DownloadSource
    folder: Path
    progress: Progress
    patience: Patience
    pool: Executor

    def run(self) -> list[Downloaded]:
        urls = self._urls()
        records = _read_records(self.folder)
        self.done, self.total = 0, len(urls)
        self.stop, self.lock = threading.Event(), threading.Lock()
        futures = [self.pool.submit(self._file, name, url, records.get(name)) for name, url in urls.items()]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: parts are kept
            self.stop.set()
            for future in futures:
                future.cancel()
        wait(futures)
        failed = [e for future in futures if not future.cancelled() and (e := future.exception()) is not None]
        for error in failed:
            if not isinstance(error, Stopped):
                raise error
        return [future.result() for future in futures]

    def _urls(self) -> dict[str, str]:
        """Name here -> url, sorted by name. Raises DataError where two urls give one name."""
        assert self.source.download is not None
        found: dict[str, str] = {}
        for pattern in self.source.download.urls:
            for url in listing.expand(pattern, self.pool, self.patience):
                name = listing.file_name(url)
                if found.setdefault(name, url) != url:
                    raise DataError(
                        f"source {self.source.name}: {shown(found[name])} and {shown(url)} would both be "
                        f"{self.folder / name}; divide them into two sources."
                    )
        unknown = sorted(set(self.source.expected) - set(found))
        if unknown:
            raise DataError(f"source {self.source.name}: download.files names {unknown[0]}, which no url gives.")
        return dict(sorted(found.items()))

    def _file(self, name: str, url: str, record: dict[str, object] | None) -> Downloaded:
        if self.stop.is_set():
            raise Stopped
        path = self.folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is not None and record is not None and (record["url"], record["bytes"]) == (shown(url), size):
            result = Downloaded(self.source.name, path, url, size, str(record["checked"]), False)
        elif size is not None and record is None:
            result = self._by_hand(path, url, size)
        else:
            result = self._fetch(path, url)
        self._count(name, result.bytes)
        return result

    def _fetch(self, path: Path, url: str) -> Downloaded:
        part = path.with_name(f".{path.name}.part")
        fetched = fetch(url, path, part, self._expected(path.name, url), self.patience, self._on_bytes(path), self.stop)
        entry = {"name": path.name, "url": shown(url), **asdict(fetched)}  # a login in the url stays out of files
        with self.lock, open(self.folder / _RECORD, "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return Downloaded(self.source.name, path, url, fetched.bytes, fetched.checked, True)

    def _by_hand(self, path: Path, url: str, size: int) -> Downloaded:
        expected = self._expected(path.name, url)
        checked = next((one for one in checksums.ALGORITHMS if one in expected.checksums), "")
        wrong_size = expected.bytes is not None and expected.bytes != size
        if wrong_size or (checked and checksums.checksum(path, checked) != expected.checksums[checked]):
            raise DataError(
                f"{path}: was not downloaded by this program and is not the file that was published "
                f"({checked or 'size'} differs); remove it to download it, or mend the figures in the config."
            )
        return Downloaded(self.source.name, path, url, size, checked or ("size" if expected.bytes else ""), False)

    def _expected(self, name: str, url: str) -> Expected:
        """What the config and the archive's checksum file say about a file; the config wins."""
        assert self.source.download is not None
        said = self.source.expected.get(name, Expected())
        where = self.source.download.checksums
        if not where or said.checksums:
            return said
        try:
            published = read_bytes(urljoin(url, where.replace("{}", name)), self.patience)
        except NotReadable as error:
            log.warning("source %s: %s is checked by its size alone; %s", self.source.name, name, error)
            return said
        return Expected(said.bytes, checksums.parse(published.decode("utf-8", errors="replace")).get(name, {}))

    def _on_bytes(self, path: Path) -> OnBytes:
        def show(done: int, total: int | None) -> None:
            if self.total <= _BYTES_SHOWN:
                with self.lock:
                    self.progress(f"{self.source.name}: {path.name}", done, total or done)

        return show

    def _count(self, name: str, size: int) -> None:
        with self.lock:
            self.done += 1
            if self.total > _BYTES_SHOWN:
                self.progress(f"{self.source.name}: files", self.done, self.total)
            else:
                self.progress(f"{self.source.name}: {name}", size, size)


def _local_files(source: DownloadSource) -> list[Downloaded]:
    path = Path(source.path)
    found = [p for p in (path.iterdir() if path.is_dir() else map(Path, glob.glob(source.path, recursive=True)))]
    files = sorted(p for p in found if p.is_file() and not p.name.startswith("."))
    if not files:
        raise DataError(
            f"source {source.name}: {source.path} does not exist and has no download section; put the files there or "
            "mend `path`."
        )
    return [Downloaded(source.name, p, "", p.stat().st_size, "", False) for p in files]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One download at a time fills a folder. Raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); choose another directory.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another download is filling it; wait for it or end it.") from error
        yield
    finally:
        os.close(lock)


def _read_records(folder: Path) -> dict[str, dict[str, object]]:
    """The last record of each file name; a line that a crash cut is left out."""
    records: dict[str, dict[str, object]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / _RECORD).read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                records[entry["name"]] = {key: entry[key] for key in ("url", "bytes", "checked")}
    return records


def _silent(phase: str, done: int, total: int) -> None:
    pass
