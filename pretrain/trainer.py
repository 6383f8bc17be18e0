"""The training loop. `Trainer.run` shows one step from top to bottom; everything it calls is named for what it does."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from data import randomness
from data.loader import Step, prefetched
from pretrain import recipe, stages
from pretrain.config import Recipe
from pretrain.console import Console, duration, quantity
from pretrain.distributed import USER_ERRORS, World
from pretrain.estimate import cost_of, peak_flops
from pretrain.guard import Guard
from pretrain.introduction import introduce_checkpoints, introduce_run, introduce_stage, labels_of
from pretrain.meter import Meter
from pretrain.opening_run import open_run
from pretrain.saving import Saved, Saver
from pretrain.signals import RESUBMIT, StopRequest
from pretrain.stages import Stage
from pretrain.watchdog import COMPUTING, MEETING, READING, SAVING, VALIDATING, Watchdog

log = logging.getLogger("rnafoundry")
DONE = 0


class Trainer:
    """A run on this rank: opens or resumes it, then ``run`` trains until the budget is used up or a stop is asked for.

    Raises DataError, ModelError or PretrainError with one sentence; on several ranks, one of them tells it.
    """

    def __init__(self, settings: Recipe, world: World, stop: StopRequest):
        self.settings, self.world, self.stop = settings, world, stop
        run = open_run(settings, world)
        self.directory, self.stages, self.progress, self.engine = run.directory, run.stages, run.progress, run.engine
        self.tracker, self.lock, self.parameters, self.origin = run.tracker, run.lock, run.parameters, run.origin
        self.validated_step, self.saved_step = run.validated_step, run.progress.step if run.resumed else -1
        self.total_steps = self.stages[-1].stop
        self._enter(run.stage)
        self.guard = Guard(settings, world, run.directory.path, run.progress, run.tracker, self._finish_saving)
        self.peak = peak_flops(settings.compute, world.device)
        self.meter = Meter(world, self.objective.COUNTS)
        keep, permanent = settings.checkpoint.keep, settings.checkpoint.permanent_every_steps
        self.saver = Saver(self.directory.checkpoints, self.engine, world, keep, permanent, recipe.to_yaml(settings))
        self.console = Console(self.total_steps, self.progress.step, shown=world.first)

    def _enter(self, stage: Stage) -> None:
        self.stage, self.data, self.objective = stage, stage.data, stage.data.objective

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
        size = 4.0 * self.parameters * (1 + len(self.engine.kinds))
        introduce_checkpoints(self.console, self.settings, world, self.directory.checkpoints, size)
        self._introduce_stage()
        self._validate_what_a_kill_prevented()
        if self.settings.validation.at_start and progress.step == 0:
            self._validate()
        for step, problem in self._steps():
            batches = step.micro_batches if step else []
            self._doing(MEETING)
            stopping, clock, weight, tokens, nucleotides = self._meet(
                problem,
                world.first and self._clock_says_save(),
                sum(batch.weight for batch in batches),
                sum(int(batch.lengths[batch.nucleotides > 0].sum()) for batch in batches),
                sum(int(batch.nucleotides.sum()) for batch in batches),
            )
            if stopping:
                return self._stop_early()
            if clock:
                self._save()

            assert step is not None
            self._doing(COMPUTING)
            rate = self.stage.learning_rate(step.number)
            if self.guard.leaves_out(step.number):
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
            self.guard.count_skipped(result.applied)
            if self.guard.must_roll_back(loss, result.applied):
                self._close()
                return RESUBMIT
            if progress.step % self.settings.tracking.log_every_steps == 0 or progress.step == self.total_steps:
                self._log(step, rate, result.gradient_norm)
            every = self.settings.checkpoint.every_steps
            if every > 0 and progress.step % every == 0 and progress.step < self.total_steps:
                self._save()
            if self.stage.validates_after(progress.step):
                self._validate()
            if progress.step == self.stage.stop < self.total_steps:
                self._save()
                self._validate()
            self._doing(READING)
        self._save()
        if not self._validate():
            return self._stop_early()
        self._finish_saving()
        self._conclude()
        return DONE

    def _meet(self, problem: Exception | None, *values: float) -> list[float]:
        """The one collective of a step: whether any rank is asked to stop, and the sums of ``values`` over ranks.

        A failure to read data ends the run on all ranks, with the checkpoint that is being written complete.
        """
        asked = [self.stop.requested(), problem is not None, self.saver.settled()]
        stopping, failing, settled, *sums = self.world.sum([*asked, *values])
        if failing:
            self._finish_saving()
            self.world.fail_together(problem)
        if settled == self.world.ranks:
            self._report_saved(self.saver.go_on())
        return [stopping, *sums]

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
        if not self.guard.watches_losses:
            return 0.0
        return self.world.sum([float(total)])[0] / max(weight, 1e-12)

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

    def _clock_says_save(self) -> bool:
        minutes = self.settings.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _save(self) -> None:
        """Save the current step unless it is saved: from here on, or with all of it done where that is asked for."""
        if self.saved_step == self.progress.step:
            return
        self._count_cost()
        self._finish_saving()
        with self._not_training(SAVING):
            self.saver.begin(self.progress)
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        if not self.settings.checkpoint.background:
            self._finish_saving()

    def _finish_saving(self) -> None:
        with self._not_training(SAVING):
            saved = self.saver.finish()
        self._report_saved(saved)

    def _report_saved(self, saved: Saved | None) -> None:
        if saved is None or self.tracker is None:
            return
        step = self.meter.seconds_per_step
        waited = f"{saved.held_up:.2f} s" + (f", {saved.held_up / step:.2f} steps" if step else "")
        log.info(
            "saved %s: %.3g GB in %.1f s; training waited %s", saved.path, saved.bytes / 1e9, saved.seconds, waited
        )
        record = {"complete_at_step": self.progress.step, "bytes": saved.bytes, "seconds": saved.seconds}
        waiting = {"waited_seconds": saved.held_up, "waited_steps": saved.held_up / step if step else None}
        self.tracker.write("checkpoint", saved.step, record | waiting)

    @contextlib.contextmanager
    def _not_training(self, what: str) -> Iterator[None]:
        """Time that does not count as training's."""
        self._doing(what)
        paused = self.meter.pause()
        try:
            yield
        finally:
            self.meter.resume(paused)

    def _validate(self) -> bool:
        """Validate the current step unless that was done. Returns False when a stop was asked for meanwhile."""
        if not self.data.validations or self.validated_step == self.progress.step:
            return True
        reports = {}
        with self._not_training(VALIDATING):
            for name, validation in self.data.validations.items():
                report = validation.run(self.engine, self.world, self._validating)
                if report is None:
                    return False
                reports[name] = report | labels_of(self.stage, name)
        self.validated_step = self.progress.step
        if self.tracker is not None:
            for report in reports.values():
                self.tracker.write("validation", self.progress.step, report)
                self.console.validation(self.progress.step, report)
        return True

    def _validating(self, problem: Exception | None) -> bool:
        """Between micro-batches of a validation: whether to stop."""
        self._doing(VALIDATING)
        return bool(self._meet(problem)[0])

    def _stop_early(self) -> int:
        self._save()
        self._finish_saving()
        reason = self.stop.reason or "another rank was asked to stop"
        log.warning("stopped at step %d (%s); saved, the same command continues", self.progress.step, reason)
        self._close()
        return RESUBMIT

    def _validate_what_a_kill_prevented(self) -> None:
        """A kill may have come between saving and validating; at the end of a stage the validation is that stage's."""
        ended = [stage for stage in self.stages if stage.stop == self.progress.step < self.total_steps]
        if ended or self.stage.validates_after(self.progress.step):
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
        if self.lock is not None:
            self.lock.release()
