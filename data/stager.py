"""The one process of a node that copies a corpus: threads that fetch what is wished for, then what is needed soonest.

A file appears in the corpus directory whole and with the sha256 of the manifest, or not at all. Where the cache has a
limit, room is made by removing corpora that nobody uses, then the shards of this one that are needed last; a shard that
is merely needed soon never displaces one that is needed sooner, nor one that a process waits for. A failure is written
down for the processes that wait, and staging ends; whoever still needs a shard starts it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from data.errors import DataError
from data.need import Need
from data.stage_cache import Lock, Shelf
from data.transfer import Expected, Patience, Stopped, fetch
from data.urls import join

log = logging.getLogger("rnafoundry")

POLL, LONGEST_POLL = 0.05, 0.5  # seconds between two looks for something to do, growing while there is nothing
_REFRESH = 2.0  # seconds that what is known of coming steps may be old; it decides what to evict, never what is read
NEVER = 1 << 62


@dataclass(frozen=True)
class StagingOptions:
    limit: int | None = None  # bytes of the whole cache; None for no limit
    parallel: int = 4  # files at a time
    timeout: float = 900.0  # seconds without a single byte before a reader gives up
    allow_pipe: bool = False  # run pipe: urls
    patience: Patience = field(default_factory=Patience)


class Stager:
    """Runs while this process holds the shelf's lock; ``step`` and ``need`` may change meanwhile.

    files: name -> (bytes, sha256); kept: those that are never evicted.
    """

    def __init__(
        self,
        url: str,
        shelf: Shelf,
        lock: Lock,
        files: Mapping[str, Expected],
        kept: frozenset[str],
        options: StagingOptions,
    ) -> None:
        self.url, self.shelf, self.files, self.kept, self.options = url, shelf, files, kept, options
        self.need: Need | None = None
        self.step = 0
        self._lock = lock
        self._deciding = threading.Lock()
        self._running: set[str] = set()
        self._stop = threading.Event()
        self._upcoming: tuple[Need | None, int, float, dict[str, int]] = (None, -1, 0.0, {})
        self._working = options.parallel
        self._threads = [
            threading.Thread(target=self._work, name=f"stager-{i}", daemon=True) for i in range(options.parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        return not self._stop.is_set()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        idle = POLL
        try:
            while not self._stop.is_set():
                with self._deciding:
                    name = self._choose()
                    if name is not None:
                        self._running.add(name)
                if name is None:
                    self._stop.wait(idle)
                    idle = min(2 * idle, LONGEST_POLL)
                    continue
                idle = POLL
                try:
                    self._fetch(name)
                finally:
                    with self._deciding:
                        self._running.discard(name)
        except Stopped:
            pass
        except Exception as error:
            self._report(error)
            if not isinstance(error, DataError | OSError):
                raise
        finally:
            with self._deciding:
                self._working -= 1
                if not self._working:  # only now may another process write where these threads wrote
                    self._lock.close()

    def _report(self, error: Exception) -> None:
        with self._deciding:
            if not self._stop.is_set():  # the first failure is the reason
                self._stop.set()
                self.shelf.report(str(error) or type(error).__name__)

    def _fetch(self, name: str) -> None:
        shown = 0.0

        def on_bytes(done: int, total: int | None) -> None:
            nonlocal shown
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                self.shelf.show_life()

        began, expected = time.perf_counter(), self.files[name]
        to, options = self.shelf.corpus / name, self.options
        fetch(
            join(self.url, name),
            to,
            self.shelf.part(name),
            expected,
            options.patience,
            on_bytes,
            self._stop,
            options.allow_pipe,
        )
        self.shelf.show_life()
        log.debug("staged %s (%d bytes) in %.1f s", to, expected.bytes, time.perf_counter() - began)

    def _choose(self) -> str | None:
        """The file to fetch next, with room made for it; None if there is nothing to do, or no room yet."""
        missing = {name for name in self.files if name not in self._running and not self._present(name)}
        if not missing:
            return None
        for name in self.shelf.wished():
            if name in missing and self._make_room(name, NEVER):
                return name
        for name, step in self._upcoming_shards().items():
            if name in missing:
                return name if self._make_room(name, step) else None
        return None

    def _present(self, name: str) -> bool:
        path = self.shelf.corpus / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        if size == self.files[name].bytes:
            return True
        log.warning("%s: has %d bytes instead of %s, it is fetched again", path, size, self.files[name].bytes)
        path.unlink(missing_ok=True)
        return False

    def _upcoming_shards(self) -> dict[str, int]:
        need, step = self.need, self.step
        if need is None:
            return {}
        known_need, known_step, known_at, upcoming = self._upcoming
        # What is missing keeps its first need as steps go by; only what is to be evicted needs fresh knowledge.
        old = self.options.limit is not None and step != known_step and time.monotonic() - known_at > _REFRESH
        if need is not known_need or old:
            upcoming = need.upcoming(step)
            self._upcoming = (need, step, time.monotonic(), upcoming)
        return upcoming

    def _make_room(self, name: str, step: int) -> bool:
        """Evicts until ``name``, needed at ``step``, fits; False if that would cost something needed sooner.

        For a file that is waited for, ``step`` is NEVER: anything that nobody waits for may go.
        """
        limit = self.options.limit
        if limit is None:
            return True
        size = self.files[name].bytes or 0
        while self._used() + size > limit:
            if self.shelf.cache.evict_another(self.shelf.name):
                continue
            upcoming = self._upcoming_shards()
            here = [one for one in self.files if one not in self.kept and (self.shelf.corpus / one).exists()]
            here.sort(key=lambda one: upcoming.get(one, NEVER), reverse=True)
            allowed = (one for one in here if step == NEVER or upcoming.get(one, NEVER) > step)
            if not any(self.shelf.evict(one) for one in allowed):
                return False
        return True

    def _used(self) -> int:
        return self.shelf.cache.bytes() + sum(self.files[name].bytes or 0 for name in self._running)
