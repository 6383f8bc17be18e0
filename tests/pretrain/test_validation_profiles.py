"""Validation on profiles: its error and medians against an independent computation, and the real PK50 files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.reactivity import Profile, ReactivityCorpus
from data.reactivity_config import ReactivitySource, SplitConfig
from data.reactivity_filter import SampleFilter
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.validation_profiles import ProfileValidation
from tests.data.reactivity_files import build
from tests.pretrain.reactivity_profiles import NAN, Constant, Places, objective, profile

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Profiles:
    """What a validation asks of a corpus, from profiles in memory."""

    path, channels, split, clusters = Path("made-up"), ["2A3", "DMS"], "validation", None

    def __init__(self, profiles: list[Profile]) -> None:
        self._profiles, self.count = profiles, len(profiles)
        self.lengths = np.array([len(one.letters) for one in profiles], dtype=np.uint32)

    def profiles(self, ids: np.ndarray) -> list[Profile]:
        return [self._profiles[i] for i in ids]


HELD_OUT = Profiles(
    [
        profile("ACG", [[0.5, NAN], [-0.2, 1.4], [NAN, 0.3]]),
        profile("UA", [[0.1, 0.2], [0.7, 0.9]], [1.0, 0.1]),  # no signal-to-noise rule in validation
    ]
)
TRAINING = Profiles(
    [
        profile("AAAC", [[0.2, 0.0], [0.4, 0.1], [0.6, 0.8], [2.0, NAN]]),
        profile("AACG", [[-1.0, 0.9], [0.8, 0.9], [0.8, 0.9], [0.0, 0.9]], [5.0, 0.9]),  # DMS does not count
    ]
)


def engine(model: torch.nn.Module) -> Engine:
    return cast(Engine, SimpleNamespace(deepspeed=model, module=model))


def run(model: torch.nn.Module, corpus: Any, budget: int = 10**6, **settings: Any) -> dict[str, Any]:
    validation = ProfileValidation(corpus, objective(**settings), 100, budget)
    report = validation.run(engine(model), ALONE, ALONE.meet)
    assert report is not None
    return report


def test_the_error_by_hand() -> None:
    report = run(Constant(0.4, 1.5), HELD_OUT)
    first, second = 0.1 + 0.4 + 0.3 + 0.3, 0.5 + 1.2 + 1.3 + 0.6
    assert report["loss_2A3"] == pytest.approx(first / 4)
    assert report["loss_DMS"] == pytest.approx(second / 4)
    assert report["loss"] == pytest.approx((first + second) / 8)
    assert (report["targets"], report["sequences"]) == (8, 2)
    assert run(Constant(0.4, 1.5), HELD_OUT, budget=5) == report  # one sample per micro-batch


def test_it_averages_both_directions_where_training_flips() -> None:
    assert run(Places(), HELD_OUT, flip=0.5)["loss_2A3"] == pytest.approx((9.5 + 11 + 7.9 + 4.3) / 4)
    assert run(Places(), HELD_OUT)["loss_2A3"] == pytest.approx((0.5 + 11 + 2.9 + 9.3) / 4)


def test_weights_sampling_noise_and_flanks_are_of_training_only() -> None:
    plain = run(Constant(0.4, 1.5), HELD_OUT)
    every = {"weighting": "log_signal_to_noise", "sampling": "signal_to_noise", "flank_5": 1, "noise": 1.0}
    assert run(Constant(0.4, 1.5), HELD_OUT, **every) == plain


def test_the_medians_by_hand() -> None:
    validation = ProfileValidation(HELD_OUT, objective(), 100, 10**6)
    references = validation.references(TRAINING)
    # 2A3 clipped: A 0.2 0.4 0.6 0 0.8 (median 0.4), C 1 0.8 (0.9), G 0; all: 0 0 0.2 0.4 0.6 0.8 0.8 1 (0.5).
    # DMS of the first alone: A 0 0.1 0.8 (0.1); all the same. U was never seen: the median of the channel.
    constant = (0.0 + 0.5 + 0.4 + 0.2) + (0.9 + 0.2 + 0.1 + 0.8)
    by_letter = (0.1 + 0.9 + 0.4 + 0.3) + (0.9 + 0.2 + 0.1 + 0.8)
    assert references["channel_median"]["loss"] == pytest.approx(constant / 8)
    assert references["nucleotide_median"]["loss"] == pytest.approx(by_letter / 8)
    # 2A3 alone: 0.5, -0.2 -> 0, 0.1, 0.7 at A, C, U, A; DMS: 1.4 -> 1, 0.3, 0.2, 0.9 at C, G, U, A.
    assert references["channel_median"]["loss_2A3"] == pytest.approx((0.0 + 0.5 + 0.4 + 0.2) / 4)
    assert references["channel_median"]["loss_DMS"] == pytest.approx((0.9 + 0.2 + 0.1 + 0.8) / 4)
    assert references["nucleotide_median"]["loss_2A3"] == pytest.approx((0.1 + 0.9 + 0.4 + 0.3) / 4)


def test_only_the_first_sequences_are_used() -> None:
    validation = ProfileValidation(HELD_OUT, objective(), 1, 10**6)
    report = validation.run(engine(Constant(0.4, 1.5)), ALONE, ALONE.meet)
    assert report is not None
    assert (report["sequences"], report["targets"]) == (1, 4)


def test_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"has the channels 2A3, DMS, but objective\.channels is DMS, 2A3"):
        ProfileValidation(HELD_OUT, objective(channels=["DMS", "2A3"]), 1, 100)


@pytest.fixture(scope="module")
def clean(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The 2,553 clean sequences of PK50, in one split."""
    pytest.importorskip("pyarrow")
    output = tmp_path_factory.mktemp("pk50") / "corpus"
    source = ReactivitySource("pk50", str(shared_data / "chemical_mapping" / "ribonanza_pk50_*.csv.gz"))
    build(output, sources=[source], split=SplitConfig(folds=0))
    return ReactivityCorpus.open(output).view(SampleFilter.of("clean"))


def test_figures_of_pk50(clean: Any) -> None:
    """Spec 13: 0.2647 for the best constant per channel, 0.2167 for the median of each nucleotide."""
    assert clean.count == 2553
    references = ProfileValidation(clean, objective(), 10**6, 10**6).references(clean)
    assert references["channel_median"]["loss"] == pytest.approx(0.2647, abs=5e-5)
    assert references["nucleotide_median"]["loss"] == pytest.approx(0.2167, abs=5e-5)
    print(references)
    for figures in references.values():
        assert (figures["loss_2A3"] + figures["loss_DMS"]) / 2 == pytest.approx(figures["loss"], abs=1e-3)


def test_medians_and_errors_agree_with_an_independent_computation(clean: Any) -> None:
    profiles = clean.profiles(np.arange(clean.count))
    letters = np.concatenate([one.letters for one in profiles])
    values = np.clip(np.concatenate([one.values for one in profiles]), 0, 1)
    predicted = np.empty_like(values)
    for letter in b"ACGU":
        predicted[letters == letter] = np.nanmedian(values[letters == letter], axis=0)
    expected = np.nanmean(np.abs(values - predicted))
    one = ProfileValidation(clean, objective(), 10**6, 10**6)
    assert one.references(clean)["nucleotide_median"]["loss"] == pytest.approx(expected, rel=1e-6)
    # The same error comes out of a model that predicts the medians.
    table = [np.nanmedian(values[letters == letter], axis=0) for letter in b"ACGU"]
    model = _ByLetter(torch.tensor(np.array([*table, [0.5, 0.5]])).float())
    report = one.run(engine(model), ALONE, ALONE.meet)
    assert report is not None
    assert report["loss"] == pytest.approx(expected, rel=1e-6)
    assert report["targets"] == 352_314


class _ByLetter(torch.nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, tokens: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        return self.table[tokens]


def test_a_request_to_stop_ends_it() -> None:
    assert ProfileValidation(HELD_OUT, objective(), 2, 100).run(engine(Places()), ALONE, lambda problem: True) is None
