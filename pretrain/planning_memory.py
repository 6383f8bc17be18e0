"""Bytes that training holds on one GPU besides activations, by ZeRO stage, precision and optimizer.

What DeepSpeed 0.19.8 really allocates under pretrain/engine.py (measured, tests/pretrain/test_planning.py), which is
more than the textbook's 16 bytes per parameter over the ranks: stage 1 and up keep fp32 masters beside fp32 weights
too, and a reduction bucket is allocated whole, however small the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.config import Recipe
from pretrain.engine import deepspeed_config
from pretrain.optim import state_kinds
from pretrain.planning_model import ModelCost

BUCKET = 500_000_000  # elements, DeepSpeed's default of reduce_bucket_size
PERSISTENT = 100_000  # elements below which stage 3 keeps a tensor whole, DeepSpeed's default
REUSE = 1_000_000_000  # elements: stage 3 keeps a gathered tensor that is used again within so many, by default
CONTEXT = 1.2 * 2**30  # CUDA context, NCCL and cuBLAS workspaces
FRAGMENTED = 0.04  # of the GPU's memory, lost between the allocator's blocks


@dataclass
class States:
    """Bytes on one GPU."""

    weights: float  # as the model computes with them; at stage 3 with those that are gathered
    gradients: float
    masters: float  # fp32 copies of the weights, where the optimizer has its own
    optimizer: float  # moments; Ranger's slow weights
    casts: float  # bf16 copies that autocast makes in a forward pass and keeps for the backward pass
    buckets: float  # of gradients on their way to other ranks, and their copies
    step: float  # the update's own temporaries, when activations are gone

    def peak(self, activations: float, block: float = 0.0) -> float:
        """The most that is held at once: in the backward pass, or in the optimizer's step.

        ``block``: what one of the blocks keeps, where blocks are recomputed. The copies for the whole model exist at
        the end of the forward pass, when no block is kept; when one is, only its own do.
        """
        casts = max(self.casts - block, 0.0) if block else self.casts
        return self.held + max(casts + self.buckets + activations, self.step)

    @property
    def held(self) -> float:
        """Between backward pass and step, without buckets."""
        return self.weights + self.gradients + self.masters + self.optimizer


def states(model: ModelCost, settings: Recipe, stage: int, ranks: int) -> States:
    """Of a recipe on ``ranks`` GPUs at a ZeRO ``stage``. Not for bf16 weights at stage 0, which is refused."""
    n, p, precision = ranks, model.parameters, settings.compute.precision
    weight = 2 if precision == "bf16" else 4
    kinds = 4.0 * len(state_kinds(settings.optimizer))
    casts = 2.0 * model.cast if precision == "bf16_autocast" else 0.0
    options = zero_options(settings)
    slow = 4.0 * p * (settings.optimizer.name == "ranger")  # the square root of the second moments
    bucket = int(options.get("reduce_bucket_size", BUCKET))
    filled = min(bucket, p)
    if stage == 0:
        return States(weight * p, 4.0 * p, 0, kinds * p, casts, 0, max(4.0 * min(p, BUCKET), slow))
    buffers = bucket * (2 if stage == 2 and options.get("overlap_comm") else 1)
    masters, moments = 4.0 * p / n, kinds * p / n
    if stage == 1:  # gradients accumulate whole, in the precision of the weights, and are reduced in the step
        return States(
            weight * p, weight * p, masters, moments, casts, weight * buffers, weight * buffers + 4.0 * p / n + slow / n
        )
    gradients = 4.0 * p / n
    if stage == 2:
        # The bucket is filled in the precision of the weights and copied to fp32 on its way.
        return States(
            weight * p, gradients, masters, moments, casts, weight * buffers + 4.0 * filled, gradients + slow / n
        )
    gathered = weight * gathered_parameters(model, options) * (n > 1)
    whole = 4.0 * buffers
    return States(
        weight * p / n + gathered,
        gradients,
        masters,
        moments,
        casts,
        whole + 4.0 * filled,
        whole + gradients + slow / n,
    )


def gathered_parameters(model: ModelCost, options: dict[str, Any]) -> int:
    """Parameters that are whole at once under stage 3: those that persist, and those soon used again.

    From its use in the forward pass to that in the backward pass a parameter at place x from the end is 2 x parameters
    away; within the reuse distance it is kept.
    """
    threshold = int(options.get("stage3_param_persistence_threshold", PERSISTENT))
    persistent = sum(size for size in model.sizes if size < threshold)
    reuse = int(options.get("stage3_max_reuse_distance", REUSE)) // 2
    live = min(reuse, int(options.get("stage3_max_live_parameters", REUSE)))
    return min(model.parameters, persistent + max(live, 2 * model.largest))


def zero_options(settings: Recipe) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` as a run of the recipe has it."""
    found: dict[str, Any] = deepspeed_config(settings)["zero_optimization"]
    return found


def usable(memory_gib: float) -> float:
    """Bytes of a GPU's memory that tensors can have."""
    return memory_gib * 2**30 * (1 - FRAGMENTED) - CONTEXT


def checkpoint_bytes(model: ModelCost, settings: Recipe) -> float:
    """fp32 weights and optimizer states, whatever ranks, stage and precision."""
    return 4.0 * model.parameters * (1 + len(state_kinds(settings.optimizer)))
