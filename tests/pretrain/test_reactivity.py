"""The reactivity objective against numbers worked out by hand (spec ribonanzanet 4)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.loader import Moment
from data.reactivity import Profile
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from models.ribonanzanet_cost import _forward
from pretrain.errors import PretrainError
from pretrain.objectives.reactivity import Reactivity, ReactivityConfig, cost, kept_share, reversed_places
from tests.pretrain.reactivity_profiles import NAN, Constant, Places, keys, objective, profile

LAST = Moment.last()
FIRST = profile("ACG", [[0.5, NAN], [-0.2, 1.4], [NAN, 0.3]])
SECOND = profile("UA", [[0.1, 0.2], [0.7, 0.9]], signal_to_noise=[1.0, 0.999])


def summed(one: Reactivity, profiles: list[Profile], model: torch.nn.Module, moment: Moment | None = None) -> float:
    return float(one.loss(model, one.collate(profiles, keys(len(profiles)), moment))[0].detach())


def test_nan_clip_and_the_signal_to_noise_rule_in_training() -> None:
    one = objective()
    batch = one.collate([FIRST, SECOND], keys(2))
    assert batch.tokens.tolist() == [[0, 1, 2], [3, 0, 4]]
    assert batch.is_real is not None
    assert batch.is_real.tolist() == [[True] * 3, [True, True, False]]
    expected = [[[0.5, 0.0], [0.0, 1.0], [0.0, 0.3]], [[0.1, 0.2], [0.7, 0.9], [0.0, 0.0]]]
    np.testing.assert_allclose(batch.targets.numpy(), expected, atol=1e-7)
    # 2A3 of the second sample has a ratio of exactly 1 and counts; DMS is just below and does not.
    assert batch.weights.tolist() == [[[1, 0], [1, 1], [0, 1]], [[1, 0], [1, 0], [0, 0]]]
    assert batch.weight == 6
    # |0.4-0.5| + |0.4-0| + |0.4-0.1| + |0.4-0.7| of 2A3 and |1.5-1| + |1.5-0.3| of DMS: predictions are not clipped.
    loss, counts = one.loss(Constant(0.4, 1.5), batch)
    assert float(loss.detach()) == pytest.approx(0.1 + 0.4 + 0.3 + 0.3 + 0.5 + 1.2)
    assert int(counts["targets"]) == 6
    assert one.figures(2.8, 6.0, 6.0) == {"loss": pytest.approx(2.8 / 6), "targets": 6}


def test_validation_has_no_signal_to_noise_rule() -> None:
    one = objective()
    batch = one.collate([FIRST, SECOND], keys(2), LAST)
    assert batch.weight == 8
    assert summed(one, [FIRST, SECOND], Constant(0.4, 1.5), LAST) == pytest.approx(2.8 + 1.3 + 0.6)


def test_a_channel_without_profile_does_not_count() -> None:
    batch = objective().collate([profile("AC", [[0.1, NAN], [0.2, NAN]], [5.0, NAN])], keys(1))
    assert batch.weights[0].tolist() == [[1, 0], [1, 0]]


def test_the_threshold_of_the_rule_is_a_setting() -> None:
    assert objective(min_signal_to_noise=0.5).collate([SECOND], keys(1)).weight == 4
    assert objective(min_signal_to_noise=1.5).collate([SECOND], keys(1)).weight == 0


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({}, 1.0, 1.0),
        ({"weighting": "log_signal_to_noise"}, math.log(4), math.log(2)),
        ({"weighting": "clipped_signal_to_noise", "min_signal_to_noise": 0.5}, 1.0, 1.0),
        ({"weighting": "error"}, 1.0, 0.5),
    ],
)
def test_weightings(settings: dict[str, object], first: float, second: float) -> None:
    one = profile("A", [[0.2, 0.3]], [3.0, 1.0], errors=[[0.0, 0.25]])
    weights = objective(**settings).collate([one], keys(1)).weights[0, 0]
    np.testing.assert_allclose(weights.numpy(), [first, second], rtol=1e-6)


def test_weights_below_and_above_their_limits() -> None:
    noisy = profile("A", [[0.2, 0.3]], [0.7, 0.4])
    clipped = objective(weighting="clipped_signal_to_noise", min_signal_to_noise=0.5)
    np.testing.assert_allclose(clipped.collate([noisy], keys(1)).weights[0, 0].numpy(), [0.7, 0.0], rtol=1e-6)
    lower = objective(weighting="clipped_signal_to_noise", min_signal_to_noise=0.3)
    np.testing.assert_allclose(lower.collate([noisy], keys(1)).weights[0, 0].numpy(), [0.7, 0.5], rtol=1e-6)
    loud = profile("A", [[0.2, 0.3]], [1e6, -1.0])
    logs = objective(weighting="log_signal_to_noise", min_signal_to_noise=-2.0)
    assert logs.collate([loud], keys(1)).weights[0, 0].tolist() == [10.0, 0.0]
    unknown = profile("A", [[0.2, 0.3]], errors=[[NAN, 0.75]])
    errors = objective(weighting="error").collate([unknown], keys(1)).weights[0, 0]
    np.testing.assert_allclose(errors.numpy(), [0.0, 0.1], rtol=1e-6)


def test_a_weighted_sum_and_its_weight() -> None:
    one = profile("A", [[0.2, 0.3]], [3.0, 1.0])
    weighted = objective(weighting="log_signal_to_noise")
    assert summed(weighted, [one], Constant(0.0, 0.0)) == pytest.approx(0.2 * math.log(4) + 0.3 * math.log(2))
    assert weighted.collate([one], keys(1)).weight == pytest.approx(math.log(4) + math.log(2))


def test_flip_turns_letters_targets_and_masks_without_complement() -> None:
    always = objective(flip=1.0).collate([FIRST, SECOND], keys(2))
    assert always.tokens.tolist() == [[2, 1, 0], [0, 3, 4]]  # padding stays behind
    expected = [[[0.0, 0.3], [0.0, 1.0], [0.5, 0.0]], [[0.7, 0.9], [0.1, 0.2], [0.0, 0.0]]]
    np.testing.assert_allclose(always.targets.numpy(), expected, atol=1e-7)
    assert always.weights.tolist() == [[[0, 1], [1, 1], [1, 0]], [[1, 0], [1, 0], [0, 0]]]


def test_flip_is_drawn_by_the_key_of_a_sample_and_never_in_validation() -> None:
    one, many = objective(flip=0.5), [profile("AC", [[0.1, 0.2], [0.3, 0.4]])] * 2000
    drawn = keys(2000)
    flipped = one.collate(many, drawn).tokens[:, 0] == 1
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.04)
    order = np.random.default_rng(0).permutation(2000)
    assert torch.equal(one.collate(many, drawn[order]).tokens[:, 0] == 1, flipped[torch.from_numpy(order)])
    assert not torch.equal(one.collate(many, keys(2000, "next epoch")).tokens[:, 0] == 1, flipped)
    assert not (one.collate(many, drawn, LAST).tokens[:, 0] == 1).any()


def test_flip_exchanges_the_flanks_with_the_rest() -> None:
    five = profile("ACGUA", [[0.1, 0.2]] * 5)
    one = objective(flank_5=1, flank_3=2)
    assert one.collate([five], keys(1)).weights[0, :, 0].tolist() == [0, 1, 1, 0, 0]
    back = objective(flank_5=1, flank_3=2, flip=1.0)
    assert back.collate([five], keys(1)).weights[0, :, 0].tolist() == [0, 0, 1, 1, 0]
    assert one.collate([five], keys(1), LAST).weights[0, :, 0].tolist() == [1] * 5
    assert objective(flank_5=3, flank_3=9).collate([five], keys(1)).weight == 0


def test_prediction_averages_both_directions_and_leaves_padding() -> None:
    one = objective(flip=0.5)
    batch = one.collate([FIRST, SECOND], keys(2), LAST)
    predicted = one.predict(Places(), batch)
    # ACG forwards: 0, 11, 22. Read backwards GCA gives 2, 11, 20 for G, C, A; turned back that is 20, 11, 2.
    assert predicted[0, :, 0].tolist() == [10.0, 11.0, 12.0]
    # UA forwards: 3, 10. AU gives 0, 13; turned back 13, 0.
    assert predicted[1, :2, 0].tolist() == [8.0, 5.0]
    assert torch.equal(predicted[..., 1], -predicted[..., 0])
    alone = one.predict(Places(), one.collate([SECOND], keys(1), LAST))
    assert torch.equal(alone[0], predicted[1, :2])
    assert objective().predict(Places(), batch)[0, :, 0].tolist() == [0.0, 11.0, 22.0]
    assert reversed_places(np.array([3, 1]), 4).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3]]


def test_a_second_read_is_identical_and_nothing_is_written_to() -> None:
    errors = [[0.1, 0.1], [0.2, 0.2], [0.1, 0.3]]
    one = profile("ACG", [[0.5, NAN], [-0.2, 1.4], [NAN, 0.3]], errors=errors)
    for array in (one.values, one.errors, one.signal_to_noise):
        array.flags.writeable = False  # a write would raise
    every = objective(flip=0.5, weighting="error", noise=1.0, flank_5=1, sampling="signal_to_noise")
    first, second = (every.collate([one] * 8, keys(8)) for _ in range(2))
    for name in ("tokens", "targets", "weights"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.weight == second.weight > 0
    assert np.isnan(one.values[0, 1])


def test_noise_is_added_before_clipping_where_the_error_is_known() -> None:
    one = profile("A" * 4000, [[0.5, 0.5]] * 4000, errors=[[0.1, NAN]] * 4000)
    clean, noisy = objective(), objective(noise=2.0)
    batch = noisy.collate([one], keys(1))
    added = batch.targets[0, :, 0].double() - 0.5
    assert float(added.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(added.std()) == pytest.approx(0.2 * 0.9772, rel=0.05)  # of a normal clipped at 2.5 deviations: 0.9772
    assert added.abs().max() <= 0.5
    assert torch.equal(batch.targets[..., 1], clean.collate([one], keys(1)).targets[..., 1])
    assert torch.equal(batch.weights, clean.collate([one], keys(1)).weights)
    assert torch.equal(noisy.collate([one], keys(1)).targets, batch.targets)
    assert not torch.equal(noisy.collate([one], keys(1, "other")).targets, batch.targets)
    assert torch.equal(noisy.collate([one], keys(1), LAST).targets, clean.collate([one], keys(1)).targets)


def test_noise_stays_with_its_nucleotide_when_a_sample_is_read_backwards() -> None:
    one = profile("ACGU", [[0.5, 0.5]] * 4, errors=[[0.1, 0.1]] * 4)
    there = objective(noise=1.0).collate([one], keys(1)).targets
    back = objective(noise=1.0, flip=1.0).collate([one], keys(1)).targets
    assert torch.equal(there.flip(1), back)


def test_sampling_takes_the_expected_share() -> None:
    quiet = profile("A", [[0.2, 0.3]], [2.0, 1.0])
    share = 0.5 * math.log(1.5 + 1.01)
    assert kept_share(quiet) == pytest.approx(share)
    batch = objective(sampling="signal_to_noise").collate([quiet] * 5000, keys(5000))
    assert len(batch.lengths) / 5000 == pytest.approx(share, abs=0.02)
    assert batch.weight == 2 * len(batch.lengths)
    assert kept_share(profile("A", [[0.2, 0.3]], [40.0, 20.0])) == 1.0
    assert kept_share(profile("A", [[0.2, 0.3]], [-3.0, NAN])) == 0.005
    assert len(objective(sampling="signal_to_noise").collate([quiet] * 50, keys(50), LAST).lengths) == 50


def test_an_empty_micro_batch_is_zero_and_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = RibonanzaNet(RibonanzaNetConfig.named("nano", layers=2, width=16, heads=2, ffn=16, pair=8))
    one = objective()
    batch = one.collate([], keys(0))
    assert (batch.weight, int(batch.nucleotides.sum())) == (0.0, 0)
    loss, counts = one.loss(model, batch)
    loss.backward()
    assert (float(loss.detach()), int(counts["targets"])) == (0.0, 0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert one.figures(0.0, 0.0, 0.0) == {"loss": 0.0, "targets": 0}


def test_gradients_of_a_padded_batch_are_those_of_its_samples() -> None:
    torch.manual_seed(0)
    model = RibonanzaNet(RibonanzaNetConfig.named("nano", layers=2, width=16, heads=2, ffn=16, pair=8, dropout=0.0))
    model.eval()
    one = objective()

    def gradients(batches: list[list[Profile]]) -> torch.Tensor:
        model.zero_grad()
        for profiles in batches:
            one.loss(model, one.collate(profiles, keys(len(profiles))))[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together, apart = gradients([[FIRST, SECOND]]), gradients([[FIRST], [], [SECOND]])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_unlabelled_samples_ask_for_nothing() -> None:
    one = objective()
    batch = one.collate(one.plain([FIRST.letters, SECOND.letters]), keys(2), LAST)
    assert batch.weight == 0
    assert batch.tokens.tolist() == [[0, 1, 2], [3, 0, 4]]


def test_other_letters_are_n_and_real() -> None:
    batch = objective().collate([profile("ARNU", [[0.1, 0.1]] * 4)], keys(1))
    assert batch.tokens.tolist() == [[0, 4, 4, 3]]
    assert batch.is_real is None
    assert batch.weight == 8


def test_the_cost_is_that_of_the_published_model() -> None:
    """Relative to a nucleotide of a short sequence, the forward pass of the published size (spec 11.1)."""
    lengths = np.array([50, 115, 177, 206, 457, 1024])
    assert cost(np.array([177, 457])).tolist() == [2769, 23464]
    config = RibonanzaNetConfig.named("base")
    work = np.array([_forward(config, int(n)) for n in lengths])
    counted = cost(lengths) / work
    np.testing.assert_allclose(counted / counted[2], 1.0, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"channels": []}, "objective.channels is"),
        ({"channels": ["DMS", "DMS"]}, "one or more different names"),
        ({"flip": 1.5}, "objective.flip is 1.5, but must be a probability"),
        ({"weighting": "snr"}, "objective.weighting is 'snr', but must be one of none, log_signal_to_noise"),
        ({"sampling": "some"}, "objective.sampling is 'some'"),
        ({"noise": -1.0}, "objective.noise is -1.0, but must be 0 or more"),
        ({"flank_3": -1}, "objective.flank_3"),
        ({"min_signal_to_noise": NAN}, "objective.min_signal_to_noise is nan"),
        ({"weighting": "clipped_signal_to_noise"}, "else all weights are 1"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(PretrainError, match=sentence.replace("(", r"\(")):
        Reactivity(ReactivityConfig(**settings))  # type: ignore[arg-type]


def test_classes_that_are_none_and_lengths_below_zero() -> None:
    config = ReactivityConfig()
    config.samples.classes = "clean+tidy"
    with pytest.raises(PretrainError, match="'tidy' is no class of profiles; there are clean, dirty, noisy"):
        Reactivity(config)
    config.samples.classes, config.samples.max_length = "clean", -1
    with pytest.raises(PretrainError, match=r"objective\.samples\.max_length is -1"):
        Reactivity(config)


def test_a_channel_may_be_missing_from_one_corpus_but_not_from_all() -> None:
    def corpus(name: str, *ratios: list[float]) -> SimpleNamespace:
        return SimpleNamespace(path=name, signal_to_noise=np.array(ratios, dtype=np.float32))

    one, other = corpus("a", [5.0, NAN], [0.2, 0.9]), corpus("b", [NAN, 1.0])
    objective().require_targets([one, other])
    sentence = "a: no profile of DMS among the samples of this stage has a signal-to-noise of at least 1, so DMS would"
    with pytest.raises(DataError, match=sentence):
        objective().require_targets([one])
    objective(min_signal_to_noise=0.9).require_targets([one])
