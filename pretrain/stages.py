"""A run in stages: one after the other, each the recipe with some keys of its own.

    stages:
      base: {budget: {steps: 1000}, objective: {levels: {base: 1, span: 0, motif: 0}}}
      span: {budget: {steps: 1000}, objective: {...}, data: {corpus: ...}, schedule: {...}}

Weights and optimizer state carry over. Steps are counted through the whole run, so a checkpoint, a kill or a resume
knows nothing of stages. The samples of a stage are ordered by a seed of its own and begin at its first step. The
schedule is that of the recipe over the whole run, but a stage with a `schedule` section follows its own, counted from
its first step. Every stage is validated at its end, and in between every `validation.every_steps` from its first step
on, with figures of its own where it has a `validation` section. A recipe without stages is one stage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from data import randomness
from data.tokenizer import fingerprint as tokenizer_fingerprint
from pretrain import recipe
from pretrain.config import Recipe
from pretrain.distributed import USER_ERRORS, World
from pretrain.errors import PretrainError
from pretrain.opening import Opened, Stagings, open_data
from pretrain.schedule import learning_rate


@dataclass
class Stage:
    """Steps [start, stop) of a run."""

    name: str  # "" in a recipe without stages
    settings: Recipe  # the recipe as it holds in this stage
    data: Opened
    start: int
    stop: int
    schedule_start: int  # the step from which its learning rate is counted
    schedule_stop: int

    def learning_rate(self, step: int) -> float:
        """Of the update after ``step`` completed ones, counted through the run."""
        schedule, peak = self.settings.schedule, self.settings.optimizer.learning_rate
        total = self.schedule_stop - self.schedule_start
        decay = schedule.decay_steps or total - schedule.warmup_steps
        if schedule.decay_epochs is not None:
            decay = self.data.steps_in(schedule.decay_epochs)
        return learning_rate(
            step - self.schedule_start,
            peak=peak,
            name=schedule.name,
            warmup_steps=schedule.warmup_steps,
            warmup_start=schedule.warmup_start,
            minimum=schedule.minimum,
            decay_steps=decay,
            total_steps=total,
        )

    def validates_after(self, step: int) -> bool:
        """Whether its interval says so after ``step`` completed ones of the run, the ends of stages aside."""
        every = self.settings.validation.every_steps
        return every > 0 and self.start < step < self.stop and (step - self.start) % every == 0


def open_stages(settings: Recipe, world: World) -> list[Stage]:
    """Every stage of a run with its data opened, so that a mistake in the last one shows before the first step.

    Raises DataError or PretrainError as `open_data` does, naming the stage.
    """
    stages: list[Stage] = []
    known: Stagings = {}
    for number, (name, own) in enumerate(recipe.stage_recipes(settings)):
        seed = settings.run.seed if number == 0 else randomness.key(settings.run.seed, "stage", number)
        start = stages[-1].stop if stages else 0
        try:
            data = open_data(own, world, seed, start, known)
        except USER_ERRORS as error:
            raise type(error)(f"stage {name}: {error}" if name else str(error)) from error
        stages.append(Stage(name, own, data, start, start + data.steps, 0, 0))
    vocabularies = {tokenizer_fingerprint(stage.data.objective.alphabet): stage.name for stage in stages}
    if len(vocabularies) > 1:
        raise PretrainError(f"the stages {' and '.join(vocabularies.values())} have different alphabets or tokenizers")
    channels = {tuple(getattr(stage.settings.objective, "channels", ())): stage.name for stage in stages}
    if len(channels) > 1:
        told = " and ".join(f"{name} ({', '.join(names)})" for names, name in channels.items())
        raise PretrainError(
            f"the stages {told} have different channels, but the model's outputs mean the same in all of them; give "
            "all stages the same objective.channels, and corpora of that order"
        )
    for stage in stages:
        follows_own = "schedule" in settings.stages.get(stage.name, {})
        stage.schedule_start = stage.start if follows_own else 0
        stage.schedule_stop = stage.stop if follows_own else stages[-1].stop
    return stages


def fingerprint(stages: list[Stage]) -> str:
    """What data a run trains on: that of its only stage, or a hash over those of all."""
    if len(stages) == 1:
        return stages[0].data.fingerprint
    parts = [
        f"{stage.name} {stage.start} {stage.settings.batch.sequences} {stage.data.fingerprint}" for stage in stages
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stage_at(stages: list[Stage], step: int) -> Stage:
    """The stage that the step after ``step`` completed ones belongs to; the last one when there is none."""
    return next((stage for stage in stages if step < stage.stop), stages[-1])


def close(stages: list[Stage]) -> None:
    """Let go of what staging holds; stages may share a corpus."""
    staged = {id(place.staged): place.staged for stage in stages for place in stage.data.places}
    for one in staged.values():
        if one is not None:
            one.close()
