"""The probe of structure on maps that are made by hand."""

import numpy as np
import pytest

from data import dot_bracket
from pretrain.contacts import Probe, corrected, fit, pairs_of, precision, probe

HAIRPIN = "((((((.......))))))....(((((((.....))))).)).."


def example(structure, seed, strength=1.0, channels=6, telling=(2,)):
    """Row-stochastic maps of noise; the ``telling`` channels attend to the partner besides."""
    rng = np.random.default_rng(seed)
    partners = dot_bracket.partners(structure)
    length = len(partners)
    logits = rng.normal(0, 1, (channels, length, length))
    paired = np.flatnonzero(partners >= 0)
    for channel in telling:
        logits[channel, paired, partners[paired]] += 4 * strength
    maps = np.exp(logits)
    return maps / maps.sum(-1, keepdims=True), partners


def test_correction_removes_what_rows_and_columns_explain():
    rng = np.random.default_rng(0)
    weights = rng.random((3, 9))
    product = weights[:, :, None] * weights[:, None, :]
    assert abs(corrected(product)).max() < 1e-12
    maps = rng.random((3, 9, 9))
    found = corrected(maps)
    both = maps + maps.transpose(0, 2, 1)
    by_hand = both[1, 2, 5] - both[1, 2].sum() * both[1, :, 5].sum() / both[1].sum()
    assert found[1, 2, 5] == pytest.approx(by_hand)
    assert np.allclose(found, found.transpose(0, 2, 1))
    assert np.isfinite(corrected(np.zeros((1, 4, 4)))).all()


def test_pairs_far_enough_apart():
    i, j = pairs_of(9, 6)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 6), (0, 7), (0, 8), (1, 7), (1, 8), (2, 8)]


def test_precision_by_hand():
    partners = dot_bracket.partners("(((......)))........")
    scores = np.zeros((20, 20))
    for rank, (i, j) in enumerate([(0, 11), (3, 12), (1, 10), (4, 14), (2, 9)]):
        scores[i, j] = 1 - rank / 100
    scores[0, 3] = 5  # too close to count
    assert precision(scores, partners) == {"precision_l": 3 / 20, "precision_l2": 3 / 10, "precision_l5": 2 / 4}
    assert precision(np.zeros((4, 4)), np.full(4, -1))["precision_l"] == 0.0


def test_the_fit_is_the_optimum():
    """The gradient of the penalised likelihood, by differences of the likelihood itself, is zero at the solution."""
    maps, partners = example(HAIRPIN, 3, strength=0.5)
    fitted = fit([(maps, partners)], penalty=2.0)
    i, j = pairs_of(len(partners))
    x, y = corrected(maps)[:, i, j].T, partners[i] == j
    spread = x.std(axis=0)

    def cost(weights, bias):
        p = 1 / (1 + np.exp(-(x @ weights + bias)))
        return -np.log(np.where(y, p, 1 - p)).sum() + ((weights * spread) ** 2).sum()

    best = cost(fitted.weights, fitted.bias)
    for channel in range(6):
        for step in (1e-2, -1e-2):
            moved = fitted.weights.copy()
            moved[channel] += step / spread[channel]
            assert cost(moved, fitted.bias - step / spread[channel] * x[:, channel].mean()) > best
    assert cost(fitted.weights, fitted.bias + 1e-2) > best
    assert cost(fitted.weights, fitted.bias - 1e-2) > best
    assert np.argmax(fitted.weights * spread) == 2


def test_perfectly_separable_structures_have_a_finite_fit():
    maps, partners = example(HAIRPIN, 3, strength=3.0)
    fitted = fit([(maps, partners)])
    assert np.isfinite(fitted.weights).all()
    assert min(fitted.probabilities(maps)[0, 18], fitted.probabilities(maps)[18, 0]) > 0.5


def test_structure_is_found_in_maps_that_hold_it_and_nowhere_else():
    known = [example(HAIRPIN, seed) for seed in range(8)]
    other = "..(((((...((((((....))))))....)))))..........."
    found = probe(known, [example(other, seed) for seed in range(20, 28)])
    noise = [example(HAIRPIN, seed, strength=0) for seed in range(8)]
    blind = probe(noise, [example(other, seed, strength=0) for seed in range(20, 28)])
    pairs = other.count("(")
    assert found["precision_l5"] > 0.95
    assert found["precision_l"] > 0.9 * pairs / len(other)
    assert blind["precision_l5"] < 0.15
    assert found == probe(known, [example(other, seed) for seed in range(20, 28)])


def test_a_constant_map_has_no_weight():
    maps, partners = example(HAIRPIN, 1)
    maps[4] = 0.0
    assert fit([(maps, partners)]).weights[4] == 0.0


def test_refusal():
    maps, partners = example("....................", 1)
    with pytest.raises(ValueError, match="at least 6 apart"):
        fit([(maps, partners)])
    with pytest.raises(ValueError, match="no held-out structure"):
        probe([example(HAIRPIN, 1)], [])
    assert Probe(np.zeros(6), 0.0).probabilities(maps).shape == (20, 20)
