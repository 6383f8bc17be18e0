"""Checkpoints that do not depend on ranks or ZeRO stage, without pickle, complete or absent.

A checkpoint is a directory `step-00001200/` with `checkpoint.json`, the run's `recipe.yaml`, and one safetensors file
per rank that wrote it. A file holds fragments: the key `exp_avg|blocks.0.attn.out.weight|4096` is the part of that
tensor, flattened, that begins at place 4096. Any number of ranks at any stage reads just the fragments it needs.

The manifest holds the hash of every file and of itself and is canonical JSON, so a changed byte anywhere is noticed.
How a checkpoint is written, and old ones removed, is in pretrain/saving.py.
"""

from __future__ import annotations

import bisect
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.manifest import file_sha256, sealed
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.errors import PretrainError

FORMAT = 2  # 2: checkpoint.json holds its own hash
MANIFEST = "checkpoint.json"
RECIPE = "recipe.yaml"
WEIGHT = "weight"
log = logging.getLogger("rnafoundry")


@dataclass
class Progress:
    """Where a run stands: everything besides weights and optimizer that resuming needs."""

    step: int  # steps done
    fingerprint: str  # of the corpus
    sequences: int = 0
    nucleotides: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0  # of training, over all starts of the run
    skipped_steps: int = 0  # steps whose gradient was not finite
    spikes: int = 0  # steps whose loss jumped
    left_out_steps: int = 0  # steps not trained on after rolling back
    recent_losses: list[float] = field(default_factory=list)  # what a loss is compared with: pretrain/spikes.py
    optimizer_steps: int = 0
    origin: dict[str, Any] | None = None  # what init_from gave: see pretrain/initialise.py:origin_of
    tracker: dict[str, str] = field(default_factory=dict)  # ids of external trackers, so that a resumed run is one run


class Checkpoint:
    """A complete checkpoint on disk. Opening checks the manifest and that every file is there with its size.

    Raises PretrainError with a sentence when it is not complete; ``verify`` checks the content too. ``sha256`` is that
    of the manifest, and so identifies the whole content.
    """

    def __init__(self, path: Path):
        self.path = path
        manifest = self._read_manifest()
        self.progress = Progress(**manifest["progress"])
        self.shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        self.written_by = manifest["written_by"]
        self.files: list[dict[str, Any]] = manifest["files"]
        self.sha256: str = manifest["sha256"]
        self._recipe_sha256 = manifest["recipe_sha256"]
        if not self.recipe_path.is_file():
            raise PretrainError(f"the checkpoint {path} lacks its file {RECIPE}; use another checkpoint")
        for file in self.files:
            found = path / file["name"]
            if not found.is_file():
                raise PretrainError(f"the checkpoint {path} lacks its file {file['name']}; use another checkpoint")
            if found.stat().st_size != file["bytes"]:
                raise PretrainError(
                    f"{found} has {found.stat().st_size} bytes, but {MANIFEST} says {file['bytes']}; use "
                    "another checkpoint"
                )
        self._index: dict[tuple[str, str], list[tuple[int, str]]] | None = None

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.is_file():
            raise PretrainError(
                f"{self.path} is not a complete checkpoint: it has no {MANIFEST}; use another checkpoint"
            )
        try:
            content = path.read_bytes()
            manifest: dict[str, Any] = json.loads(content)
            found = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise PretrainError(f"{path} is damaged ({error}); use another checkpoint") from error
        if found != FORMAT:
            raise PretrainError(f"{path} has format {found!r}, but this version reads format {FORMAT}")
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        if _sealed_or_none(body) != content:
            raise PretrainError(f"{path} is damaged: it does not match its own hash; use another checkpoint")
        return manifest

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE

    def verify(self, world: World | None = None) -> None:
        """Compare every file with its hash; with a world, each rank takes its share of the files."""

        def mine() -> None:
            first, apart = (world.rank, world.ranks) if world else (0, 1)
            expected = [(RECIPE, self._recipe_sha256), *((file["name"], file["sha256"]) for file in self.files)]
            for name, sha256 in expected[first::apart]:
                try:
                    found = file_sha256(self.path / name)
                except OSError as error:
                    raise PretrainError(
                        f"{self.path / name} cannot be read ({error}); use another checkpoint"
                    ) from error
                if found != sha256:
                    raise PretrainError(
                        f"{self.path / name} is damaged: its content does not match its hash; use another checkpoint "
                        "(run.resume=auto passes over this one)"
                    )

        world.together(mine) if world else mine()

    def read(self, kind: str, name: str, start: int, n: int) -> Tensor:
        """[n] fp32: places [start, start + n) of the flattened tensor ``kind`` of parameter ``name``."""
        if self._index is None:
            self._index = self._fragment_index()
        pieces = self._index.get((kind, name))
        if not pieces:
            raise PretrainError(f"the checkpoint {self.path} has no {kind} of {name}; it belongs to another model")
        result, filled = torch.empty(n, dtype=torch.float32), 0
        at = bisect.bisect_right([begin for begin, _ in pieces], start) - 1
        while filled < n:
            if at >= len(pieces):
                raise PretrainError(f"the checkpoint {self.path} holds {kind} of {name} only in part")
            begin, file = pieces[at]
            with safe_open(self.path / file, framework="pt") as opened:
                fragment = opened.get_slice(f"{kind}|{name}|{begin}")
                size = fragment.get_shape()[0]
                a = start + filled - begin
                b = min(size, start + n - begin)
                if a < b:
                    result[filled : filled + b - a] = fragment[a:b]
                    filled += b - a
            at += 1
        return result

    def contents(self) -> set[tuple[str, str]]:
        """(kind, parameter) of everything that `read` gives."""
        if self._index is None:
            self._index = self._fragment_index()
        return set(self._index)

    def _fragment_index(self) -> dict[tuple[str, str], list[tuple[int, str]]]:
        """(kind, parameter) -> its fragments, ascending by place: (place, file name)."""
        index: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for file in self.files:
            try:
                with safe_open(self.path / file["name"], framework="pt") as opened:
                    keys = list(opened.keys())
            except SafetensorError as error:
                raise PretrainError(
                    f"{self.path / file['name']} is damaged ({error}); use another checkpoint"
                ) from error
            for key in keys:
                kind, name, start = key.split("|")
                index.setdefault((kind, name), []).append((int(start), file["name"]))
        for pieces in index.values():
            pieces.sort()
        return index

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, whole, in fp32."""
        return {
            name: self.read(WEIGHT, name, 0, int(torch.Size(shape).numel())).reshape(shape)
            for name, shape in self.shapes.items()
        }

    def restore(self, engine: Engine) -> None:
        """Put masters, optimizer state and step count into ``engine``, whose model already has these weights."""
        for fragment in engine.fragments():
            n = fragment.master.numel()
            fragment.master.copy_(self.read(WEIGHT, fragment.name, fragment.start, n))
            for kind in engine.kinds:
                fragment.states[kind].copy_(self.read(kind, fragment.name, fragment.start, n))
        engine.optimizer_steps = self.progress.optimizer_steps


def _sealed_or_none(body: dict[str, Any]) -> bytes | None:
    """The bytes that a manifest with this content must have; None if no manifest can have it (it holds a NaN)."""
    try:
        return sealed(body)
    except ValueError:
        return None


def is_step_directory(path: Path) -> bool:
    """Whether ``path`` is named like a checkpoint, complete or not."""
    return path.is_dir() and re.fullmatch(r"step-\d+", path.name) is not None


def steps_on_disk(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything that is named like a checkpoint, newest first."""
    found = []
    for path in directory.glob("step-*"):
        if is_step_directory(path):
            found.append((int(path.name.removeprefix("step-")), path))
    return sorted(found, reverse=True)


def newest(directory: Path) -> Checkpoint | None:
    """The newest complete checkpoint; incomplete ones are passed over with a warning. None if there is none at all.

    Contents are not compared with their hashes here: see ``verify``, and pretrain/resuming.py for what a run continues.
    Raises PretrainError when there are checkpoints but not one is complete: training must not restart from zero unseen.
    """
    problems = []
    for _, path in steps_on_disk(directory):
        try:
            return Checkpoint(path)
        except PretrainError as error:
            log.warning("passing over a checkpoint: %s", error)
            problems.append(str(error))
    if problems:
        raise PretrainError(
            f"no checkpoint in {directory} is complete ({problems[0]}); to start over, remove the directory or choose "
            "another run.name"
        )
    return None


def is_complete(path: Path) -> bool:
    """Whether ``path`` is a checkpoint with all its files; their contents are not read."""
    try:
        Checkpoint(path)
    except PretrainError:
        return False
    return True
