"""A checkpoint written in one go, for tests that are about what is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoint import Progress
from pretrain.distributed import World
from pretrain.saving import Saver

ALL = 10**9  # checkpoints that rotation keeps


def save(directory: Path, engine: Any, progress: Progress, recipe_yaml: str, world: World) -> Path:
    saver = Saver(directory, engine, world, ALL, None, recipe_yaml)
    saver.begin(progress)
    saved = saver.finish()
    assert saved is not None
    return saved.path
