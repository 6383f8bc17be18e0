"""Steps that go wrong: a gradient that is not finite, a loss that jumps. All ranks see the same and decide alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretrain.checkpoint import Progress
from pretrain.config import Recipe
from pretrain.distributed import OtherRankFailed, World
from pretrain.errors import PretrainError
from pretrain.spikes import LeftOut, SpikeWatch
from pretrain.tracking import Tracker

log = logging.getLogger("rnafoundry")


class Guard:
    """``finish_saving`` is called, on all ranks, before anything here ends the run."""

    def __init__(
        self,
        settings: Recipe,
        world: World,
        run: Path,
        progress: Progress,
        tracker: Tracker | None,
        finish_saving: Callable[[], None],
    ) -> None:
        self.settings, self.world, self.progress, self.tracker = settings, world, progress, tracker
        self.finish_saving = finish_saving
        self.skipped_in_a_row = 0
        self.spikes = SpikeWatch(settings.spikes, progress.recent_losses)
        self.left_out = world.together(lambda: LeftOut(run))

    @property
    def watches_losses(self) -> bool:
        return self.settings.spikes.action != "ignore"

    def leaves_out(self, step: int) -> bool:
        """Whether the step (counted from 0) was left out after a spike."""
        return step in self.left_out

    def count_skipped(self, applied: bool) -> None:
        """After a step: count one that was skipped. Raises PretrainError when too many were in a row."""
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if applied:
            return
        self.progress.skipped_steps += 1
        log.warning("step %d: a gradient is not finite; the step is skipped on all ranks", self.progress.step)
        if self.skipped_in_a_row >= self.settings.optimizer.stop_after_skipped:
            self._end(
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite (the last is step "
                f"{self.progress.step}); lower optimizer.learning_rate or start from an earlier checkpoint"
            )

    def must_roll_back(self, loss: float, applied: bool) -> bool:
        """After a step: whether its loss jumped and the run has to start again without it.

        Compared with the steps before. One that is not finite is counted as skipped. Raises PretrainError when steps
        were left out too often.
        """
        if not self.watches_losses or not applied or not math.isfinite(loss):
            return False
        why = self.spikes.sees(loss)
        self.progress.recent_losses = self.spikes.recent
        if why is None:
            return False
        self.progress.spikes += 1
        log.warning("step %d is a loss spike: %s", self.progress.step, why)
        if self.tracker is not None:
            self.tracker.write("spike", self.progress.step, {"loss": loss})
        if self.settings.spikes.action != "roll_back":
            return False
        self._leave_out()
        return True

    def _leave_out(self) -> None:
        """The spike and the steps before it, from now on."""
        settings, stop = self.settings.spikes, self.progress.step
        if len(self.left_out.ranges) >= settings.most:
            self._end(f"step {stop} is a loss spike after {settings.most} were left out already; look at the data")
        self.finish_saving()
        first = max(stop - settings.leave_out_steps, 0)
        self.world.together(partial(self.left_out.add, first, stop) if self.world.first else lambda: None)
        log.warning("steps %d to %d are left out; the same command continues the newest checkpoint", first + 1, stop)

    def _end(self, text: str) -> None:
        self.finish_saving()
        raise PretrainError(text) if self.world.first else OtherRankFailed(text)
