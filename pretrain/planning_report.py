"""A plan as plain numbers for `--json`, and its assumptions in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pretrain import recipe
from pretrain.planning import Plan, StagePlan, ZeroStage, peak
from pretrain.planning_memory import CONTEXT, FRAGMENTED, usable

Swept = list[tuple[int, Plan | None]]


def as_json(found: Plan, swept: Swept) -> str:
    content = as_dict(found)
    if swept:
        content["sweep"] = [sweep_row(ranks, one) for ranks, one in swept]
    return json.dumps(content, indent=1)


def as_dict(found: Plan) -> dict[str, Any]:
    """Bytes, seconds and FLOPs, as numbers; None where something is not known."""
    own, settings = found.assumptions, found.settings
    return {
        "run": settings.run.name,
        "model": recipe.model_name(settings),
        "parameters": found.parameters,
        "precision": settings.compute.precision,
        "optimizer": settings.optimizer.name,
        "zero_stage": settings.deepspeed.zero_stage,
        "checkpointing": settings.model.checkpointing,
        "gpus": found.ranks,
        "gpu": asdict(own.gpu),
        "network": asdict(own.network),
        "usable_bytes": usable(own.gpu.memory_gib),
        "mfu_of_one_gpu": own.mfu,
        "mfu_of_all": found.mfu,
        "steps": found.steps,
        "seconds": found.seconds,
        "days": None if found.seconds is None else found.seconds / 86400,
        "gpu_hours": None if found.seconds is None else found.seconds / 3600 * found.ranks,
        "price_per_gpu_hour": own.price,
        "cost": found.cost,
        "checkpoint_bytes": found.checkpoint,
        "checkpoint_seconds": found.save_seconds,
        "checkpoint_wait_seconds": found.wait_seconds,
        "checkpoints_written": found.checkpoints,
        "checkpoints_kept": found.checkpoints_kept,
        "stages": [_stage(stage) for stage in found.stages],
        "assumptions": assumptions(found),
    }


def _stage(stage: StagePlan) -> dict[str, Any]:
    return {
        "name": stage.name,
        "steps": stage.steps,
        "sequences_per_step": stage.samples.sequences,
        "tokens_per_step": stage.tokens,
        "flops_per_step": stage.flops,
        "epochs": stage.samples.epochs,
        "validations": stage.validations,
        "validation_sequences": stage.samples.held_out,
        "validation_seconds": stage.validation_seconds,
        "micro_batch": stage.micro_batch,
        "micro_batch_unit": stage.unit,
        "activation_bytes": stage.activations,
        "activation_bytes_without_checkpointing": stage.activations_kept,
        "activation_bytes_with_checkpointing": stage.activations_recomputed,
        "seconds_per_step": stage.time.seconds,
        "time": asdict(stage.time),
        "zero": [_zero(one) for one in stage.zero],
    }


def _zero(one: ZeroStage) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "refused": one.refused,
        **asdict(one.states),
        "peak": one.peak,
        "peak_without_checkpointing": one.peak_kept,
        "peak_with_checkpointing": one.peak_recomputed,
        "fits": one.fits,
        "largest_micro_batch": one.largest,
    }


def sweep_row(ranks: int, found: Plan | None) -> dict[str, Any]:
    """Of the stage with the longest steps; None where there are more GPUs than sequences in a step."""
    if found is None:
        return {"gpus": ranks, "possible": False}
    stage = longest(found)
    now = stage.zero[found.settings.deepspeed.zero_stage]
    return {
        "gpus": ranks,
        "possible": True,
        "stage": stage.name,
        **asdict(stage.time),
        "seconds_per_step": stage.time.seconds,
        "mfu_of_all": found.mfu,
        "micro_batch": stage.micro_batch,
        "peak": now.peak,
        "fits": now.fits,
        "days": None if found.seconds is None else found.seconds / 86400,
        "cost": found.cost,
    }


def longest(found: Plan) -> StagePlan:
    """The stage with the longest steps."""
    return max(found.stages, key=lambda stage: stage.time.seconds)


def assumptions(found: Plan) -> list[str]:
    """What the figures rest on, in sentences."""
    own = found.assumptions
    lines = [
        f"{'stage ' + stage.name + ': ' if stage.name else ''}{stage.samples.assumed}."
        for stage in found.stages
        if stage.samples.assumed
    ]
    if found.steps is None:
        lines.append(
            "How long an epoch is nobody knows before the data is there: give --epoch-samples for days and cost."
        )
    lines.append(
        f"One GPU does arithmetic at {own.mfu:.0%} of {peak(found.settings, own.gpu) / 1e12:.0f} TFLOP/s (--mfu, "
        "as a log shows it"
        + (", and recomputation counts as lost time)." if found.settings.model.checkpointing else ").")
    )
    lines.append(
        f"Of {own.gpu.memory_gib:g} GiB, {CONTEXT / 2**30:.1f} GiB go to CUDA and NCCL and {FRAGMENTED:.0%} to "
        "fragmentation; activations are those of the eager model with a fused attention kernel."
    )
    lines.append(
        "A validation is a forward pass of its samples, taken to be as large as those of training; of "
        "profiles two, where training flips them."
    )
    lines.append("The time of reading data at the start and of waiting for a queue is not counted.")
    return lines
