"""What a run will need and cost, before anything runs: memory by ZeRO stage, time, checkpoints, money.

Built from the recipe, the model on the meta device and the lengths of the corpus where it is there; docs/planning.md
states every formula and assumption. `plan` is for one number of GPUs, `sweep` for many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pretrain import recipe
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.gpus import GPU
from pretrain.planning_memory import States, checkpoint_bytes, states, usable
from pretrain.planning_model import ModelCost
from pretrain.planning_network import Network
from pretrain.planning_samples import Assumed, Samples, stages_of
from pretrain.planning_time import StepTime, step_time, validation_seconds

LARGEST_BUDGET = 2**26
COPY = 5e9  # bytes per second at which a rank copies what it owns into pinned memory of the host; PCIe 3 has 12e9
STAGES = (0, 1, 2, 3)


@dataclass
class Assumptions:
    """What a recipe does not say."""

    gpu: GPU
    network: Network
    mfu: float = 0.4  # of one GPU, useful arithmetic over the dense peak, as a run's log shows it
    price: float | None = None  # per GPU and hour
    disk: float = 1.0  # GB/s that all ranks together write checkpoints at
    corpus: Assumed = field(default_factory=Assumed)


@dataclass
class ZeroStage:
    """One ZeRO stage on one GPU of a run, bytes."""

    stage: int
    refused: str | None  # why a run would not start
    states: States
    peak: float  # with the recipe's micro-batch and checkpointing
    peak_kept: float  # without activation checkpointing
    peak_recomputed: float  # with it
    fits: bool
    largest: int | None  # tokens_per_micro_batch (of alignments: objective.max_tokens) that fits; None: none does


@dataclass
class StagePlan:
    """One stage of a recipe."""

    name: str
    samples: Samples
    flops: float  # per step, useful ones, of all ranks together
    tokens: float  # per step; of reactivity nucleotides
    unit: str  # what batch.tokens_per_micro_batch counts
    micro_batch: int  # the largest that a rank will have, in that unit
    activations: float  # bytes of that micro-batch, as the recipe has it
    activations_kept: float
    activations_recomputed: float
    zero: list[ZeroStage]
    time: StepTime
    validation_seconds: float  # of one

    @property
    def steps(self) -> int | None:
        return self.samples.steps

    @property
    def validations(self) -> int | None:
        """How many, the one at its end included (`Stage.validates_after`)."""
        own = self.samples.settings.validation
        if own.sequences == 0:
            return 0
        return None if self.steps is None else math.ceil(self.steps / (own.every_steps or self.steps))


@dataclass
class Plan:
    """A whole run."""

    settings: Recipe
    assumptions: Assumptions
    ranks: int
    parameters: int
    stages: list[StagePlan]
    checkpoint: float  # bytes of one
    checkpoints: int | None  # written in the run
    checkpoints_kept: int | None

    @property
    def steps(self) -> int | None:
        counts = [stage.steps for stage in self.stages]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def save_seconds(self) -> float:
        return self.checkpoint / (self.assumptions.disk * 1e9)

    @property
    def wait_seconds(self) -> float:
        """In which training waits for one checkpoint: all of it, or the copy that is then written in the background.

        Where checkpoints follow each other faster than they are written, training also waits for the one before.
        """
        own = self.settings.checkpoint
        if not own.background:
            return self.save_seconds
        between = min(stage.time.seconds for stage in self.stages) * own.every_steps
        return self.checkpoint / self.ranks / COPY + (max(self.save_seconds - between, 0) if between else 0)

    @property
    def seconds(self) -> float | None:
        """Of the whole run: steps, validations, the waits for checkpoints, and the last of them whole."""
        if self.steps is None or self.checkpoints is None:
            return None
        steps = sum((stage.steps or 0) * stage.time.seconds for stage in self.stages)
        validations = sum((stage.validations or 0) * stage.validation_seconds for stage in self.stages)
        return steps + validations + max(self.checkpoints - 1, 0) * self.wait_seconds + self.save_seconds

    @property
    def cost(self) -> float | None:
        if self.seconds is None or self.assumptions.price is None:
            return None
        return self.seconds / 3600 * self.ranks * self.assumptions.price

    @property
    def mfu(self) -> float:
        """Of all GPUs together in the longest stage, communication and imbalance included."""
        stage = max(self.stages, key=lambda one: (one.steps or 1) * one.time.seconds)
        return stage.flops / (stage.time.seconds * self.ranks * peak(self.settings, self.assumptions.gpu))


def plan(settings: Recipe, ranks: int, assumptions: Assumptions) -> Plan:
    """The plan of a recipe on ``ranks`` GPUs. Raises DataError, ModelError or PretrainError."""
    return _plan(settings, ranks, assumptions, _prepared(settings, assumptions))


def _plan(settings: Recipe, ranks: int, assumptions: Assumptions, stages: list[tuple[Samples, ModelCost]]) -> Plan:
    for samples, _ in stages:
        if ranks > samples.sequences:
            at = f"stages.{samples.stage}.batch.sequences" if samples.stage else "batch.sequences"
            raise PretrainError(
                f"--gpus {ranks} is more than {at} = {samples.sequences}: some would have nothing to do; take at most "
                f"{samples.sequences} GPUs or raise it"
            )
    plans = [_stage(samples, model, ranks, assumptions) for samples, model in stages]
    model, counts = stages[0][1], [samples.steps for samples, _ in stages]
    written = kept = None
    if None not in counts:
        steps = sum(count for count in counts if count is not None)
        written, kept = _checkpoints(settings, steps, len(stages))
    return Plan(
        settings,
        assumptions,
        ranks,
        model.parameters,
        plans,
        checkpoint_bytes(model, settings),
        written,
        kept,
    )


def sweep(settings: Recipe, ranks: list[int], assumptions: Assumptions) -> list[tuple[int, Plan | None]]:
    """A plan for each number of GPUs; None where the global batch has too few sequences for so many."""
    stages = _prepared(settings, assumptions)
    most = min(samples.sequences for samples, _ in stages)
    return [(n, _plan(settings, n, assumptions, stages) if n <= most else None) for n in ranks]


def peak(settings: Recipe, gpu: GPU) -> float:
    """FLOP/s of a GPU at the recipe's precision. Raises PretrainError if it has none."""
    if settings.compute.peak_tflops is not None:
        return settings.compute.peak_tflops * 1e12
    found = gpu.peak(settings.compute.precision)
    if found is None:
        raise PretrainError(
            f"compute.precision is {settings.compute.precision}, but a {gpu.name} has no bf16; use fp32 or another GPU"
        )
    return found


def _prepared(settings: Recipe, assumptions: Assumptions) -> list[tuple[Samples, ModelCost]]:
    peak(settings, assumptions.gpu)
    kernel = getattr(settings.model, "kernel", "auto")
    pads = kernel == "sdpa" or settings.compute.precision == "fp32" or not assumptions.gpu.tera_half
    stages = stages_of(settings, assumptions.corpus)
    return [(samples, ModelCost(samples.settings, samples.kind, pads)) for samples in stages]


def _stage(samples: Samples, model: ModelCost, ranks: int, assumptions: Assumptions) -> StagePlan:
    own = samples.settings
    budget = own.batch.tokens_per_micro_batch
    rate = peak(own, assumptions.gpu) * assumptions.mfu
    time, share = step_time(samples, model, ranks, rate, assumptions.network)
    shapes = np.unique(np.concatenate([drawn.shapes for drawn in samples.drawn]), axis=0)
    unit = {"sequences": "tokens", "alignments": "tokens of one alignment", "reactivity": "weighted nucleotides"}
    largest = min(budget, share)
    kept, recomputed = (model.worst(largest, shapes, checkpointing) for checkpointing in (False, True))
    activations = recomputed if own.model.checkpointing else kept
    room = usable(assumptions.gpu.memory_gib)
    zero = []
    for stage in STAGES:
        held = states(model, own, stage, ranks)
        refused = None
        if stage == 0 and own.compute.precision == "bf16":
            refused = "bf16 weights need ZeRO stage 1 or more"
        most = None if refused else _largest(samples, model, held, room, shapes)
        block = kept / own.model.layers
        peaks = (held.peak(activations, block * own.model.checkpointing), held.peak(kept), held.peak(recomputed, block))
        zero.append(ZeroStage(stage, refused, held, *peaks, fits=not refused and peaks[0] <= room, largest=most))
    flops = float(np.mean([model.flops(drawn.shapes).sum() for drawn in samples.drawn]))
    return StagePlan(
        samples.stage,
        samples,
        flops,
        float(np.mean([drawn.shapes.prod(axis=1).sum() for drawn in samples.drawn])),
        unit[samples.kind],
        largest,
        activations,
        kept,
        recomputed,
        zero,
        time,
        validation_seconds(samples, flops, ranks, rate),
    )


def _largest(samples: Samples, model: ModelCost, held: States, room: float, shapes: np.ndarray) -> int | None:
    """The largest batch.tokens_per_micro_batch whose worst micro-batch fits; of alignments objective.max_tokens."""
    if samples.kind == "alignments":
        columns = samples.settings.objective.max_columns
        least = columns

        def activations(budget: int) -> int:
            return model.activations(np.array([[budget // columns, columns]]))
    else:
        least = int(max(drawn.costs.max() for drawn in samples.drawn))

        def activations(budget: int) -> int:
            return model.worst(budget, shapes)

    if held.peak(activations(least)) > room:
        return None
    low, high = least, LARGEST_BUDGET
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if held.peak(activations(middle)) <= room else (low, middle)
    return low


def _checkpoints(settings: Recipe, steps: int, stages: int) -> tuple[int, int]:
    """(how many are written in a run, how many are kept in the end), those by the clock aside."""
    own = settings.checkpoint
    written = (steps - 1) // own.every_steps if own.every_steps else 0
    written += stages  # the end of each
    permanent = 0
    if own.permanent_every_steps and own.every_steps:
        permanent = steps // int(np.lcm(own.permanent_every_steps, own.every_steps))
    return written, min(written, own.keep + permanent)


def described(found: Plan) -> str:
    """One line: what is planned."""
    settings = found.settings
    return (
        f"{settings.run.name}: {recipe.model_name(settings)}, {found.parameters:,} parameters, "
        f"{settings.compute.precision}, ZeRO {settings.deepspeed.zero_stage}, {settings.optimizer.name}"
    )
