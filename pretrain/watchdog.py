"""Who hangs: every rank says what it is doing, and a thread of each looks whether that still changes.

A rank that hangs (a disk that does not answer, a broken device) makes all others wait for it in a collective, where
they can tell nothing. So each rank's thread writes `heartbeats/rank-00003.json` in the run directory: the step, what
the rank is doing since when, and that its process lives. When a rank has done the same for too long, its thread writes
the stacks of all its threads to `logs/rank-00003.stack`, reads the others' heartbeats, says which rank is behind, and
ends the process: nothing is saved, the last checkpoint stands, and the same command goes on from it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.contact import LOST_CONTACT as LOST
from pretrain.errors import PretrainError

log = logging.getLogger("rnafoundry")
MEETING = "waiting for the other ranks"
READING = "reading data"
COMPUTING = "computing"
SAVING = "saving"
VALIDATING = "validating"
FOLDER = "heartbeats"


@dataclass
class Beat:
    rank: int
    host: str
    step: int
    doing: str
    since: float  # of `doing`, seconds of the clock on the wall
    alive: float  # when the file was written


class Watchdog:
    """``patience``: seconds that one thing may take. ``end``: what to do with the exit code; leaves the process."""

    def __init__(
        self, run: Path, rank: int, ranks: int, patience: float, end: Callable[[int], object] = os._exit
    ) -> None:
        self.run, self.rank, self.ranks, self.patience, self.end = run, rank, ranks, patience, end
        self._beat = Beat(rank, socket.gethostname(), 0, "starting", time.time(), time.time())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Raises PretrainError if heartbeats cannot be written."""
        try:
            (self.run / FOLDER).mkdir(exist_ok=True)
            self.doing(self._beat.doing, 0)
            self._write()
        except OSError as error:
            raise PretrainError(f"heartbeats cannot be written to {self.run} ({error}); mend it") from error
        self._thread.start()
        return self

    def doing(self, what: str, step: int) -> None:
        """Called by the rank whenever it turns to something else; costs nothing."""
        beat = self._beat
        self._beat = Beat(beat.rank, beat.host, step, what, time.time(), beat.alive)

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self.patience / 8, 10.0)):
            try:
                self._write()
            except OSError as error:  # a full disk must not end a run that the next checkpoint may find mended
                log.warning("the heartbeat cannot be written (%s)", error)
            if time.time() - self._beat.since > self.patience:
                self._give_up()
                return

    def _write(self) -> None:
        self._beat.alive = time.time()
        path = self.run / FOLDER / f"rank-{self.rank:05d}.json"
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(self._beat)))
        aside.replace(path)

    def _give_up(self) -> None:
        with open(self.run / "logs" / f"rank-{self.rank:05d}.stack", "w") as file:
            faulthandler.dump_traceback(file)
        time.sleep(min(self.patience / 4, 5.0))  # so that the others' last heartbeats and stacks are there
        beats = read_beats(self.run, self.ranks)
        text = blame(beats, self.ranks, time.time(), self.patience)
        log.error("%s", text)
        alive = [beat.rank for beat in beats if time.time() - beat.alive <= self.patience / 2]
        if self.rank == min([*alive, self.rank]):
            print(f"error: {text}; stacks are in {self.run / 'logs'}", file=sys.stderr, flush=True)
        self.end(LOST)


def read_beats(run: Path, ranks: int) -> list[Beat]:
    """The heartbeats of this run's ranks that can be read."""
    found = []
    for rank in range(ranks):
        try:
            found.append(Beat(**json.loads((run / FOLDER / f"rank-{rank:05d}.json").read_text())))
        except (OSError, ValueError, TypeError):
            continue  # what cannot be read is blamed as missing
    return found


def blame(beats: list[Beat], ranks: int, now: float, patience: float) -> str:
    """One sentence: which rank the others wait for, its last step and what it was doing."""
    minutes = f"{patience / 60:.3g} minutes"
    there = {beat.rank: beat for beat in beats}
    missing = [rank for rank in range(ranks) if rank not in there]
    if missing:
        return f"no progress for {minutes}: rank {missing[0]} of {ranks} has no heartbeat"
    frozen = [beat for beat in beats if now - beat.alive > patience / 2]
    if frozen:
        one = min(frozen, key=lambda beat: beat.alive)
        return (
            f"no progress for {minutes}: rank {one.rank} on {one.host} does not answer, its process was last seen "
            f"{now - one.alive:.0f} s ago at step {one.step}, {one.doing}"
        )
    behind = [beat for beat in beats if beat.doing != MEETING] or beats
    one = min(behind, key=lambda beat: (beat.step, beat.since))
    return (
        f"no progress for {minutes}: rank {one.rank} on {one.host} is at step {one.step}, {one.doing} for "
        f"{now - one.since:.0f} s, and {len(beats) - len(behind)} of {ranks} ranks wait for others"
    )
