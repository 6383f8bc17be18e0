"""A corpus far away -> a local directory that fills while training runs.

    staged = Staged.open("https://host/corpora/rnacentral", Path("/local/cache"), limit=200 * 10**9)
    corpus = Corpus.open(staged.path, "train", shards=staged.locate)
    staged.follow(corpus_order, first_step, stop_step)      # from here on in the order of need
    staged.reached(step)                                    # now and then; matters only where the cache has a limit

The url is a directory on http(s), ftp, s3, gs or whatever fsspec knows, a path (a shared file system), or, where it is
allowed, a `pipe:` command. Every process of a node opens it; one of them copies, the others wait for files to appear
(`data.stager`, `data.stage_cache`). If that one ends, the next that waits goes on. Manifest, block table and lengths
are there when `open` returns; `locate` blocks until a shard is there.

The corpus is named after the hashes in its manifest, never after its url. The manifest itself is read anew by the first
process that opens a url, and taken over by those that open it while any process has it open.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.index import read_block_table
from data.manifest import MANIFEST, fingerprint, read_manifest
from data.need import Need, StepIds
from data.publish import write_durably
from data.stage_cache import WISH_SECONDS, Cache, Shelf, url_key
from data.stager import POLL, Stager, StagingOptions
from data.transfer import Expected, read_bytes
from data.urls import join, local_path, scheme, shown

_RENEW_SECONDS = WISH_SECONDS / 4
_PLAIN = re.compile(r"\w[\w.\-]*")  # a manifest from elsewhere must not name files outside the cache


def is_remote(corpus: str) -> bool:
    """Whether a corpus is named by a url that only staging can read."""
    return scheme(corpus) not in ("", "file")


def stage(corpus: str, cache: str | None, gigabytes: float | None = None, allow_pipe: bool = False) -> Staged | None:
    """Stages into ``cache`` with a limit of ``gigabytes`` (1e9 bytes; None for none); None without a cache: the corpus
    is read where it lies. Raises DataError, also for a url without a cache.
    """
    if cache is None:
        if is_remote(corpus):
            raise DataError(
                f"{shown(corpus)}: a corpus at a url is copied to a local disk first; set data.cache to a folder there."
            )
        return None
    if gigabytes is not None and gigabytes <= 0:
        raise DataError(f"data.cache_gigabytes is {gigabytes:g}, expected a size above 0, or null for no limit.")
    limit = None if gigabytes is None else int(gigabytes * 1e9)
    return Staged.open(corpus, Path(cache), limit, allow_pipe=allow_pipe)


_PLACES: np.dtype[Any] = np.dtype([("shard", "<u4"), ("sequences", "<u4")])  # of an index, whatever its kind


class Staged:
    """A corpus being staged, as one process sees it. ``path``: its local directory; ``manifest``: as read."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, url: str | Path, cache: Path, limit: int | None = None, **options: Any) -> Staged:
        """``limit`` bytes of the whole cache; further options are those of StagingOptions. Raises DataError."""
        return cls(str(url), Cache(cache.absolute()), StagingOptions(limit=limit, **options))

    def __init__(self, url: str, cache: Cache, options: StagingOptions) -> None:
        self.url, self.options = url, options
        self._stager: Stager | None = None
        self._need: Need | None = None
        self._step = 0
        self._starting = threading.Lock()
        try:
            self._in_use = cache.lock(f"{url_key(url)}.url")
        except OSError as error:
            raise DataError(f"{cache.root}: cannot be used as a cache ({error.strerror}); set another one.") from error
        try:
            self.manifest, content = self._read_manifest(cache)
            self.shelf = Shelf(cache, f"{self.manifest['fingerprint'][:32]}-{self.manifest['sha256'][:16]}")
        except BaseException:
            self._in_use.close()
            raise
        try:
            self.path = self.shelf.corpus
            self.shelf.place(MANIFEST, content)
            self._shards = {one["name"]: _expected(one) for one in self.manifest["shards"]}
            self._small = {name: _expected(entry) for name, entry in self.manifest["files"].items()}
            self._require_limit()
            for name in self._small:
                self.locate(name)
        except BaseException:
            self.close()
            raise

    def _read_manifest(self, cache: Cache) -> tuple[dict[str, Any], bytes]:
        """Read anew unless another process has this url open: then all of them see the same corpus."""
        key = url_key(self.url)
        folder = cache.manifests / key
        gate = cache.lock(f"{key}.gate")
        try:
            gate.take()
            if self._in_use.take(wait=False) or not (folder / MANIFEST).exists():
                folder.mkdir(parents=True, exist_ok=True)
                self._fetch_manifest(folder)
            manifest = read_manifest(folder)
            self._in_use.take(shared=True)  # the gate keeps others from coming between
            return manifest, (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise DataError(f"{cache.root}: cannot be used as a cache ({error.strerror}); set another one.") from error
        finally:
            gate.close()

    def _fetch_manifest(self, folder: Path) -> None:
        if not is_remote(self.url) and not (local_path(self.url) / MANIFEST).is_file():
            read_manifest(local_path(self.url))  # says what is wrong with the path
        options = self.options
        for last in (False, True):  # it carries its own hash: wrong bytes are read once more
            content = read_bytes(join(self.url, MANIFEST), options.patience, options.allow_pipe)
            write_durably(folder / MANIFEST, content)
            try:
                manifest = read_manifest(folder)
            except DataError as error:
                if last:
                    (folder / MANIFEST).unlink()
                    raise DataError(f"{shown(self.url)}: holds no intact corpus; {error}") from error
                continue
            names = [*manifest["files"], *(shard["name"] for shard in manifest["shards"])]
            if fingerprint(manifest["shards"]) != manifest["fingerprint"] or not all(map(_PLAIN.fullmatch, names)):
                (folder / MANIFEST).unlink()
                raise DataError(f"{shown(self.url)}: its manifest names other files than it was made with.")
            return

    def _require_limit(self) -> None:
        limit, whole = self.options.limit, sum(one.bytes or 0 for one in self._all.values())
        least = sum(one.bytes or 0 for one in self._small.values()) + max(
            (one.bytes or 0 for one in self._shards.values()), default=0
        )
        least += (self.path / MANIFEST).stat().st_size
        if limit is not None and limit < least:
            raise DataError(
                f"{shown(self.url)}: a cache of {limit / 1e9:,.2f} GB is too small, its index and one shard alone are "
                f"{least / 1e9:,.2f} GB (the whole corpus {whole / 1e9:,.2f} GB); raise the limit of the cache."
            )

    @property
    def _all(self) -> dict[str, Expected]:
        return {**self._small, **self._shards}

    def locate(self, name: str) -> Path:
        """The local path of a file of the corpus, once it is there: whole and checked. Raises DataError.

        It stays at least until it can be mapped; a process that has mapped it keeps what it mapped.
        """
        if name not in self._shards and name not in self._small:
            raise DataError(f"{shown(self.url)}: there is no shard {name} in its manifest.")
        path, began = self.path / name, time.time()
        renewed = 0.0
        while True:
            if time.monotonic() - renewed > _RENEW_SECONDS:
                renewed = time.monotonic()
                self.shelf.wish(name)
            if self._whole(path, name):
                return path
            failure = self.shelf.failure_since(began)
            if failure is not None:
                raise DataError(failure)
            self._stage_if_nobody_does()
            waited = time.time() - max(began, self.shelf.alive_at())
            if waited > self.options.timeout:
                there = sum(self._whole(self.path / one, one) for one in self._shards)
                raise DataError(
                    f"{shown(self.url)}: {name} has not come, nothing was received for {waited:,.0f} s ({there} of "
                    f"{len(self._shards)} shards are in {self.path}); check the network and the disk, and start again."
                )
            time.sleep(POLL / 2)

    def _whole(self, path: Path, name: str) -> bool:
        expected = self._small.get(name) or self._shards[name]
        try:
            return path.stat().st_size == expected.bytes
        except FileNotFoundError:
            return False

    def _stage_if_nobody_does(self) -> None:
        with self._starting:  # the loader's thread and the main one may both wait for shards
            if self._stager is not None and self._stager.running:
                return
            if self._stager is not None:
                self._stager.close()
                self._stager = None
            lock = self.shelf.stager_lock()
            if not lock.take(wait=False):
                lock.close()
                return
            self._stager = Stager(self.url, self.shelf, lock, self._all, frozenset(self._small), self.options)
            self._stager.need, self._stager.step = self._need, self._step

    def follow(self, step_ids: StepIds, first: int, stop: int, split: str = "train") -> None:
        """Stages what steps [first, stop) read, in their order. ``step_ids``: step -> ids of its samples in ``split``.

        Called from other threads than the caller's, so it must be a function of its own (an Order caches). Raises
        DataError where one step reads more than the cache may hold.
        """
        blocks = read_block_table(self.path, _PLACES)
        shards = self.manifest["shards"]
        own = np.array([shard["split"] == split for shard in shards], dtype=bool)[blocks["shard"]]
        ends = np.cumsum(blocks["sequences"][own].astype(np.int64))
        names = [shard["name"] for shard in shards]
        need = Need(ends, blocks["shard"][own].astype(np.int64), names, step_ids, stop)
        limit = self.options.limit
        if limit is not None and first < stop:
            read = need.of_step(first)
            size = sum(one.bytes or 0 for one in self._small.values())
            size += sum(self._shards[name].bytes or 0 for name in read)
            if size > limit:
                whole = sum(one.bytes or 0 for one in self._all.values())
                raise DataError(
                    f"{shown(self.url)}: one step reads {len(read)} shards, {size / 1e9:,.2f} GB, more than the "
                    f"{limit / 1e9:,.2f} GB of the cache, so every step would fetch them again; raise the limit of "
                    f"the cache (the whole corpus is {whole / 1e9:,.2f} GB)."
                )
        self._need, self._step = need, first
        self._stage_if_nobody_does()
        if self._stager is not None:
            self._stager.need, self._stager.step = need, first

    def reached(self, step: int) -> None:
        """Steps before ``step`` are done: what only they needed may go first."""
        self._step = step
        if self._stager is not None:
            self._stager.step = step

    def close(self) -> None:
        """Ends this process's part. Mapped shards stay readable; other processes go on."""
        if self._stager is not None:
            self._stager.close()
            self._stager = None
        self.shelf.close()
        self._in_use.close()

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _expected(entry: dict[str, Any]) -> Expected:
    return Expected(int(entry["bytes"]), {"sha256": entry["sha256"]})
