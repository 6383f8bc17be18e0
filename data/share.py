"""How many samples of each step one corpus of a mixture supplies: exact over time, a pure function of weights and step.

Before step s, T = s*N samples were drawn in all. Every corpus but the heaviest has supplied floor(T * weight) of them,
in exact rational arithmetic, and the heaviest the rest. So after any number of steps each corpus is within one sample
of its weight (the heaviest within the number of corpora), and nothing has to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from data.errors import DataError


@dataclass(frozen=True)
class Share:
    """The part of every global batch of ``global_batch`` samples that one corpus supplies.

    ``weights`` sum to 1; ``mine`` is this corpus's place among them; ``heaviest`` the place of the one that fills up.
    """

    global_batch: int
    weights: tuple[Fraction, ...] = (Fraction(1),)
    mine: int = 0
    heaviest: int = 0

    def before(self, step: int) -> int:
        """Samples that this corpus has supplied before ``step``."""
        total = step * self.global_batch
        if self.mine != self.heaviest:
            return int(total * self.weights[self.mine])  # floor: both factors are positive
        others = (weight for place, weight in enumerate(self.weights) if place != self.heaviest)
        return total - sum(int(total * weight) for weight in others)

    def step_of(self, position: int) -> int:
        """The step that draws this corpus's sample number ``position`` (from 0)."""
        step = max(int(position / (self.weights[self.mine] * self.global_batch)) - len(self.weights), 0)
        while self.before(step + 1) <= position:
            step += 1
        return step

    @property
    def most(self) -> int:
        """At most so many samples of this corpus stand in one step."""
        return math.ceil(self.weights[self.mine] * self.global_batch) + len(self.weights) - 1


def shares(weights: Sequence[float], global_batch: int) -> list[Share]:
    """One share per corpus from weights of any positive scale, taken as the decimal numbers that they print as.

    Raises DataError for a weight that is not positive, and for a global batch too small to serve that many corpora.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    for weight in exact:
        if weight <= 0:
            raise DataError(f"the weights of a mixture must be above 0, but one of {list(weights)} is not")
    total = sum(exact)
    normalised = tuple(weight / total for weight in exact)
    heaviest = max(range(len(exact)), key=lambda place: normalised[place])
    # The heaviest supplies what the others leave over, which must never be negative.
    if normalised[heaviest] * global_batch < len(exact) - 1:
        raise DataError(
            f"a global batch of {global_batch} sequences is too small for a mixture of {len(exact)} corpora; raise "
            "batch.sequences or mix fewer"
        )
    return [Share(global_batch, normalised, place, heaviest) for place in range(len(exact))]
