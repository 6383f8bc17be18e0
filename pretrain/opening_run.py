"""Opening a run, a new one or the one that its directory holds, up to the moment before its first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from data.secrets import masked_content
from pretrain import initialise, recipe, run_tokenizer, stages
from pretrain.checkpoint import Checkpoint, Progress
from pretrain.config import Recipe
from pretrain.distributed import World
from pretrain.engine import Engine, check_deepspeed_config
from pretrain.products import choose_products
from pretrain.run import RunDirectory, require_same_run
from pretrain.run_lock import RunLock
from pretrain.saving import rotate
from pretrain.stages import Stage
from pretrain.tracking import Tracker, forget_after, last_validation

log = logging.getLogger("rnafoundry")


@dataclass
class Run:
    """A run on this rank, ready to train."""

    directory: RunDirectory
    stages: list[Stage]
    progress: Progress
    engine: Engine
    parameters: int  # of the model
    origin: str  # where its weights come from, in words
    resumed: bool
    validated_step: int  # the last that was validated; -1 if none was
    tracker: Tracker | None  # of rank 0
    lock: RunLock | None  # of rank 0

    @property
    def stage(self) -> Stage:
        """The one that the next step belongs to."""
        return stages.stage_at(self.stages, self.progress.step) if self.resumed else self.stages[0]


def open_run(settings: Recipe, world: World) -> Run:
    """All ranks together. Raises DataError, ModelError or PretrainError; on several ranks, one of them tells it."""
    directory = RunDirectory(settings)
    world.together(directory.create if world.first else lambda: None)
    longest = 0.5 * 60 * settings.compute.timeout_minutes  # the other ranks wait for this one
    lock = world.together(lambda: RunLock(directory.path, longest) if world.first else None)
    try:
        return _open(settings, world, directory, lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _open(settings: Recipe, world: World, directory: RunDirectory, lock: RunLock | None) -> Run:
    world.together(lambda: directory.start_log(world.rank))
    if lock is not None and lock.unsupported:
        log.warning("%s", lock.unsupported)
    opened = world.together(lambda: stages.open_stages(settings, world))
    fingerprint = world.together(lambda: stages.fingerprint(opened))
    world.require_same(fingerprint, "corpus fingerprint")
    found = directory.to_resume(settings.run.resume, world)
    progress = Progress(step=0, fingerprint=fingerprint)
    if found is not None:
        progress = world.together(lambda: _continue(found, settings, opened, fingerprint))
    world.together(lambda: check_deepspeed_config(settings))
    model, origin = world.together(lambda: _initial_model(settings, found, progress))
    parameters = sum(p.numel() for p in model.parameters())
    if world.device.type == "cpu":
        choose_products(model)
    engine = Engine(model, settings, world)
    if found is not None:
        world.together(lambda: found.restore(engine))
    if world.first:  # kills between a save and its rotation, one after the other, would fill the disk
        rotate(directory.checkpoints, settings.checkpoint.keep, settings.checkpoint.permanent_every_steps)
    world.together(lambda: directory.describe(settings, world) if world.first else None)
    if found is None or found.path.parent != directory.checkpoints:
        tokenizer = opened[0].data.objective.alphabet
        world.together(lambda: run_tokenizer.keep(directory.path, tokenizer) if world.first else None)
    world.together(lambda: forget_after(directory.path, progress.step) if world.first else None)
    validated = last_validation(directory.path) if world.first else 0
    tracker = world.together(lambda: _start_tracker(settings, directory, progress) if world.first else None)
    validated = int(world.sum([validated])[0])
    return Run(directory, opened, progress, engine, parameters, origin, found is not None, validated, tracker, lock)


def _continue(found: Checkpoint, settings: Recipe, opened: list[Stage], fingerprint: str) -> Progress:
    run_tokenizer.require_same(found.path.parent.parent, opened[0].data.objective.alphabet)
    for change in require_same_run(found, settings, fingerprint):
        log.warning("continuing with a changed recipe: %s", change)
    found.progress.fingerprint = fingerprint
    return found.progress


def _initial_model(settings: Recipe, found: Checkpoint | None, progress: Progress) -> tuple[torch.nn.Module, str]:
    model = initialise.build_model(settings)
    if found is not None:
        model.load_state_dict(found.weights())
        return model, f"continuing {found.path} at step {progress.step}"
    if settings.init_from:
        progress.origin = initialise.load_initial(model, settings)
        return model, f"weights from {settings.init_from}"
    return model, f"new weights from seed {settings.run.seed}"


def _start_tracker(settings: Recipe, directory: RunDirectory, progress: Progress) -> Tracker:
    content = masked_content(recipe.to_dict(settings))
    return Tracker(directory.path, settings.tracking, settings.run.name, content, progress.tracker, progress.step)
