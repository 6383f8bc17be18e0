"""The training loop. `Trainer.run` shows one step from top to bottom; everything it calls is named for what it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from data import randomness
from data.loader import Step, prefetched
from pretrain import checkpoint, initialise, recipe, run_tokenizer
from pretrain.config import Recipe
from pretrain.console import Console, duration, quantity
from pretrain.distributed import USER_ERRORS, OtherRankFailed, World
from pretrain.engine import Engine, check_deepspeed_config
from pretrain.errors import PretrainError
from pretrain.estimate import cost_of, padded_tokens, peak_flops
from pretrain.meter import Meter
from pretrain.opening import open_data
from pretrain.references import reference_losses
from pretrain.run import RunDirectory, require_same_run
from pretrain.schedule import learning_rate
from pretrain.signals import RESUBMIT, StopRequest
from pretrain.tracking import Tracker, forget_after, last_validation

log = logging.getLogger("rnafoundry")
DONE = 0


class Trainer:
    """A run on this rank: opens or resumes it, then ``run`` trains until the budget is used up or a stop is asked for.

    Raises DataError, ModelError or PretrainError with one sentence; on several ranks, one of them tells it.
    """

    def __init__(self, settings: Recipe, world: World, stop: StopRequest):
        self.settings, self.world, self.stop = settings, world, stop
        self.directory = RunDirectory(settings)
        world.together(self.directory.create if world.first else lambda: None)
        world.together(lambda: self.directory.start_log(world.rank))
        found = world.together(self._open)
        world.require_same(self.progress.fingerprint, "corpus fingerprint")
        world.require_same(str(found.path if found else None), "checkpoint to continue from")
        if found is not None:
            found.verify(world)
        world.together(lambda: check_deepspeed_config(settings))
        model = world.together(lambda: self._initial_model(found))
        self.cost = partial(cost_of(settings).flops, settings.model)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.engine = Engine(model, settings, world)
        if found is not None:
            world.together(lambda: found.restore(self.engine))
        self.skipped_in_a_row = 0
        self.saved_step = self.progress.step if found else -1
        self.peak = peak_flops(settings.compute, world.device)
        self.meter = Meter(world)
        world.together(lambda: self.directory.describe(settings, world) if world.first else None)
        if found is None or found.path.parent != self.directory.checkpoints:
            tokenizer = self.objective.alphabet
            world.together(lambda: run_tokenizer.keep(self.directory.path, tokenizer) if world.first else None)
        validated = 0
        if world.first:
            forget_after(self.directory.path, self.progress.step)
            validated = last_validation(self.directory.path)
        self.tracker = world.together(self._start_tracker)
        self.validated_step = int(world.sum([validated])[0])
        self.console = Console(self.total_steps, self.progress.step, shown=world.first)

    def _start_tracker(self) -> Tracker | None:
        if not self.world.first:
            return None
        settings, name = self.settings, self.settings.run.name
        directory, progress = self.directory.path, self.progress
        content = recipe.to_dict(settings)
        return Tracker(directory, settings.tracking, name, content, progress.tracker, progress.step)

    def _open(self) -> checkpoint.Checkpoint | None:
        """The data of the run, and the checkpoint to continue from if there is one."""
        self.data = open_data(self.settings, self.world)
        self.objective, self.total_steps = self.data.objective, self.data.total_steps
        fingerprint = self.data.mixture.fingerprint
        self.progress = checkpoint.Progress(step=0, fingerprint=fingerprint)
        found = self.directory.to_resume(self.settings.run.resume)
        if found is not None:
            run_tokenizer.require_same(found.path.parent.parent, self.objective.alphabet)
            for change in require_same_run(found, self.settings, fingerprint):
                log.warning("continuing with a changed recipe: %s", change)
            self.progress = found.progress
            self.progress.fingerprint = fingerprint
        return found

    def _initial_model(self, found: checkpoint.Checkpoint | None) -> torch.nn.Module:
        model = initialise.build_model(self.settings)
        if found is not None:
            model.load_state_dict(found.weights())
            self.origin = f"continuing {found.path} at step {found.progress.step}"
        elif self.settings.init_from:
            self.progress.origin = initialise.load_initial(model, self.settings)
            self.origin = f"weights from {self.settings.init_from}"
        else:
            self.origin = f"new weights from seed {self.settings.run.seed}"
        return model

    def run(self) -> int:
        """Train. Returns the exit code: 0 when the budget is used up, 75 when stopped early with everything saved."""
        world, progress = self.world, self.progress
        self.data.follow(self.progress.step)
        self._introduce()
        if self._due(self.settings.validation.every_steps):  # a kill came between saving and validating
            self._validate()
        for step, problem in self._steps():
            batches = step.micro_batches if step else []
            weight, tokens, nucleotides, stopping, failing, clock = world.sum(
                [
                    sum(batch.weight for batch in batches),
                    sum(int(batch.lengths[batch.nucleotides > 0].sum()) for batch in batches),
                    sum(int(batch.nucleotides.sum()) for batch in batches),
                    self.stop.requested(),
                    problem is not None,
                    world.first and self._clock_says_save(),
                ]
            )
            if failing:
                world.fail_together(problem)
            if stopping:
                return self._stop_early()
            if clock:
                self._save()

            assert step is not None
            step.tokens, step.nucleotides = int(tokens), int(nucleotides)  # planned until now, exact from here
            for number, batch in enumerate(step.micro_batches):
                # Dropout is keyed too, so a resumed run needs no generator state.
                torch.manual_seed(randomness.key(self.settings.run.seed, "dropout", step.number, world.rank, number))
                batch = batch.to(world.device)
                loss, counts = self.objective.loss(self.engine.module, batch)
                self.engine.backward(loss, weight)
                self._measure(batch, loss, counts)
            rate = self._learning_rate(step.number)
            result = self.engine.step(rate)

            progress.step = step.number + 1
            progress.sequences += step.sequences
            progress.nucleotides += step.nucleotides
            progress.tokens += step.tokens
            self.data.reached(progress.step)
            self.meter.step(step)
            self._count_skipped(result.applied)
            if progress.step % self.settings.tracking.log_every_steps == 0 or progress.step == self.total_steps:
                self._log(step, rate, result.gradient_norm)
            if self._due(self.settings.checkpoint.every_steps):
                self._save()
            if self._due(self.settings.validation.every_steps):
                self._validate()
        self._save()
        if not self._validate():
            return self._stop_early()
        self._conclude()
        return DONE

    def _steps(self) -> Iterator[tuple[Step | None, Exception | None]]:
        """The remaining steps; a failure to read this rank's data comes as the second of the pair, once."""
        steps = prefetched(
            self.data.planner, self.progress.step, self.total_steps, self.settings.compute.prefetch_steps
        )
        try:
            for step in steps:
                yield step, None
        except USER_ERRORS as error:
            yield None, error

    def _learning_rate(self, step: int) -> float:
        schedule, peak = self.settings.schedule, self.settings.optimizer.learning_rate
        return learning_rate(
            step,
            peak=peak,
            name=schedule.name,
            warmup_steps=schedule.warmup_steps,
            warmup_start=schedule.warmup_start,
            minimum=schedule.minimum,
            decay_steps=schedule.decay_steps or self.total_steps - schedule.warmup_steps,
        )

    def _measure(self, batch: Any, loss: torch.Tensor, counts: dict[str, torch.Tensor]) -> None:
        tokens = int(batch.lengths.sum()) if batch.weight else 0
        padded = padded_tokens(batch.lengths, self.settings, self.world.device) if batch.weight else 0
        flops = self.cost(batch.lengths.tolist(), batch.weight) if batch.weight else 0.0
        self.meter.micro_batch(loss, counts["correct"], batch.weight, tokens, padded, flops)

    def _count_skipped(self, applied: bool) -> None:
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if applied:
            return
        self.progress.skipped_steps += 1
        log.warning("step %d: a gradient is not finite; the step is skipped on all ranks", self.progress.step)
        if self.skipped_in_a_row >= self.settings.optimizer.stop_after_skipped:
            text = (
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite (the last is step "
                f"{self.progress.step}); lower optimizer.learning_rate or start from an earlier checkpoint"
            )
            raise PretrainError(text) if self.world.first else OtherRankFailed(text)

    def _log(self, step: Step, rate: float, norm: float) -> None:
        self._count_cost()
        record = self.meter.record(self.peak)
        if self.tracker is None:
            return
        remaining = self.total_steps - self.progress.step
        record |= {
            "learning_rate": rate,
            "gradient_norm": norm,
            "epoch": step.epoch,
            **({"epochs": self.data.mixture.epochs_by_corpus(self.progress.step)} if self.data.mixed else {}),
            "sequences": self.progress.sequences,
            "nucleotides": self.progress.nucleotides,
            "skipped_steps": self.progress.skipped_steps,
            "eta_seconds": remaining * record["seconds_per_step"],
        }
        self.tracker.write("train", self.progress.step, record)
        self.console.step({"step": self.progress.step, **record})

    def _count_cost(self) -> None:
        """FLOPs and seconds since they were last counted: on logging, and on saving so that a stop loses none."""
        flops, seconds = self.meter.cost()
        self.progress.flops += flops
        self.progress.seconds += seconds

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0 and self.progress.step < self.total_steps

    def _clock_says_save(self) -> bool:
        minutes = self.settings.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _save(self) -> None:
        """Save the current step unless it is saved, then remove old checkpoints."""
        if self.saved_step == self.progress.step:
            return
        self._count_cost()
        paused = self.meter.pause()
        path = checkpoint.save(
            self.directory.checkpoints, self.engine, self.progress, recipe.to_yaml(self.settings), self.world
        )
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        if self.world.first:
            settings = self.settings.checkpoint
            checkpoint.rotate(self.directory.checkpoints, settings.keep, settings.permanent_every_steps)
            log.info("saved %s in %.1f s", path, time.perf_counter() - paused)
        self.meter.resume(paused)

    def _validate(self) -> bool:
        """Validate the current step unless that was done. Returns False when a stop was asked for meanwhile."""
        if not self.data.validations or self.validated_step == self.progress.step:
            return True
        paused = self.meter.pause()
        reports = {}
        for name, validation in self.data.validations.items():
            report = validation.run(self.engine, self.world, self.stop.requested)
            if report is None:
                return False
            reports[name] = report | ({"corpus": name} if self.data.mixed else {})
        self.meter.resume(paused)
        self.validated_step = self.progress.step
        for report in reports.values() if self.tracker else ():
            self.tracker.write("validation", self.progress.step, report)
            self.console.validation(self.progress.step, report)
        return True

    def _stop_early(self) -> int:
        self._save()
        reason = self.stop.reason or "another rank was asked to stop"
        log.warning("stopped at step %d (%s); saved, the same command continues", self.progress.step, reason)
        self._close()
        return RESUBMIT

    def _introduce(self) -> None:
        """Say what is about to run, and how good trivial models are on the validation targets."""
        self.saved_at = time.monotonic()
        settings, world, mixture = self.settings, self.world, self.data.mixture
        clusters = self._clusters()
        self.console.say(
            f"{settings.run.name}: {recipe.model_name(settings)} with {self.parameters:,} parameters on {world.ranks} "
            f"rank{'s' * (world.ranks > 1)} ({world.device.type}, {settings.compute.precision}, ZeRO "
            f"{settings.deepspeed.zero_stage}); {mixture.count:,} training sequences{clusters}, "
            f"{quantity(mixture.nucleotides)} nucleotides; {self.total_steps:,} steps of {settings.batch.sequences} "
            f"sequences; {self.origin}"
        )
        rates = settings.objective.masked_fraction * settings.objective.mask_share
        if recipe.model_name(settings) == "rinalmo" and abs(rates - 0.12) > 1e-9 and world.first:
            log.warning("masking rates are not 0.15 and 0.8, but RiNALMo's token dropout keeps its constant of 0.12")
        if not settings.validation.baselines:
            return
        for corpus, (name, validation) in zip(mixture.corpora, self.data.validations.items(), strict=False):
            measure = partial(reference_losses, corpus, validation)
            references = world.together(measure if world.first else dict)
            if self.tracker is None:
                continue
            if self.progress.step == 0:
                self.tracker.write("references", 0, references | ({"corpus": name} if self.data.mixed else {}))
            for title, figures in references.items():
                self.console.say(
                    f"  {title.replace('_', ' ')} on the validation targets{f' of {name}' * self.data.mixed}: loss "
                    f"{figures['loss']:.4f}  perplexity {figures['perplexity']:.3f}"
                )

    def _clusters(self) -> str:
        """An epoch draws one sequence per cluster, or without clusters every sequence: that must be seen."""
        counts = [len(corpus.clusters) - 1 for corpus in self.data.mixture.corpora if corpus.clusters is not None]
        return f" in {sum(counts):,} clusters" if counts else " (not clustered: an epoch is every sequence)"

    def _conclude(self) -> None:
        progress = self.progress
        self.console.say(
            f"done: {progress.step:,} steps, {progress.sequences:,} sequences, {quantity(progress.nucleotides)} "
            f"nucleotides in {duration(progress.seconds)}; everything is in {self.directory.path}"
        )
        self._close()

    def _close(self) -> None:
        self.data.close()
        self.console.close()
        if self.tracker is not None:
            self.tracker.close()
