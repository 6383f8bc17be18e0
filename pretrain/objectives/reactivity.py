"""Regression of chemical reactivity at every nucleotide (specs: ribonanzanet 4).

The loss is the absolute difference to the value clipped to [0, 1], over the places and channels that were measured and
whose profile has enough signal, weighted equally unless asked otherwise; its mean is taken once over the whole global
batch. Predictions are not clipped. In training a profile is read backwards with a probability (`flip`), targets and
masks with it and no complement; prediction is then the mean over both directions. What a sample becomes is a pure
function of its key; the corpus is never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data import randomness
from data.alphabet import RIBONANZANET
from data.errors import DataError
from data.loader import Lengths, Moment
from data.reactivity import Profile
from data.reactivity_filter import SampleFilter
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.objectives.batch import Movable
from pretrain.objectives.reactivity_config import ReactivityConfig, Samples, check

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
__all__ = ["ProfileBatch", "Reactivity", "ReactivityConfig", "Samples", "cost"]


@dataclass
class ProfileBatch(Movable):
    """B sequences of similar lengths, padded to the longest, L. C channels."""

    tokens: Tensor  # [B, L] int64
    is_real: Tensor | None  # [B, L] bool; None without padding
    targets: Tensor  # [B, L, C] float32 in [0, 1]; 0 where not measured
    weights: Tensor  # [B, L, C] float32, 0 where nothing is asked
    weight: float  # their sum
    lengths: I64  # [B] nucleotides
    nucleotides: I64  # [B]


class Reactivity:
    """The objective: padded batches out of profiles (`collate`), and the loss of a model on them (`loss`)."""

    kind = "reactivity"
    data_fingerprint = ""  # what a filter takes is part of the view's
    one_per_micro_batch = False
    padded = True
    COUNTS = ("targets",)

    def __init__(self, config: ReactivityConfig):
        check(config)
        self.config, self.alphabet = config, RIBONANZANET
        self._pad = RIBONANZANET.ids["N"]

    def training(self, corpus: Any) -> Any:
        """The samples of the training split that this stage trains on, as a corpus.

        Raises DataError if there are none, channels lack, or errors are needed and wrong.
        """
        options = dict(vars(self.config.samples))
        classes, dropped = options.pop("classes"), tuple(options.pop("drop_libraries"))
        self.require_channels(corpus)
        if self.config.noise > 0 or self.config.weighting == "error":
            corpus.require_errors()
        return corpus.view(SampleFilter.of(classes, drop_libraries=dropped, **options))

    def require_targets(self, corpora: Sequence[Any]) -> None:
        """Raises DataError for a channel of which no sample of a stage would be trained on; a corpus may lack it."""
        lowest = self.config.min_signal_to_noise
        ratios = [np.nan_to_num(corpus.signal_to_noise, nan=-np.inf).max(axis=0) for corpus in corpora]
        enough = np.max(ratios, axis=0) >= lowest  # in float32, as in training
        for name, trained in zip(self.config.channels, enough.tolist(), strict=True):
            if not trained:
                raise DataError(
                    f"{' and '.join(str(corpus.path) for corpus in corpora)}: no profile of {name} among the samples "
                    f"of this stage has a signal-to-noise of at least {lowest:g}, so {name} would not be trained; take "
                    "other samples, lower objective.min_signal_to_noise, or leave the channel out of corpus and recipe."
                )

    def require_channels(self, corpus: Any) -> None:
        """Raises DataError unless a corpus has exactly the channels of the recipe, in its order."""
        if corpus.channels != self.config.channels:
            raise DataError(
                f"{corpus.path}: has the channels {', '.join(corpus.channels)}, but objective.channels is "
                f"{', '.join(self.config.channels)}; set it to those of the corpus, in their order."
            )

    def require(self, settings: Recipe) -> None:
        """Raises PretrainError unless the recipe's model can be trained on these channels, as it is meant to be."""
        model, channels = settings.model, self.config.channels
        if settings.compute.compile:
            raise PretrainError(
                "compute.compile=true is refused for reactivity: torch.compile fails on pairs of nucleotides whose "
                "number changes from batch to batch; set compute.compile=false"
            )
        if getattr(model, "special_tokens", False):
            raise PretrainError(
                "model.special_tokens=true is for reading and writing weights of others: profiles have no value at "
                "<cls> and <eos>, so they would stay untrained; set model.special_tokens=false"
            )
        if getattr(model, "channels", len(channels)) != len(channels):
            raise PretrainError(
                f"model.channels is {model.channels}, but objective.channels are {', '.join(channels)}; give as many "
                "channels in both"
            )

    def plain(self, letters: list[npt.NDArray[np.uint8]]) -> list[Profile]:
        """Samples made of sequences alone, nothing being measured."""
        nothing = [np.full((len(one), len(self.config.channels)), np.nan, np.float32) for one in letters]
        ratio = np.full(len(self.config.channels), np.nan, np.float32)
        return [Profile(one, none, none, ratio) for one, none in zip(letters, nothing, strict=True)]

    def costs(self, corpus: Lengths, ids: I64) -> I64:
        """[n] what samples count for in `batch.tokens_per_micro_batch`: see `cost`."""
        return cost(corpus.lengths[ids].astype(np.int64))

    def read(self, corpus: Any, ids: I64) -> list[Profile]:
        """What `collate` takes: the profiles of samples of a corpus."""
        profiles: list[Profile] = corpus.profiles(ids)
        return profiles

    def collate(
        self, profiles: Sequence[Profile], keys: npt.NDArray[np.uint64], moment: Moment | None = None
    ) -> ProfileBatch:
        """A micro-batch from profiles and one key each. Empty lists give one nucleotide without target.

        The ``moment`` `Moment.last()` is validation: nothing is flipped, left out or made noisy, and every measured
        value counts, whatever its signal (spec 4).
        """
        training = moment != Moment.last()
        if training and self.config.sampling == "signal_to_noise":
            shares = np.array([kept_share(profile) for profile in profiles])
            taken = np.flatnonzero(self._draw("sample", keys) < shares).tolist()
            profiles, keys = [profiles[i] for i in taken], keys[taken]
        if not profiles:
            return self._nothing()
        told = [
            self._target(profile, key if training else None)
            for profile, key in zip(profiles, keys[:, None], strict=True)
        ]
        flip = (self._draw("flip", keys) < self.config.flip) & training
        return self._padded([p.letters for p in profiles], [t for t, _ in told], [w for _, w in told], flip)

    def _nothing(self) -> ProfileBatch:
        """One N without a target, which counts for no nucleotide: a rank with nothing to do takes part all the same."""
        zero = [np.zeros((1, len(self.config.channels)), np.float32)]
        batch = self._padded([np.full(1, ord("N"), np.uint8)], zero, zero, np.zeros(1, dtype=bool))
        batch.nucleotides = np.zeros(1, dtype=np.int64)
        return batch

    def _target(self, profile: Profile, key: npt.NDArray[np.uint64] | None) -> tuple[F32, F32]:
        """(clipped values [L, C], weights [L, C]) of a sample; without key as validation sees it."""
        config, values = self.config, profile.values
        measured = ~np.isnan(values)
        weights = measured.astype(np.float32)
        if key is not None:
            weights *= self._weights(profile)
            weights[: config.flank_5] = 0
            weights[max(len(weights) - config.flank_3, 0) :] = 0
            if config.noise > 0:  # where the error is known
                values = values + config.noise * np.nan_to_num(profile.errors) * self._normal(values.shape, key)
        return np.clip(np.nan_to_num(values), 0, 1).astype(np.float32), weights

    def _weights(self, profile: Profile) -> F32:
        """[L, C] or [1, C] what measured values count for."""
        ratio = np.nan_to_num(profile.signal_to_noise, nan=-np.inf)[None]
        enough = (ratio >= self.config.min_signal_to_noise).astype(np.float32)
        if self.config.weighting == "log_signal_to_noise":
            return enough * np.clip(np.log1p(np.maximum(ratio, 0)), 0, 10)
        if self.config.weighting == "clipped_signal_to_noise":
            return enough * np.clip(ratio, 0.5, 1)
        if self.config.weighting == "error":  # 0 where it is unknown
            return enough * np.nan_to_num(1 / (1 + (profile.errors / 0.25) ** 2)).astype(np.float32)
        return enough

    def _padded(
        self,
        letters: list[npt.NDArray[np.uint8]],
        targets: list[F32],
        weights: list[F32],
        flip: npt.NDArray[np.bool_],
    ) -> ProfileBatch:
        lengths = np.array([len(one) for one in letters])
        shape = (len(letters), int(lengths.max()))
        tokens = np.full(shape, self._pad, dtype=np.int64)
        target, weight = (np.zeros((*shape, len(self.config.channels)), np.float32) for _ in range(2))
        for i, n in enumerate(lengths.tolist()):
            way = slice(None, None, -1) if flip[i] else slice(None)
            tokens[i, :n] = RIBONANZANET.lookup[letters[i]][way]
            target[i, :n], weight[i, :n] = targets[i][way], weights[i][way]
        is_real = np.arange(shape[1]) < lengths[:, None]
        return ProfileBatch(
            tokens=torch.from_numpy(tokens),
            is_real=None if is_real.all() else torch.from_numpy(is_real),
            targets=torch.from_numpy(target),
            weights=torch.from_numpy(weight),
            weight=float(weight.sum(dtype=np.float64)),
            lengths=lengths,
            nucleotides=lengths,
        )

    @staticmethod
    def _draw(name: str, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        return randomness.uniform(randomness.keys(randomness.key(name), keys), np.zeros(len(keys)))

    @staticmethod
    def _normal(shape: tuple[int, ...], key: npt.NDArray[np.uint64]) -> F32:
        """Standard normal numbers keyed by sample and place (Box and Muller)."""
        places = np.arange(int(np.prod(shape)))
        radius, angle = (
            randomness.uniform(randomness.keys(randomness.key(name), key).repeat(len(places)), places)
            for name in ("noise radius", "noise angle")
        )
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
        return normal.reshape(shape).astype(np.float32)

    def logits(self, model: nn.Module, batch: ProfileBatch) -> Tensor:
        """[B, L, C] predictions in float32, whatever the model computes in."""
        predicted: Tensor = model(batch.tokens, batch.is_real)
        return predicted.float()

    def predict(self, model: nn.Module, batch: ProfileBatch) -> Tensor:
        """[B, L, C] predictions, averaged with those of the sequences read backwards if training flips."""
        forward = self.logits(model, batch)
        if not self.config.flip:
            return forward
        index = reversed_places(batch.lengths, batch.tokens.shape[1]).to(batch.tokens.device)
        backward: Tensor = model(batch.tokens.gather(1, index), batch.is_real)
        return (forward + backward.float().gather(1, index[..., None].expand_as(forward))) / 2

    def loss(self, model: nn.Module, batch: ProfileBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum of absolute differences; the COUNTS: places and channels that are asked for)."""
        difference = (self.logits(model, batch) - batch.targets).abs()
        return (difference * batch.weights).sum(), {"targets": (batch.weights > 0).sum()}

    def figures(self, loss: float, weight: float, targets: float) -> dict[str, float | int]:
        """What the log shows of a summed loss, the summed weight and the sums of COUNTS."""
        return {"loss": loss / weight if weight else 0.0, "targets": int(targets)}

    def described(self) -> dict[str, object]:
        """For the model card: what it is trained to do, in words."""
        config = self.config
        return {
            "Outputs": ", ".join(config.channels),
            "Objective": "reactivity at every nucleotide: absolute difference to the value clipped to [0, 1], where it "
            f"was measured with a signal-to-noise of at least {config.min_signal_to_noise:g}",
            "Samples": config.samples.classes,
            "Read backwards in training": f"{config.flip:.0%}",
        }

    def flops(self, module: Any, config: Any, batch: ProfileBatch) -> float:
        """Of training on the micro-batch; ``module`` is the model's file."""
        flops: float = module.flops(config, batch.lengths.tolist())
        return flops

    def computed(self, settings: Recipe, batch: ProfileBatch, device: torch.device) -> tuple[int, int]:
        """(nucleotides of the micro-batch, places computed on, padding included)."""
        return int(batch.lengths.sum()), batch.tokens.numel()


def cost(lengths: I64) -> I64:
    """[n] what sequences count for when micro-batches are filled and work is dealt out, in nucleotides.

    Time and memory have a part that grows with the length, one with its square (pairs) and one with its cube (triangle
    updates). The weights are those of the published size's forward pass (models/ribonanzanet_cost.py): 177
    nucleotides cost 2,769, and 457 cost 23,464.
    """
    length = lengths.astype(np.float64)
    return np.ceil(length * (1 + length / 15.3 + (length / 101) ** 2)).astype(np.int64)


def kept_share(profile: Profile) -> float:
    """Probability that a sample takes part in an epoch, by its mean signal-to-noise (spec 4, what other teams did)."""
    ratio = float(np.mean(np.nan_to_num(profile.signal_to_noise)))
    return float(np.clip(0.5 * np.log(max(ratio, 0.0) + 1.01), 0.005, 1.0))


def reversed_places(lengths: I64, longest: int) -> Tensor:
    """[B, L] int64: where to read each place from so that the real part of every row is reversed and padding stays."""
    place, length = np.arange(longest)[None], lengths[:, None]
    return torch.from_numpy(np.where(place < length, length - 1 - place, place).astype(np.int64))
