"""What a run did, start after start, and what it took of the disk: written down beside it and watched from outside."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.checkpoint import newest, steps_on_disk


@dataclass
class Attempt:
    """One start of the run: from which step, on how many ranks, and how it ended."""

    begins: int
    ranks: int
    notes: Path  # what each rank trained on: `note_samples` of faults.py
    moment: str = ""  # of the kill
    in_save: bool = False  # a save was left unfinished
    seconds_to_end: float = 0.0  # from the kill until no process was left

    def trained(self) -> dict[int, dict[int, list[int]]]:
        """step -> rank -> samples; asserts that no rank did a step twice or left one out."""
        found: dict[int, dict[int, list[int]]] = {}
        for line in self.notes.read_text().splitlines() if self.notes.exists() else []:
            note = json.loads(line)
            assert note["ranks"] == self.ranks
            assert note["rank"] not in found.setdefault(note["step"], {}), f"step {note['step']} twice in one start"
            found[note["step"]][note["rank"]] = note["samples"]
        assert sorted(found) == list(range(self.begins + 1, self.begins + 1 + len(found)))
        return found

    def samples(self) -> dict[int, list[int]]:
        """step -> samples of all ranks."""
        return {step: sorted(itertools.chain(*by_rank.values())) for step, by_rank in self.trained().items()}


def require_every_step_once(
    attempts: list[Attempt], steps: int, samples: Mapping[int, list[int]], most_unsaved: int
) -> int:
    """What survives of all starts is every step once, by all ranks, on ``samples``. Returns how many were redone.

    A start's steps survive up to the one that the next start begins with; those after it were not saved.
    """
    expected, redone = 1, 0
    ends = [*(later.begins for later in attempts[1:]), steps]
    for attempt, end in zip(attempts, ends, strict=True):
        assert end >= attempt.begins, "a saved step was lost"
        trained, together = attempt.trained(), attempt.samples()
        for step in range(attempt.begins + 1, end + 1):
            assert step == expected
            assert sorted(trained[step]) == list(range(attempt.ranks)), f"step {step} was saved before all had done it"
            assert together[step] == samples[step]
            expected += 1
        undone = sum(step > end for step in trained)
        assert undone <= most_unsaved, f"{undone} steps were done and not saved"
        redone += undone
    assert expected == steps + 1
    return redone


def newest_step(run: Path) -> int:
    found = newest(run / "checkpoints")
    return found.progress.step if found else 0


def partial_saves(run: Path) -> set[Path]:
    return set((run / "checkpoints").glob(".step-*.partial"))


@dataclass
class Disk:
    """The most that was seen of the checkpoints of a run."""

    bytes: int = 0
    checkpoints: int = 0
    partial: int = 0

    def look(self, directory: Path) -> None:
        size, names = 0, []
        try:
            for path in directory.iterdir():
                names.append(path.name)
                size += sum(file.stat().st_size for file in path.iterdir())
        except OSError:  # it is being renamed or removed
            return
        self.bytes = max(self.bytes, size)
        self.checkpoints = max(self.checkpoints, sum(name.startswith("step-") for name in names))
        self.partial = max(self.partial, sum(name.startswith(".step-") for name in names))


@contextmanager
def watched(run: Path) -> Iterator[Disk]:
    disk, stop = Disk(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            disk.look(run / "checkpoints")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield disk
    finally:
        stop.set()
        thread.join()


def require_bounded(run: Path, disk: Disk, keep: int) -> None:
    """Never more than what is kept, the one being written and one that a kill left; in the end what is kept alone."""
    (_, path), *_ = steps_on_disk(run / "checkpoints")
    one = sum(file.stat().st_size for file in path.iterdir())
    assert disk.bytes > one, "the disk was not watched"
    assert disk.bytes <= (keep + 2) * one * 1.02  # files of three ranks have three headers
    assert len(steps_on_disk(run / "checkpoints")) == keep
    assert not partial_saves(run)
    rest = sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and "checkpoints" not in file.parts)
    assert rest < 5_000_000


def figures(
    attempts: list[Attempt], steps: int, redone: int, seconds: float, alone: float, disk: Disk
) -> dict[str, str]:
    kills = attempts[:-1]
    moments = Counter(attempt.moment for attempt in kills)
    ends = [attempt.seconds_to_end for attempt in kills]
    return {
        "kills survived": f"{len(kills)}: " + ", ".join(f"{n} {moment}" for moment, n in sorted(moments.items())),
        "of them with a save left unfinished": f"{sum(attempt.in_save for attempt in kills)}",
        "steps of the run; steps done again, all of them unsaved": f"{steps}; {redone}",
        "a kill until no process was left: median, longest": f"{np.median(ends):.1f} s, {max(ends):.1f} s",
        "time with all restarts; uninterrupted": f"{seconds:.0f} s; {alone:.0f} s",
        "most on disk: MB, checkpoints, unfinished ones": f"{disk.bytes / 1e6:.2f}, {disk.checkpoints}, {disk.partial}",
    }
