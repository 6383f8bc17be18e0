"""Learning rate as a pure function of the step, so that resuming needs no scheduler state.

PyTorch's cosine scheduler rises again after its end; this one stays at the minimum.
"""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    *,
    peak: float,
    name: str,
    warmup_steps: int,
    warmup_start: float,
    minimum: float,
    decay_steps: int,
) -> float:
    """The learning rate of the update that follows ``step`` completed ones.

    Linear from warmup_start to peak over warmup_steps; then `cosine` to minimum over decay_steps, or `constant`.
    With the numbers of RiNALMo-giga: 5e-5 at 2,000, 3.80e-5 at 75,893, 1e-5 from 202,000 on (specs: rinalmo 5).
    """
    if step < warmup_steps:
        return warmup_start + (peak - warmup_start) * step / warmup_steps
    if name == "constant":
        return peak
    progress = min(step - warmup_steps, decay_steps) / decay_steps if decay_steps > 0 else 1.0
    return minimum + 0.5 * (peak - minimum) * (1.0 + math.cos(math.pi * progress))
