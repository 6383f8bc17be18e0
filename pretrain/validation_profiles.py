"""Error of predicted reactivities on held-out profiles, and what constants reach on the same places.

The error is the mean absolute difference to the measured value clipped to [0, 1], over all measured places and
channels (specs: ribonanzanet 4). Predictions are averaged with those of the sequences read backwards where training
flips. Two constants stand beside it: the median of each channel, and of each channel and nucleotide, in the training
split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from data.alphabet import NUCLEOTIDES
from pretrain.objectives.reactivity import ProfileBatch, Reactivity
from pretrain.validation import HeldOut

FIT_SAMPLES = 20_000  # of the training split, for the medians


class ProfileValidation(HeldOut):
    """Of profiles, per channel."""

    UNITS = ("sequences",)  # every profile counts, relatives too, as in the original

    objective: Reactivity
    columns = 2  # sum of absolute differences, places

    def __init__(self, corpus: Any, objective: Reactivity, sequences: int, budget: int):
        objective.require_channels(corpus)
        super().__init__(corpus, objective, sequences, budget)
        self._keys = np.zeros(len(self.ids), dtype=np.uint64)  # nothing is drawn
        self.rows = len(objective.config.channels)

    @staticmethod
    def passes(objective: Any) -> int:
        return 2 if objective.flip else 1  # `Reactivity.predict`

    def outputs(self, module: nn.Module, batch: ProfileBatch) -> Tensor:
        return self.objective.predict(module, batch)

    def _sums(self, outputs: Tensor, batch: ProfileBatch, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        measured = batch.weights.cpu() > 0
        difference = (outputs - batch.targets.cpu()).abs().double() * measured
        return np.stack([difference.sum((0, 1)).numpy(), measured.sum((0, 1)).numpy()], axis=1)

    def _report(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
        names = self.objective.config.channels
        each = {f"loss_{name}": float(a / max(n, 1)) for name, (a, n) in zip(names, sums, strict=True)}
        total, places = sums.sum(axis=0).tolist()
        return {"loss": total / max(places, 1), **each, "targets": int(places), "sequences": len(self.ids)}

    def references(self, training: Any) -> dict[str, Any]:
        """Medians of the training split, as predictions: of each channel, and of each channel and nucleotide."""
        values = self._values(training, np.arange(min(FIT_SAMPLES, training.count)))
        held_out = self._values(self.corpus, self.ids)
        constant = {key: _median(np.concatenate([values[letter, key[1]] for letter in _LETTERS])) for key in values}
        by_letter = {key: _median(found) if len(found) else constant[key] for key, found in values.items()}
        return {
            "channel_median": self._errors(held_out, constant),
            "nucleotide_median": self._errors(held_out, by_letter),
        }

    def _errors(
        self, values: dict[tuple[str, int], npt.NDArray[np.float32]], predicted: dict[tuple[str, int], float]
    ) -> dict[str, float]:
        """Mean error of constants over all values, and over those of each channel."""
        found = {"loss": _mean_error(values, predicted)}
        for number, name in enumerate(self.objective.config.channels):
            found[f"loss_{name}"] = _mean_error({k: v for k, v in values.items() if k[1] == number}, predicted)
        return found

    def _values(self, corpus: Any, ids: npt.NDArray[np.int64]) -> dict[tuple[str, int], npt.NDArray[np.float32]]:
        """(letter, channel) -> clipped measured values that count, as in training or in validation."""
        found: dict[tuple[str, int], list[npt.NDArray[np.float32]]] = {
            (letter, channel): [] for letter in _LETTERS for channel in range(self.rows)
        }
        for profile in corpus.profiles(ids):
            enough = np.nan_to_num(profile.signal_to_noise, nan=-np.inf) >= self.objective.config.min_signal_to_noise
            for channel in range(self.rows):
                values = profile.values[:, channel]
                measured = ~np.isnan(values) & (bool(enough[channel]) or corpus is self.corpus)
                for letter in _LETTERS:
                    here = profile.letters == ord(letter) if letter in NUCLEOTIDES else _is_other(profile.letters)
                    found[letter, channel].append(np.clip(values[measured & here], 0, 1))
        return {key: np.concatenate(parts) for key, parts in found.items()}


_LETTERS = NUCLEOTIDES + "N"


def _is_other(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return ~np.isin(letters, np.frombuffer(NUCLEOTIDES.encode(), dtype=np.uint8))


def _median(values: npt.NDArray[np.float32]) -> float:
    return float(np.median(values)) if len(values) else 0.5


def _mean_error(
    values: dict[tuple[str, int], npt.NDArray[np.float32]], predicted: dict[tuple[str, int], float]
) -> float:
    total = sum(float(np.abs(found - predicted[key]).sum(dtype=np.float64)) for key, found in values.items())
    return total / max(sum(len(found) for found in values.values()), 1)
