"""Learning rate as a pure function of the step, so that resuming needs no scheduler state.

PyTorch's cosine scheduler rises again after its end; this one stays at the minimum.
"""

from __future__ import annotations

import math

NAMES = ("cosine", "linear", "trapezoid", "constant")


def learning_rate(
    step: int,
    *,
    peak: float,
    name: str,
    warmup_steps: int,
    warmup_start: float,
    minimum: float,
    decay_steps: int,
    total_steps: int,
) -> float:
    """The learning rate of the update that follows ``step`` completed ones.

    Linear from warmup_start to peak over warmup_steps. Then `cosine` or `linear` to the minimum over decay_steps, at
    which it stays; `trapezoid`: the peak until decay_steps before total_steps, then linear to the minimum;
    `constant`: the peak.
    RiNALMo-giga: 5e-5 at 2,000, 3.80e-5 at 75,893, 1e-5 from 202,000 on (specs: rinalmo 5). RNAErnie: 1e-4 from
    129,000 to 2,451,000, 5e-5 at 2,580,000 (specs: rnaernie 5).
    """
    if step < warmup_steps:
        return warmup_start + (peak - warmup_start) * step / warmup_steps
    if name == "constant":
        return peak
    start = total_steps - decay_steps if name == "trapezoid" else warmup_steps
    progress = min(max(step - start, 0), decay_steps) / decay_steps if decay_steps > 0 else 1.0
    if name == "cosine":
        return minimum + 0.5 * (peak - minimum) * (1.0 + math.cos(math.pi * progress))
    return peak + (minimum - peak) * progress
