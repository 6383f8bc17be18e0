"""The training loop. `Trainer.run` shows one step from top to bottom; everything it calls is named for what it does."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from data import randomness
from data.loader import Step, prefetched
from data.secrets import masked_content
from pretrain import checkpoint, initialise, recipe, run_tokenizer, stages
from pretrain.config import Recipe
from pretrain.console import Console, duration, quantity
from pretrain.distributed import USER_ERRORS, OtherRankFailed, World
from pretrain.engine import Engine, check_deepspeed_config
from pretrain.errors import PretrainError
from pretrain.estimate import cost_of, peak_flops
from pretrain.introduction import introduce_run, introduce_stage, labels_of
from pretrain.meter import Meter
from pretrain.run import RunDirectory, require_same_run
from pretrain.signals import RESUBMIT, StopRequest
from pretrain.spikes import LeftOut, SpikeWatch
from pretrain.stages import Stage
from pretrain.tracking import Tracker, forget_after, last_validation
from pretrain.watchdog import COMPUTING, MEETING, READING, SAVING, VALIDATING, Watchdog

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
        fingerprint = world.together(self._open)
        world.require_same(fingerprint, "corpus fingerprint")
        found = self.directory.to_resume(settings.run.resume, world)
        if found is not None:
            world.together(lambda: self._continue(found, fingerprint))
        world.together(lambda: check_deepspeed_config(settings))
        model = world.together(lambda: self._initial_model(found))
        self.parameters = sum(p.numel() for p in model.parameters())
        self.engine = Engine(model, settings, world)
        if found is not None:
            world.together(lambda: found.restore(self.engine))
        self.skipped_in_a_row = 0
        self.spikes = SpikeWatch(settings.spikes, self.progress.recent_losses)
        self.left_out = world.together(lambda: LeftOut(self.directory.path))
        self.saved_step = self.progress.step if found else -1
        self.peak = peak_flops(settings.compute, world.device)
        self.meter = Meter(world, self.objective.COUNTS)
        world.together(lambda: self.directory.describe(settings, world) if world.first else None)
        if found is None or found.path.parent != self.directory.checkpoints:
            tokenizer = self.objective.alphabet
            world.together(lambda: run_tokenizer.keep(self.directory.path, tokenizer) if world.first else None)
        validated = -1
        if world.first:
            forget_after(self.directory.path, self.progress.step)
            validated = last_validation(self.directory.path)
        self.tracker = world.together(self._start_tracker)
        self.validated_step = int(world.sum([validated if world.first else 0])[0])
        self.console = Console(self.total_steps, self.progress.step, shown=world.first)

    def _start_tracker(self) -> Tracker | None:
        if not self.world.first:
            return None
        settings, name = self.settings, self.settings.run.name
        directory, progress = self.directory.path, self.progress
        content = masked_content(recipe.to_dict(settings))
        return Tracker(directory, settings.tracking, name, content, progress.tracker, progress.step)

    def _open(self) -> str:
        """Open the data of the run; returns its fingerprint."""
        self.stages = stages.open_stages(self.settings, self.world)
        self.total_steps, fingerprint = self.stages[-1].stop, stages.fingerprint(self.stages)
        self._enter(self.stages[0])
        self.progress = checkpoint.Progress(step=0, fingerprint=fingerprint)
        return fingerprint

    def _continue(self, found: checkpoint.Checkpoint, fingerprint: str) -> None:
        run_tokenizer.require_same(found.path.parent.parent, self.objective.alphabet)
        for change in require_same_run(found, self.settings, fingerprint):
            log.warning("continuing with a changed recipe: %s", change)
        self.progress = found.progress
        self.progress.fingerprint = fingerprint
        self._enter(stages.stage_at(self.stages, self.progress.step))

    def _enter(self, stage: Stage) -> None:
        self.stage, self.data, self.objective = stage, stage.data, stage.data.objective

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
        with self._watched():
            return self._run()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """A little earlier than a collective gives up, so that the rank that hangs is named."""
        patience = 0.8 * 60 * self.settings.compute.timeout_minutes
        self.watchdog = Watchdog(self.directory.path, self.world.rank, self.world.ranks, patience)
        self.world.together(self.watchdog.start)
        try:
            yield
        finally:
            self.watchdog.close()

    def _doing(self, what: str) -> None:
        self.watchdog.doing(what, self.progress.step)

    def _run(self) -> int:
        world, progress = self.world, self.progress
        self.saved_at = time.monotonic()
        introduce_run(self.console, self.settings, world, self.parameters, self.total_steps, self.origin)
        self._introduce_stage()
        self._validate_what_a_kill_prevented()
        if self.settings.validation.at_start and progress.step == 0:
            self._validate()
        for step, problem in self._steps():
            batches = step.micro_batches if step else []
            self._doing(MEETING)
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
            self._doing(COMPUTING)
            rate = self.stage.learning_rate(step.number)
            if step.number in self.left_out:
                progress.step, progress.left_out_steps = step.number + 1, progress.left_out_steps + 1
                continue
            step.tokens, step.nucleotides = int(tokens), int(nucleotides)  # planned until now, exact from here
            loss = self._backward(step, weight)
            result = self.engine.step(rate)

            progress.step = step.number + 1
            progress.sequences += step.sequences
            progress.nucleotides += step.nucleotides
            progress.tokens += step.tokens
            self.data.reached(progress.step)
            self.meter.step(step)
            self._count_skipped(result.applied)
            if self._is_spike(loss, result.applied) and self._roll_back():
                return RESUBMIT
            if progress.step % self.settings.tracking.log_every_steps == 0 or progress.step == self.total_steps:
                self._log(step, rate, result.gradient_norm)
            if self._due(self.settings.checkpoint.every_steps):
                self._save()
            if self._due(self.settings.validation.every_steps):
                self._validate()
            if progress.step == self.stage.stop < self.total_steps:
                self._save()
                self._validate()
            self._doing(READING)
        self._save()
        if not self._validate():
            return self._stop_early()
        self._conclude()
        return DONE

    def _backward(self, step: Step, weight: float) -> float:
        """Gradients of the step's loss; returns its mean over the global batch, or 0 where nobody asks for it."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, batch in enumerate(step.micro_batches):
            # Dropout is keyed too, so a resumed run needs no generator state.
            torch.manual_seed(randomness.key(self.settings.run.seed, "dropout", step.number, self.world.rank, number))
            batch = batch.to(self.world.device)
            loss, counts = self.objective.loss(self.engine.module, batch)
            self.engine.backward(loss, weight)
            self._measure(batch, loss, counts)
            total += loss.detach()
        if self.settings.spikes.action == "ignore":
            return 0.0
        return self.world.sum([float(total)])[0] / max(weight, 1e-12)

    def _is_spike(self, loss: float, applied: bool) -> bool:
        """Compared with the steps before; all ranks know the same loss. One that is not finite is counted elsewhere."""
        if self.settings.spikes.action == "ignore" or not applied or not math.isfinite(loss):
            return False
        why = self.spikes.sees(loss)
        self.progress.recent_losses = self.spikes.recent
        if why is None:
            return False
        self.progress.spikes += 1
        log.warning("step %d is a loss spike: %s", self.progress.step, why)
        if self.tracker is not None:
            self.tracker.write("spike", self.progress.step, {"loss": loss})
        return True

    def _roll_back(self) -> bool:
        """With `spikes.action=roll_back`: leave the spike out from now on, and end without saving."""
        settings, stop = self.settings.spikes, self.progress.step
        if settings.action != "roll_back":
            return False
        if len(self.left_out.ranges) >= settings.most:
            text = f"step {stop} is a loss spike after {settings.most} were left out already; look at the data"
            raise PretrainError(text) if self.world.first else OtherRankFailed(text)
        first = max(stop - settings.leave_out_steps, 0)
        self.world.together(partial(self.left_out.add, first, stop) if self.world.first else lambda: None)
        log.warning("steps %d to %d are left out; the same command continues the newest checkpoint", first + 1, stop)
        self._close()
        return True

    def _steps(self) -> Iterator[tuple[Step | None, Exception | None]]:
        """The remaining steps, stage after stage; a failure to read this rank's data comes as the second, once."""
        try:
            for stage in self.stages[self.stages.index(self.stage) :]:
                if stage is not self.stage:
                    self._enter(stage)
                    self._introduce_stage()
                self.data.follow(self.progress.step)
                ahead = self.settings.compute.prefetch_steps
                for step in prefetched(self.data.planner, self.progress.step, stage.stop, ahead):
                    yield step, None
        except USER_ERRORS as error:
            yield None, error

    def _measure(self, batch: Any, loss: torch.Tensor, counts: dict[str, torch.Tensor]) -> None:
        tokens, padded, flops = 0, 0, 0.0
        if batch.weight:
            tokens, padded = self.objective.computed(self.settings, batch, self.world.device)
            flops = self.objective.flops(cost_of(self.settings), self.settings.model, batch)
        self.meter.micro_batch(loss, counts, batch.weight, tokens, padded, flops)

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
        record = self.meter.record(self.peak, self.objective.figures)
        if self.tracker is None:
            return
        remaining = self.total_steps - self.progress.step
        record |= {
            "learning_rate": rate,
            "gradient_norm": norm,
            "epoch": step.epoch,
            **({"stage": self.stage.name} if self.stage.name else {}),
            **({"epochs": self._epochs_by_corpus()} if self.data.mixed else {}),
            "sequences": self.progress.sequences,
            "nucleotides": self.progress.nucleotides,
            "skipped_steps": self.progress.skipped_steps,
            "spikes": self.progress.spikes,
            "left_out_steps": self.progress.left_out_steps,
            "eta_seconds": remaining * record["seconds_per_step"],
        }
        self.tracker.write("train", self.progress.step, record)
        self.console.step({"step": self.progress.step, **record})

    def _epochs_by_corpus(self) -> dict[str, float]:
        return self.data.mixture.epochs_by_corpus(self.progress.step - self.stage.start)

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
        self._doing(SAVING)
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
            report = validation.run(self.engine, self.world, self._validating)
            if report is None:
                return False
            reports[name] = report | labels_of(self.stage, name)
        self.meter.resume(paused)
        self.validated_step = self.progress.step
        for report in reports.values() if self.tracker else ():
            self.tracker.write("validation", self.progress.step, report)
            self.console.validation(self.progress.step, report)
        return True

    def _validating(self) -> bool:
        """Asked between micro-batches of a validation: whether to stop."""
        self._doing(VALIDATING)
        return self.stop.requested()

    def _stop_early(self) -> int:
        self._save()
        reason = self.stop.reason or "another rank was asked to stop"
        log.warning("stopped at step %d (%s); saved, the same command continues", self.progress.step, reason)
        self._close()
        return RESUBMIT

    def _validate_what_a_kill_prevented(self) -> None:
        """A kill may have come between saving and validating; at the end of a stage the validation is that stage's."""
        ended = [stage for stage in self.stages if stage.stop == self.progress.step < self.total_steps]
        if ended or (self.progress.step and self._due(self.settings.validation.every_steps)):
            now = self.stage
            self._enter(ended[0] if ended else now)
            self._validate()
            self._enter(now)

    def _introduce_stage(self) -> None:
        introduce_stage(self.console, self.tracker, self.world, self.stage, self.progress.step)

    def _conclude(self) -> None:
        progress = self.progress
        self.console.say(
            f"done: {progress.step:,} steps, {progress.sequences:,} sequences, {quantity(progress.nucleotides)} "
            f"nucleotides in {duration(progress.seconds)}; everything is in {self.directory.path}"
        )
        self._close()

    def _close(self) -> None:
        stages.close(self.stages)
        self.console.close()
        if self.tracker is not None:
            self.tracker.close()
