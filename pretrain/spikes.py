"""Loss spikes: told by a robust running scale, reported or rolled back.

A step is a spike if its loss lies more than `spikes.threshold` spreads above the median of the last `spikes.window`
steps, the spread being 1.4826 times the median absolute deviation (the standard deviation of normal noise) and at
least a hundredth of the median. Rolling back means: what was trained since the newest checkpoint is dropped, the steps
around the spike are left out from then on, and the run ends with the exit code for "start the same command again". As
every step is a pure function of its number, leaving steps out needs nothing but their numbers, which stand in
`left_out.json` of the run directory.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from data.publish import write_durably
from pretrain.config import SpikeConfig
from pretrain.errors import PretrainError

FILE = "left_out.json"
LEAST = 20  # losses before anything can be a spike


@dataclass
class SpikeWatch:
    """``recent``: losses of the last steps, oldest first; checkpoints keep them, so a resumed run decides alike."""

    config: SpikeConfig
    recent: list[float] = field(default_factory=list)

    def sees(self, loss: float) -> str | None:
        """Why this step is a spike, in words; None if it is none. A spike is not remembered."""
        if len(self.recent) >= min(LEAST, self.config.window):
            median = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(one - median) for one in self.recent)
            spread = max(spread, 0.01 * abs(median), 1e-12)
            above = (loss - median) / spread
            if above > self.config.threshold:
                return f"its loss {loss:.4g} is {above:.1f} spreads above the median {median:.4g} of the steps before"
        self.recent = [*self.recent, loss][-self.config.window :]
        return None


class LeftOut:
    """Steps of a run that are not trained on, counted from 0."""

    def __init__(self, run: Path) -> None:
        """Raises PretrainError if the file that says so is damaged."""
        self._path = run / FILE
        self.ranges: list[tuple[int, int]] = []  # first step and the one after the last
        if self._path.exists():
            try:
                self.ranges = [(int(first), int(stop)) for first, stop in json.loads(self._path.read_text())]
            except (ValueError, TypeError) as error:
                raise PretrainError(f"{self._path} is damaged ({error}); it lists [first, stop] of steps") from error

    def __contains__(self, step: int) -> bool:
        return any(first <= step < stop for first, stop in self.ranges)

    def add(self, first: int, stop: int) -> None:
        """Leave out steps [first, stop) from now on; on disk when this returns. One rank only."""
        self.ranges.append((max(first, 0), stop))
        write_durably(self._path, (json.dumps(self.ranges) + "\n").encode())
