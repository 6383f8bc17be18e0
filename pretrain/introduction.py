"""What a run says before it trains: what it is, what its data is, and how good trivial models are."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import recipe
from pretrain.config import Recipe
from pretrain.console import Console, quantity
from pretrain.distributed import World
from pretrain.stages import Stage
from pretrain.tracking import Tracker

TRIED = 2**25  # bytes that a disk is tried with
log = logging.getLogger("rnafoundry")


def introduce_run(
    console: Console, settings: Recipe, world: World, parameters: int, total_steps: int, origin: str
) -> None:
    """``origin``: where the weights come from, in words."""
    if recipe.model_name(settings) == "rinalmo" and world.first:
        rates = settings.objective.masked_fraction * settings.objective.mask_share
        if abs(rates - 0.12) > 1e-9:
            log.warning("masking rates are not 0.15 and 0.8, but RiNALMo's token dropout keeps its constant of 0.12")
    console.say(
        f"{settings.run.name}: {recipe.model_name(settings)} with {parameters:,} parameters on {world.ranks} "
        f"rank{'s' * (world.ranks > 1)} ({world.device.type}, {settings.compute.precision}, ZeRO "
        f"{settings.deepspeed.zero_stage}); {total_steps:,} steps; {origin}"
    )


def introduce_checkpoints(console: Console, settings: Recipe, world: World, directory: Path, size: float) -> None:
    """How large they are, how long one takes, how many there will be; a warning where the disk has no room for them.

    ``size`` in bytes, of one. One more than are kept is there while it is written. ``directory`` may not exist yet, the
    one above it does.
    """
    own = settings.checkpoint
    when = [f"every {own.every_steps:,} steps"] if own.every_steps else []
    when += [f"every {own.every_minutes:g} minutes"] if own.every_minutes is not None else []
    kept = f"{own.keep} kept" + (" and the permanent ones" if own.permanent_every_steps else "")
    seconds = _seconds_to_write(size, directory.parent) if world.first else None
    each = "" if seconds is None else f", about {seconds:.2g} s each as this disk writes"
    said = f"checkpoints of {_gigabytes(size)}{each}, {' and '.join([*when, 'at the end'])}, {kept}"
    console.say(f"  {said}")
    log.info("%s", said)
    if not world.first:
        return
    there = sum(file.stat().st_size for file in directory.glob("step-*/*"))
    room, needed = shutil.disk_usage(directory.parent).free, size * (own.keep + 1)
    if needed - there > room:
        log.warning(
            "checkpoints need %s (%d kept, and one being written), but the disk of %s has %s left; free some, set "
            "run.directory, or lower checkpoint.keep",
            *(_gigabytes(needed - there), own.keep, directory, _gigabytes(room)),
        )


def _seconds_to_write(size: float, directory: Path) -> float | None:
    """By writing TRIED bytes there, or fewer; None, with a warning, where that fails."""
    tried = min(int(size), TRIED)
    content, path, since = os.urandom(tried), directory / ".tried", time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        log.warning("%s cannot be written (%s); checkpoints will fail unless that is mended", directory, error)
        return None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return (time.perf_counter() - since) * size / max(tried, 1)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def introduce_stage(console: Console, tracker: Tracker | None, world: World, stage: Stage, step: int) -> None:
    """What it trains on, and how good trivial models are on its validation targets. All ranks together.

    Figures go into the metrics when the stage begins at ``step``, and on the screen always.
    """
    mixture, objective = stage.data.mixture, stage.data.objective
    called = f"stage {stage.name}, steps {stage.start:,} to {stage.stop:,}: " if stage.name else ""
    unit = {"alignments": "alignments", "reactivity": "profiles"}.get(objective.kind, "sequences")
    size = "columns" if objective.kind == "alignments" else "nucleotides"
    console.say(
        f"  {called}{mixture.count:,} training {unit}{_clusters(stage)}, {quantity(mixture.nucleotides)} {size}; "
        f"{stage.settings.batch.sequences} {unit} per step"
    )
    for warning in unlikely(stage) if world.first else ():
        log.warning("%s", warning)
    if hasattr(objective, "describe"):
        _describe_masking(console, tracker, world, stage, step)
    if not stage.settings.validation.baselines:
        return
    for corpus, (name, validation) in zip(mixture.corpora, stage.data.validations.items(), strict=False):
        measure = partial(validation.references, corpus)
        references: dict[str, Any] = world.together(measure if world.first else dict)
        if tracker is None:
            continue
        if step == stage.start:
            tracker.write("references", step, references | labels_of(stage, name))
        for title, figures in references.items():
            shown = "  ".join(f"{figure} {value:.4f}" for figure, value in figures.items())
            of = f" of {name}" if stage.data.mixed else ""
            console.say(f"  {title.replace('_', ' ')} on the validation targets{of}: {shown}")


def unlikely(stage: Stage) -> Iterator[str]:
    """What may be meant but seldom is: settings of a large run on a small corpus or a short budget."""
    where, settings = f"stage {stage.name}: " if stage.name else "", stage.settings
    units, n = sum(order.samples_per_epoch for order in stage.data.mixture.orders), settings.batch.sequences
    if n > units:
        yield (
            f"{where}a step of batch.sequences={n:,} is more than the {units:,} there are in an epoch, so it holds "
            "some more than once; lower batch.sequences"
        )
    warmup, steps = settings.schedule.warmup_steps, stage.schedule_stop - stage.schedule_start
    if warmup >= steps:
        yield (
            f"{where}schedule.warmup_steps={warmup:,} is not below the {steps:,} steps of the budget, so the learning "
            "rate never reaches its peak; lower it"
        )


def labels_of(stage: Stage, corpus: str) -> dict[str, str]:
    """What a record is about, where a run has several corpora or stages."""
    of_corpus = {"corpus": corpus} if stage.data.mixed else {}
    return of_corpus | ({"stage": stage.name} if stage.name else {})


def _describe_masking(console: Console, tracker: Tracker | None, world: World, stage: Stage, step: int) -> None:
    """What every level of masking does to this corpus; levels that do not do what they should are warned about."""
    measure = partial(stage.data.objective.describe, stage.data.mixture)
    report: dict[str, Any] = world.together(measure if world.first else dict)
    if tracker is None:
        return
    if step == stage.start:
        tracker.write("masking", step, report | ({"stage": stage.name} if stage.name else {}))
    for level, figures in report["levels"].items():
        letters = "  ".join(f"{letter} {share:.0%}" for letter, share in figures["composition"].items())
        console.say(f"  level {level}: {figures['masked_fraction']:.1%} masked, of these {letters}")


def _clusters(stage: Stage) -> str:
    """An epoch draws one sequence per cluster, or without clusters every sequence: that must be seen."""
    if stage.data.objective.kind == "alignments":
        return ""
    counts = [len(corpus.clusters) - 1 for corpus in stage.data.mixture.corpora if corpus.clusters is not None]
    return f" in {sum(counts):,} clusters" if counts else " (not clustered: an epoch is every one)"
