"""Seconds that ranks spend on each other: rings over the slowest link, with the volumes of each ZeRO stage.

A ring over N ranks moves (N - 1) / N of a tensor through every link for a reduce-scatter or an all-gather, and twice
that for an all-reduce. The link is that within a node as long as all ranks fit into one, else the slower of the two,
at 80 % of its nominal rate. Volumes are those of DeepSpeed 0.19.8 under pretrain/engine.py (measured,
tests/pretrain/test_planning.py), S being parameters, e bytes of a weight (2 in bf16, else 4) and M micro-batches:

    stage 0   all-reduce 4 S                                     once per step
    stage 1   all-reduce 4 S, all-gather e S                     once per step
    stage 2   all-reduce 4 S of every micro-batch; all-gather e S once per step
    stage 3   reduce-scatter 4 S and all-gather e S of every micro-batch, and again what was let go of meanwhile

Nothing overlaps with arithmetic, but for stage 2 with `overlap_comm`: there the backward pass, two thirds of a
micro-batch's time, hides what fits. Latency, congestion and stragglers are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import Recipe
from pretrain.planning_memory import gathered_parameters, zero_options
from pretrain.planning_model import ModelCost

LINK_EFFICIENCY = 0.8
BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Network:
    """One direction, per GPU, in GB/s."""

    intra: float
    inter: float
    per_node: int

    def seconds(self, volume: float, ranks: int, passes: int) -> float:
        """To move ``volume`` bytes around a ring: 1 pass is a reduce-scatter or all-gather, 2 an all-reduce."""
        if ranks == 1:
            return 0.0
        rate = self.intra if ranks <= self.per_node else min(self.intra, self.inter)
        return passes * (ranks - 1) / ranks * volume / (rate * 1e9 * LINK_EFFICIENCY)


@dataclass
class Traffic:
    """Bytes of tensors that go around, and how."""

    reduced: float  # per micro-batch (stages 2 and 3) or per step
    reduce_passes: int  # 2: all-reduce, 1: reduce-scatter
    per_micro_batch: bool
    gathered: float  # all-gathers per step
    gathered_per_micro_batch: float
    overlaps: bool


def traffic(model: ModelCost, settings: Recipe, stage: int) -> Traffic:
    """Of a step at a ZeRO stage, for any number of ranks."""
    p, weight = model.parameters, 2 if settings.compute.precision == "bf16" else 4
    options = zero_options(settings)
    if stage < 3:
        overlaps = stage == 2 and bool(options.get("overlap_comm"))
        return Traffic(4.0 * p, 2, stage == 2, weight * p * (stage > 0), 0.0, overlaps)
    again = p - gathered_parameters(model, options)
    return Traffic(4.0 * p, 1, True, 0.0, weight * (p + again), False)


def step_seconds(
    model: ModelCost, settings: Recipe, stage: int, ranks: int, network: Network, micro_batches: float, compute: float
) -> float:
    """Seconds of communication per step that arithmetic does not hide; ``compute`` are the seconds of arithmetic."""
    moved = traffic(model, settings, stage)
    times = micro_batches if moved.per_micro_batch else 1.0
    reducing = times * network.seconds(moved.reduced, ranks, moved.reduce_passes)
    if moved.overlaps:
        reducing = max(reducing - BACKWARD_SHARE * compute, 0.0)
    gathered = moved.gathered + micro_batches * moved.gathered_per_micro_batch
    return reducing + network.seconds(gathered, ranks, 1)
