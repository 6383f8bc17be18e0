"""How long steps and validations take: arithmetic of the busiest rank, and waiting for the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.layout import plan_step
from pretrain.planning_model import ModelCost
from pretrain.planning_network import Network, step_seconds
from pretrain.planning_samples import Samples


@dataclass
class StepTime:
    """Seconds of a step on some number of GPUs."""

    ranks: int
    compute: float  # of the busiest rank
    communication: float  # that arithmetic does not hide
    micro_batches: float  # per rank
    balance: float  # mean work of a rank over that of the busiest

    @property
    def seconds(self) -> float:
        return self.compute + self.communication


def step_time(samples: Samples, model: ModelCost, ranks: int, rate: float, network: Network) -> tuple[StepTime, int]:
    """(seconds of a step; the largest micro-batch that any rank has, in the unit of the budget).

    rate: FLOP/s that one GPU really does.
    """
    own = samples.settings
    stage, budget = own.deepspeed.zero_stage, own.batch.tokens_per_micro_batch
    compute, micro_batches, balance, largest = [], [], [], 0
    for drawn in samples.drawn:
        flops = model.flops(drawn.shapes)
        layout = plan_step(drawn.costs, ranks, budget, samples.alone, samples.padded)
        work = np.array([[flops[batch].sum() for batch in mine] for mine in layout])  # [ranks, micro-batches]
        # Ranks wait for each other in every micro-batch where its backward pass has collectives, else in the step.
        busiest = work.max(axis=0).sum() if stage >= 2 else work.sum(axis=1).max()
        compute.append(busiest / rate)
        balance.append(work.sum() / ranks / busiest)
        micro_batches.append(work.shape[1])
        largest = max(largest, *(int(drawn.costs[batch].sum()) for mine in layout for batch in mine))
    seconds, count = float(np.mean(compute)), float(np.mean(micro_batches))
    waiting = step_seconds(model, own, stage, ranks, network, count, seconds)
    return StepTime(ranks, seconds, waiting, count, float(np.mean(balance))), largest


def validation_seconds(samples: Samples, flops: float, ranks: int, rate: float) -> float:
    """Of one validation: forward passes over its samples, taken to be as large as those of training, shared evenly.

    flops: of a step of training, all ranks together; a third of them are the forward pass.
    """
    return samples.validation_passes * samples.held_out / samples.sequences * flops / 3 / (ranks * rate)
