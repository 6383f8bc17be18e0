"""Settings of the objective on reactivity profiles, and their checks.

Weightings other than the authors' equal one are of a channel of a sample, r its signal-to-noise, e the error of a value
(spec 4, what other teams did; the mean is then weighted):

    log_signal_to_noise       log(1 + r), at most 10
    clipped_signal_to_noise   r between 0.5 and 1, with min_signal_to_noise 0.5
    error                     1 / (1 + (e / 0.25)²), ours: half at an error of about the spread of the values
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data.errors import DataError
from data.reactivity_filter import SampleFilter
from pretrain.errors import PretrainError
from pretrain.objectives.masked import refuse

WEIGHTINGS = ("none", "log_signal_to_noise", "clipped_signal_to_noise", "error")
SAMPLINGS = ("all", "signal_to_noise")


@dataclass
class Samples:
    """Which samples of the training split a stage trains on (data/reactivity_filter.py)."""

    classes: str = "clean+dirty+noisy"  # of those three, joined by +
    threshold: float = 1.0  # of signal-to-noise: clean where all channels are above it, dirty where some are
    min_signal_to_noise: float | None = None  # of the best channel
    drop_libraries: list[str] = field(default_factory=list)  # by the start of their names
    min_length: int = 0  # nucleotides
    max_length: int = 0  # nucleotides; 0 for no limit


@dataclass
class ReactivityConfig:
    name: str = "reactivity"
    channels: list[str] = field(default_factory=lambda: ["2A3", "DMS"])  # in the order of the model's outputs
    samples: Samples = field(default_factory=Samples)
    min_signal_to_noise: float = 1.0  # channels of a sample below it are not trained on
    flip: float = 0.5  # probability of reading a sample backwards; above 0, prediction averages both directions
    # none; or by r, the signal-to-noise: log_signal_to_noise, log(1 + r) up to 10; clipped_signal_to_noise, r from 0.5
    # to 1; or by e, the error of a value: error, 1 / (1 + (e / 0.25)²)
    weighting: str = "none"
    sampling: str = "all"  # signal_to_noise: an epoch leaves out samples the more often the noisier they are
    noise: float = 0.0  # times its measured error, a normal number is added to a value before it is clipped
    flank_5: int = 0  # nucleotides at the 5' end that are not trained on
    flank_3: int = 0  # and at the 3' end


def check(config: ReactivityConfig) -> None:
    """Raises PretrainError for values that cannot work."""
    if not config.channels or len(set(config.channels)) != len(config.channels):
        refuse("channels", config.channels, "one or more different names")
    if not 0 <= config.flip <= 1:
        refuse("flip", config.flip, "a probability")
    if config.weighting not in WEIGHTINGS:
        refuse("weighting", config.weighting, f"one of {', '.join(WEIGHTINGS)}")
    if config.sampling not in SAMPLINGS:
        refuse("sampling", config.sampling, f"one of {', '.join(SAMPLINGS)}")
    for key in ("noise", "flank_5", "flank_3"):
        if not 0 <= getattr(config, key) < np.inf:
            refuse(key, getattr(config, key), "0 or more")
    for key in ("min_length", "max_length"):
        if getattr(config.samples, key) < 0:
            refuse(f"samples.{key}", getattr(config.samples, key), "0 or more")
    ratios = {"min_signal_to_noise": config.min_signal_to_noise, "samples.threshold": config.samples.threshold}
    for key, value in ratios.items():
        if np.isnan(value):
            refuse(key, value, "a number")
    if config.weighting == "clipped_signal_to_noise" and config.min_signal_to_noise >= 1:
        refuse(
            "min_signal_to_noise",
            config.min_signal_to_noise,
            "below 1 (such as 0.5) with objective.weighting=clipped_signal_to_noise, else all weights are 1",
        )
    try:
        SampleFilter.of(config.samples.classes)
    except DataError as error:
        raise PretrainError(f"objective.samples.classes: {error}") from error
