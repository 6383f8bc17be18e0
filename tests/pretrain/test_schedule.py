"""Learning rates of the published schedule (specs: rinalmo 5 and 11.3)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pretrain.schedule import learning_rate

GIGA = {
    "peak": 5e-5,
    "name": "cosine",
    "warmup_steps": 2000,
    "warmup_start": 1e-7,
    "minimum": 1e-5,
    "decay_steps": 200_000,
    "total_steps": 202_000,
}
RNAERNIE = {
    "peak": 1e-4,
    "name": "trapezoid",
    "warmup_steps": 129_000,
    "warmup_start": 0.0,
    "minimum": 5e-5,
    "decay_steps": 129_000,
    "total_steps": 2_580_000,
}


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, "1.00e-07"), (2000, "5.00e-05"), (12_649, "4.97e-05"), (75_893, "3.80e-05"), (160_714, "1.41e-05")],
)
def test_giga_has_the_learning_rates_of_the_specification(step, rate):
    assert f"{learning_rate(step, **GIGA):.2e}" == rate


def test_warm_up_is_linear():
    rates = [learning_rate(step, **GIGA) for step in range(2001)]
    assert rates[1000] == pytest.approx((1e-7 + 5e-5) / 2)
    differences = [b - a for a, b in pairwise(rates)]
    assert max(differences) == pytest.approx(min(differences))


@pytest.mark.parametrize("step", [202_000, 202_001, 300_000, 402_000, 10**9])
def test_the_minimum_stays_after_the_end(step):
    assert learning_rate(step, **GIGA) == 1e-5


def test_the_cosine_falls_all_the_way_and_is_halfway_at_half_time():
    rates = [learning_rate(step, **GIGA) for step in range(2000, 202_000, 500)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(102_000, **GIGA) == pytest.approx(3e-5)


def test_constant_stays_at_the_peak_after_the_warm_up():
    constant = {**GIGA, "name": "constant"}
    assert learning_rate(1999, **constant) == learning_rate(1999, **GIGA)
    assert {learning_rate(step, **constant) for step in (2000, 50_000, 10**7)} == {5e-5}


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(0, **{**GIGA, "warmup_steps": 0}) == 5e-5


@pytest.mark.parametrize("decay_steps", [0, -5])
def test_no_steps_to_decay_in_gives_the_minimum(decay_steps):
    rate = learning_rate(2000, **{**GIGA, "decay_steps": decay_steps})
    assert rate == 1e-5
    assert math.isfinite(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (64_500, 5e-5), (129_000, 1e-4), (2_451_000, 1e-4), (2_515_500, 7.5e-5), (2_580_000, 5e-5)],
)
def test_rnaernie_has_the_learning_rates_of_its_specification(step, rate):
    assert learning_rate(step, **RNAERNIE) == pytest.approx(rate)


def test_linear_falls_from_the_end_of_the_warm_up():
    linear = {**RNAERNIE, "name": "linear", "decay_steps": 2_451_000}
    assert learning_rate(129_000, **linear) == 1e-4
    assert learning_rate(129_000 + 2_451_000 // 2, **linear) == pytest.approx(7.5e-5)
    assert learning_rate(3_000_000, **linear) == pytest.approx(5e-5)
