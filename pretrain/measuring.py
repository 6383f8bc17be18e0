"""Measuring a recipe where it will run: real steps on its real data, nothing saved, nothing validated.

The steps are those that training begins with (`Trainer`), so layout, padding, kernels, collectives and the optimizer
step are all in the figures; reading is, too. What a run does beside its steps (saving, validating) is not.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.loader import Step
from pretrain.config import Recipe
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.trainer import DONE, Trainer


@dataclass(frozen=True)
class Measurement:
    """Medians over the measured steps; of all ranks together where nothing else is said."""

    steps: int
    ranks: int
    device: str
    stage: str | None  # the first of a recipe that has stages
    seconds_per_step: float
    fastest: float
    slowest: float
    nucleotides_per_second: float
    tokens_per_second: float
    padding: float  # share of the computed tokens that are none
    tflops_per_device: float
    mfu: float | None  # None where the peak of the device is unknown
    peak_bytes: float  # of the rank that needs most: tensors on a GPU, else the whole process
    run_steps: int  # of the recipe
    run_seconds: float  # all of them at this speed


class _Enough:
    """In place of requests to stop: true once so many steps are done."""

    reason = None

    def __init__(self, steps: int) -> None:
        self.left = steps

    def requested(self) -> bool:
        return self.left <= 0


class _Measured(Trainer):
    """A trainer that keeps the figures of every step and writes no checkpoint."""

    def __init__(self, settings: Recipe, world: World, warm_up: int, steps: int):
        self.records: list[dict[str, Any]] = []
        self.warm_up, self.enough = warm_up, _Enough(warm_up + steps)
        super().__init__(settings, world, self.enough)  # type: ignore[arg-type]
        if self.total_steps < warm_up + steps:
            text = f"the recipe has {self.total_steps} steps, fewer than --warm-up {warm_up} and --steps {steps}"
            world.fail_together(PretrainError(text))

    def _log(self, step: Step, rate: float, norm: float) -> None:
        self.records.append(self.meter.record(self.peak, self.objective.figures))
        self.enough.left -= 1
        if len(self.records) == self.warm_up and self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)

    def _save(self) -> None:
        """Nothing is kept."""

    def _validate(self) -> bool:
        return True

    def _stop_early(self) -> int:
        self._close()
        return DONE


def measure(settings: Recipe, world: World, warm_up: int, steps: int) -> Measurement:
    """Train ``warm_up`` steps, which are not counted, and ``steps`` that are. All ranks together.

    Works in a directory of its own beside the runs, which is removed again. Raises DataError, ModelError or
    PretrainError as training would, and where the recipe has fewer steps.
    """
    if steps < 1 or warm_up < 0:
        world.fail_together(PretrainError("--steps must be at least 1, and --warm-up at least 0"))
    own = f".benchmark-{world.gather(os.getpid())[0]}"
    settings = without_extras(settings, own)
    place = Path(settings.run.directory) / own
    try:
        trainer = _Measured(settings, world, warm_up, steps)
        trainer.run()
        found = _measurement(trainer, world)
        world.barrier()  # until nobody writes there any more; not after a failure, which the others may not share
        return found
    finally:
        if world.first:
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # it holds other runs
                place.parent.rmdir()


def without_extras(settings: Recipe, name: str) -> Recipe:
    """The recipe of a run called ``name`` that only trains: nothing validated, tracked or rolled back."""
    run = dataclasses.replace(settings.run, name=name, resume="never")
    tracking = dataclasses.replace(settings.tracking, log_every_steps=1, wandb="disabled", tensorboard=False)
    validation = dataclasses.replace(settings.validation, sequences=0, baselines=False)
    stages = {
        stage: {section: keys for section, keys in own.items() if section != "validation"}
        for stage, own in settings.stages.items()
    }
    spikes = settings.spikes
    if spikes.action == "roll_back":  # costs as much as "report", which does not end the run
        spikes = dataclasses.replace(spikes, action="report")
    changed: dict[str, Any] = {
        "run": run,
        "tracking": tracking,
        "validation": validation,
        "spikes": spikes,
        "stages": stages,
    }
    return dataclasses.replace(settings, **changed)


def _measurement(trainer: _Measured, world: World) -> Measurement:
    records = trainer.records[trainer.warm_up :]
    seconds = [record["seconds_per_step"] for record in records]

    def middle(key: str) -> float:
        return statistics.median(record[key] for record in records)

    if world.device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(world.device))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return Measurement(
        steps=len(records),
        ranks=world.ranks,
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU",
        stage=trainer.stage.name or None,
        seconds_per_step=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        nucleotides_per_second=middle("nucleotides_per_second"),
        tokens_per_second=middle("tokens_per_second"),
        padding=middle("padding"),
        tflops_per_device=middle("tflops_per_device"),
        mfu=middle("mfu") if trainer.peak else None,
        peak_bytes=max(world.gather(peak)),
        run_steps=trainer.total_steps,
        run_seconds=trainer.total_steps * statistics.median(seconds),
    )
