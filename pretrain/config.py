"""The recipe: every key a run understands, with its default and what it does.

A recipe file is YAML with these sections; `model` and `objective` are checked against the dataclass of the model and
objective that their `name` selects (pretrain/recipe.py). Defaults here are ours; published numbers stand in configs/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class RunConfig:
    name: str = MISSING  # the run directory is directory/name; the recipe file's name unless given
    directory: str = "runs"  # on several nodes one that all of them share
    seed: int = 42  # decides initial weights, order, crops, masks and dropout
    resume: str = "auto"  # auto: continue the newest complete checkpoint; never: refuse if the run exists; or a path


@dataclass
class MixtureSource:
    """One corpus of a mixture."""

    corpus: str = MISSING  # as data.corpus
    weight: float = 1.0  # share of every global batch, relative to the others'
    name: str | None = None  # in metrics; the last part of `corpus` unless given


@dataclass
class DataConfig:
    """Exactly one of `corpus` and `mixture`."""

    corpus: str | None = None  # a directory made by launch/prepare.py, or the url of one
    mixture: list[MixtureSource] = field(default_factory=list)  # several corpora, each with its weight and epochs
    validation: str | None = None  # the corpus whose held-out split is validated on; null: that of every corpus
    cache: str | None = None  # node-local directory the corpus is copied to, once per node; null reads it in place
    cache_gigabytes: float | None = None  # limit of the whole cache, 1e9 bytes; null for none
    structures: str | None = None  # dot-bracket file; objectives that mask pairs use it where it has the sequence
    allow_pipe: bool = False  # run the command of a corpus given as pipe:COMMAND
    allow_changed: bool = False  # resume although the corpus is not the one the checkpoint was trained on


@dataclass
class BatchConfig:
    sequences: int = MISSING  # samples per global batch, whatever the number of ranks; alignments or profiles too
    tokens_per_micro_batch: int = 16384  # memory against speed; does not change which samples and masks a step has


@dataclass
class BudgetConfig:
    """Exactly one of the two."""

    steps: int | None = None  # of the optimizer, each on one global batch
    epochs: float | None = None  # passes over the training split; rounded up to whole steps


@dataclass
class OptimizerConfig:
    """AdamW, or Ranger: RAdam, centralised gradients and lookahead (pretrain/ranger.py)."""

    name: str = "adamw"  # or ranger
    learning_rate: float = MISSING  # the peak of the schedule
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # decay of both moments
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.01  # decoupled from the gradient
    # matrices: parameters of two or more dimensions; all_but_norms: everything else too, but norms and what no output
    # depends on (RNA-MSM's row embedding); all: every parameter
    decayed: str = "matrices"
    lookahead_steps: int = 6  # of Ranger: how often fast and slow weights meet
    lookahead_share: float = 0.5  # of Ranger: how far the slow weights then go towards the fast ones
    gradient_clipping: float = 1.0  # global norm; 0 switches it off
    clip_before_centralising: bool = False  # of Ranger: the authors' order; at ZeRO stage 0 alone
    stop_after_skipped: int = 50  # steps in a row that are skipped, their gradient not being finite, end the run


@dataclass
class SpikeConfig:
    """Steps whose loss jumps. A spread is the median deviation from the median (pretrain/spikes.py)."""

    action: str = "report"  # ignore; report; or roll_back: to the newest checkpoint, leaving the step out from then on
    window: int = 200  # steps that the median and the spread are taken over
    threshold: float = 10.0  # spreads above the median
    leave_out_steps: int = 1  # with roll_back: how many steps, the last of them the spike
    most: int = 5  # with roll_back: how often before the run is given up


@dataclass
class ScheduleConfig:
    """Linear warm-up from warmup_start to the peak, then `name`. Values are learning rates and optimizer steps."""

    name: str = "cosine"  # cosine or linear (after the warm-up), trapezoid (linear, at the end), or constant
    warmup_steps: int = 0  # from warmup_start to the peak
    warmup_start: float = 0.0  # the learning rate of the first step
    minimum: float = 0.0  # where the decay ends and the learning rate then stays
    decay_steps: int | None = None  # length of the decay; the whole budget after the warm-up unless given
    decay_epochs: float | None = None  # the same in passes over the training split


@dataclass
class ComputeConfig:
    precision: str = "fp32"  # fp32; bf16 (bf16 weights, fp32 masters, ZeRO 1-3); bf16_autocast (fp32 weights)
    compile: bool = False  # torch.compile; refused for profiles
    threads: int | None = None  # CPU threads per rank; cores / ranks on this node unless given
    prefetch_steps: int = 3  # steps the loader thread works ahead
    timeout_minutes: float = 10.0  # a rank that waits longer for another ends the run with a sentence
    peak_tflops: float | None = None  # dense peak per device for MFU; known for common GPUs


@dataclass
class DeepSpeedConfig:
    zero_stage: int = 0  # divided over ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too
    offload: bool = False  # masters and optimizer state in the memory of the host, where the step then runs; ZeRO 1-3
    config: dict[str, Any] = field(default_factory=dict)  # any further DeepSpeed keys, passed through


@dataclass
class ValidationConfig:
    every_steps: int = 1000  # counted from the first step of a stage; 0: only at its end
    at_start: bool = False  # also before the first step: what untrained weights, or those of init_from, give
    sequences: int = 4096  # of the validation split, always the same ones with the same masks; 0 switches it off
    baselines: bool = True  # also report letter frequencies and an order-2 Markov model of the training split


@dataclass
class CheckpointConfig:
    every_steps: int = 1000  # 0: only at the end and when stopped
    every_minutes: float | None = None  # additionally, by the clock
    background: bool = True  # a thread writes a copy in memory while training goes on; false: training waits
    keep: int = 3  # newest ones kept
    permanent_every_steps: int | None = None  # checkpoints at multiples of this are never removed


@dataclass
class TrackingConfig:
    log_every_steps: int = 10  # a line on the screen and a record in metrics.jsonl
    wandb: str = "disabled"  # disabled, offline or online
    wandb_project: str = "rnafoundry"  # where wandb files the run
    tensorboard: bool = False  # writes tensorboard/ in the run directory


@dataclass
class Recipe:
    """A whole run. `model` and `objective` hold dataclasses of the chosen model and objective once resolved."""

    run: RunConfig = field(default_factory=RunConfig)
    model: Any = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    objective: Any = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    stages: dict[str, Any] = field(default_factory=dict)  # name -> sections with keys of that stage, in this order
    init_from: str | None = None  # start from released weights: a checkpoint of ours, a directory, a file or a hub id
