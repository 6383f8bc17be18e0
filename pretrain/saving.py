"""Writing checkpoints while training goes on, and removing old ones. The format is that of pretrain/checkpoint.py.

A save holds training up only while every rank copies what it owns (masters and optimizer state) into the host's memory.
Then there are two parts that threads do: each rank writes, syncs and hashes its file; when all have, rank 0 writes the
manifest, renames the directory into place and removes old checkpoints. Threads never talk to other ranks: the loop says
in its one collective per step whether this rank is through with its part (`settled`), and when all are, all go on
together (`go_on`). So a save is complete a few steps after it began, a kill before that leaves the checkpoint before it
in place, and a disk that is full is told by all ranks at the same step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data.manifest import file_sha256, sealed
from data.publish import sync_directory, sync_file
from pretrain.checkpoint import FORMAT, MANIFEST, RECIPE, WEIGHT, Progress, is_complete, steps_on_disk
from pretrain.distributed import World
from pretrain.engine import Engine, Fragment
from pretrain.errors import PretrainError
from pretrain.pinned import PinnedMemory

log = logging.getLogger("rnafoundry")


@dataclass(frozen=True)
class Saved:
    """What a complete save was."""

    step: int
    path: Path
    bytes: int
    held_up: float  # seconds in which training waited
    seconds: float  # from the beginning until the checkpoint was in place


@dataclass
class _Save:
    """A save that is under way."""

    step: int
    partial: Path
    final: Path
    manifest: dict[str, Any]
    part: Future[Any]  # of this rank: at first writing its file, then (rank 0) publishing
    began: float
    held_up: float
    publishing: bool = False


class Saver:
    """Saves checkpoints of ``engine`` into ``directory``, one at a time. All ranks make the same calls, in order.

    ``keep`` and ``permanent_every`` as of `rotate`. Every method raises PretrainError on all ranks when any cannot
    write; the checkpoints before are untouched then, and no partial one is left.
    """

    def __init__(
        self, directory: Path, engine: Engine, world: World, keep: int, permanent_every: int | None, recipe_yaml: str
    ) -> None:
        self.directory, self.engine, self.world, self.recipe_yaml = directory, engine, world, recipe_yaml
        self.keep, self.permanent_every = keep, permanent_every
        self._save: _Save | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pinned: PinnedMemory | None = None

    def begin(self, progress: Progress) -> None:
        """Start to save the present state as `step-NNNNNNNN`; the save before must be complete."""
        assert self._save is None
        began = time.perf_counter()
        world, engine = self.world, self.engine
        progress.optimizer_steps = engine.optimizer_steps
        final = self.directory / f"step-{progress.step:08d}"
        manifest = {
            "format": FORMAT,
            "progress": asdict(progress),
            "shapes": {name: list(shape) for name, shape in engine.shapes.items()},
            "written_by": {"ranks": world.ranks, "zero_stage": engine.stage},
            "recipe_sha256": hashlib.sha256(self.recipe_yaml.encode()).hexdigest(),
        }
        partial = final.parent / f".{final.name}.partial"
        world.together(lambda: _prepare(partial) if world.first else None)
        path = partial / f"state-{world.rank:05d}-of-{world.ranks:05d}.safetensors"
        part = self._threads.submit(_write_share, path, self._copy())
        self._save = _Save(progress.step, partial, final, manifest, part, began, time.perf_counter() - began)

    def settled(self) -> bool:
        """Whether a save is under way of which this rank has done its present part, or failed to."""
        return self._save is not None and self._save.part.done()

    def go_on(self) -> Saved | None:
        """Once all ranks are settled: the next part of the save; what was saved if there is none left."""
        save, since = self._save, time.perf_counter()
        assert save is not None
        try:
            if save.publishing:
                self.world.together(save.part.result)
                self._save = None
                total = sum(file["bytes"] for file in save.manifest["files"])
                held_up = save.held_up + time.perf_counter() - since
                return Saved(save.step, save.final, total, held_up, time.perf_counter() - save.began)
            save.manifest["files"] = self.world.gather(self.world.together(save.part.result))
        except BaseException:
            self._save = None
            if self.world.first:
                with contextlib.suppress(OSError):  # what made saving fail may fail this too; the next save removes it
                    _remove(save.partial)
            raise
        save.publishing = True
        save.part = self._threads.submit(self._publish, save)
        save.held_up += time.perf_counter() - since
        return None

    def finish(self) -> Saved | None:
        """Wait until the save that is under way is complete; None if there is none."""
        saved = None
        while self._save is not None:
            since, save = time.perf_counter(), self._save
            save.part.exception()  # waits; `go_on` tells what it says
            save.held_up += time.perf_counter() - since
            saved = self.go_on()
        return saved

    def _copy(self) -> dict[str, Tensor]:
        """What this rank writes, as it is now, in memory that training does not touch.

        On GPUs the memory is pinned and kept for the next save, since pinning takes longer than copying; on a CPU it is
        given back.
        """
        tensors = {
            f"{kind}|{part.name}|{part.start}": values.detach()
            for part in _owned(self.engine, self.world)
            for kind, values in ((WEIGHT, part.master), *part.states.items())
        }
        there = sum(values.numel() for values in tensors.values() if values.device.type == "cuda")
        if there and self._pinned is None:
            self._pinned = PinnedMemory(there)
        copies: dict[str, Tensor] = {}
        for key, values in tensors.items():
            if values.device.type == "cuda" and self._pinned is not None:
                copies[key] = self._pinned.room(key, values.numel()).copy_(values, non_blocking=True)
            else:
                copies[key] = values.to(torch.float32, copy=True)
        if there:
            torch.cuda.synchronize(self.world.device)
        return copies

    def _publish(self, save: _Save) -> None:
        """On rank 0: write the manifest and rename into place, durably; then remove what is superseded."""
        if not self.world.first:
            return
        try:
            _write_text(save.partial / RECIPE, self.recipe_yaml)
            _write_text(save.partial / MANIFEST, sealed(save.manifest).decode())
            sync_directory(save.partial)
            _remove(save.final)  # one of the same step: it was damaged
            save.partial.rename(save.final)
            sync_directory(save.final.parent)
        except OSError as error:
            raise _unwritable(save.final, error) from error
        rotate(self.directory, self.keep, self.permanent_every)


def rotate(directory: Path, keep: int, permanent_every: int | None) -> None:
    """Remove all but the ``keep`` newest complete checkpoints and the permanent ones, and what a killed save left.

    Permanent are those of steps that ``permanent_every`` divides. An incomplete one among those kept does not count and
    stays, for a person to look at.
    """
    superseded, complete = list(directory.glob(".step-*.partial")), 0
    for step, path in steps_on_disk(directory):
        if complete >= keep and (permanent_every is None or step % permanent_every != 0):
            superseded.append(path)
        complete += is_complete(path)
    for path in superseded:
        try:
            _remove(path)
        except OSError as error:
            log.warning("the old checkpoint %s cannot be removed (%s)", path, error)


def _prepare(partial: Path) -> None:
    try:
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise _unwritable(partial, error) from error


def _write_share(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """This rank's file; returns its manifest entry."""
    try:
        save_file(tensors, path)
        sync_file(path)
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error


def _owned(engine: Engine, world: World) -> Iterator[Fragment]:
    """Fragments that this rank writes. Where every rank holds everything, each writes an equal part of the whole."""
    if engine.stage > 0:
        yield from engine.fragments()
        return
    total = sum(fragment.master.numel() for fragment in engine.fragments())
    low, high = total * world.rank // world.ranks, total * (world.rank + 1) // world.ranks
    passed = 0
    for fragment in engine.fragments():
        n = fragment.master.numel()
        a, b = max(low - passed, 0), min(high - passed, n)
        passed += n
        if a < b:
            states = {kind: values[a:b] for kind, values in fragment.states.items()}
            yield dataclasses.replace(fragment, start=a, master=fragment.master[a:b], states=states)


def _unwritable(path: Path, error: Exception) -> PretrainError:
    return PretrainError(
        f"the checkpoint {path} cannot be written ({error}); earlier checkpoints are untouched: free disk space or "
        "mend the directory, and start the same command again"
    )


def _remove(path: Path) -> None:
    """Remove a directory such that a kill in between cannot leave something that looks complete."""
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")  # whatever the locale: hashes are of UTF-8
    sync_file(path)
