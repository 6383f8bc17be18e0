"""Which checkpoint a run continues from: the newest whose every byte is as it was written.

All ranks decide together and read each file once: rank r hashes every N-th file. What is passed over is renamed to
`step-NNNNNNNN.damaged` and stays for a person to look at; under its own name it would take the place of a good one when
old checkpoints are removed.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pretrain.checkpoint import Checkpoint, steps_on_disk
from pretrain.distributed import World
from pretrain.errors import PretrainError

DAMAGED = ".damaged"
log = logging.getLogger("rnafoundry")


def open_verified(path: Path, world: World) -> Checkpoint:
    """The checkpoint ``path``, compared with its hashes by all ranks together.

    Raises PretrainError on every rank when it is incomplete or damaged for any of them.
    """
    found = world.together(lambda: Checkpoint(path))
    found.verify(world)
    return found


def newest_good(directory: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint in ``directory`` that is complete and undamaged; None if there is none of any kind.

    Newer ones that are not good are passed over with a warning and set aside. Raises PretrainError on every rank when
    there are checkpoints but not one is good: training must not restart from zero unseen.
    """
    paths = [path for _, path in steps_on_disk(directory)]
    world.require_same(" ".join(path.name for path in paths), f"checkpoints in {directory}")
    problems: dict[Path, str] = {}
    for path in paths:
        try:
            found = open_verified(path, world)
        except PretrainError as error:
            log.warning("passing over a checkpoint: %s", error)
            problems[path] = str(error)
            continue
        world.together(lambda: _set_aside(problems) if world.first else None)
        return found
    if problems:
        text = (
            f"no checkpoint in {directory} is complete and undamaged ({next(iter(problems.values()))}); to start over, "
            "remove the directory or choose another run.name"
        )
        world.fail_together(PretrainError(text))
    return None


def _set_aside(problems: dict[Path, str]) -> None:
    for path in problems:
        aside = path.with_name(path.name + DAMAGED)
        try:
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
        except OSError as error:
            raise PretrainError(
                f"the checkpoint {path} is damaged and cannot be renamed to {aside.name} ({error}); mend the directory"
            ) from error
        log.warning("%s is now called %s; remove it when nobody needs to look at it", path, aside.name)
