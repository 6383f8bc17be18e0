"""Classes of measured sequences and the sets that training stages use, as filters on signal-to-noise and library.

With the smallest and largest signal-to-noise over the channels (spec RibonanzaNet 4): clean where the smallest is above
the threshold, noisy where the largest is not, dirty in between. A channel without a profile counts as below. Note the
strict inequality: a loss mask that uses `>= 1` keeps a channel at exactly 1, the classes do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from data.errors import DataError

CLASSES = ("clean", "dirty", "noisy")
CLEAN, DIRTY, NOISY = range(3)


def classify(signal_to_noise: npt.NDArray[np.float32], threshold: float = 1.0) -> npt.NDArray[np.uint8]:
    """uint8 [n] number of the class in CLASSES, from signal-to-noise [n, channels], NaN = no profile."""
    above = np.nan_to_num(signal_to_noise, nan=-np.inf) > threshold
    return np.where(above.all(axis=1), CLEAN, np.where(above.any(axis=1), DIRTY, NOISY)).astype(np.uint8)


@dataclass(frozen=True)
class SampleFilter:
    """Which samples of a split a stage trains on; the defaults take all.

    ``classes`` of CLASSES; ``threshold`` of signal-to-noise that tells them apart; ``min_signal_to_noise`` of the best
    channel (None: no limit); ``libraries`` that are left out, by the start of their names (the original's
    dataset2drop); ``min_length`` and ``max_length`` in nucleotides, 0 for no limit.
    """

    classes: tuple[str, ...] = CLASSES
    threshold: float = 1.0
    min_signal_to_noise: float | None = None
    drop_libraries: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int = 0

    def __post_init__(self) -> None:
        for name in self.classes:
            if name not in CLASSES:
                raise DataError(f"{name!r} is no class of profiles; there are {', '.join(CLASSES)}.")
        if not self.classes:
            raise DataError("a filter of samples takes at least one class; give " + ", ".join(CLASSES) + ".")

    @classmethod
    def of(cls, classes: str | Sequence[str], **options: object) -> SampleFilter:
        """From `clean+dirty`, as recipes write it, or a sequence of names."""
        names = classes.split("+") if isinstance(classes, str) else classes
        return cls(tuple(name.strip() for name in names), **options)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """Identifies the filter: a hash of its canonical form, the order of classes and libraries not counting."""
        content = asdict(self)
        content["classes"] = sorted(set(self.classes))
        content["drop_libraries"] = sorted(set(self.drop_libraries))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def takes(
        self,
        signal_to_noise: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.uint32],
        libraries: npt.NDArray[np.uint8],
        library_names: Sequence[str],
    ) -> npt.NDArray[np.bool_]:
        """[n] which samples pass, from signal-to-noise [n, channels], lengths [n] and library of each [n]."""
        wanted = [CLASSES.index(name) for name in self.classes]
        passed = np.isin(classify(signal_to_noise, self.threshold), wanted)
        if self.min_signal_to_noise is not None:
            best = np.nan_to_num(signal_to_noise, nan=-np.inf).max(axis=1)
            passed &= best >= np.float32(self.min_signal_to_noise)
        if self.drop_libraries:
            left_out = [name.startswith(self.drop_libraries) for name in library_names]
            passed &= ~np.array([*left_out, False])[libraries]
        if self.min_length:
            passed &= lengths >= self.min_length
        if self.max_length:
            passed &= lengths <= self.max_length
        found: npt.NDArray[np.bool_] = passed
        return found


# The stages of spec RibonanzaNet 5. `true` is the stage-A set once fold 0 of the clean ones is the validation split.
STAGE_SETS = {
    "true": SampleFilter(("clean", "dirty")),
    "noisy": SampleFilter(("noisy",)),
    "all": SampleFilter(),
}
