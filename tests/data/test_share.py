"""Mixtures: every corpus gets its weight, exactly and at every step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.order import Order
from data.share import Share, shares

weights = st.lists(st.floats(0.01, 10).map(lambda x: round(x, 2)), min_size=1, max_size=5)


@given(weights, st.integers(30, 2000), st.integers(0, 10**6))
def test_steps_are_full_and_every_corpus_keeps_its_weight(given_weights: list[float], n: int, step: int) -> None:
    mixture = shares(given_weights, n)
    assert sum(share.before(step + 1) - share.before(step) for share in mixture) == n
    total = sum(Fraction(str(weight)) for weight in given_weights)
    for share, weight in zip(mixture, given_weights, strict=True):
        drawn = share.before(step + 1) - share.before(step)
        assert 0 <= drawn <= share.most
        assert abs(share.before(step) - step * n * Fraction(str(weight)) / total) < max(len(given_weights), 1)


@given(weights, st.integers(30, 500), st.integers(0, 10**5))
def test_step_of_finds_the_step_that_draws_a_position(given_weights: list[float], n: int, position: int) -> None:
    for share in shares(given_weights, n):
        step = share.step_of(position)
        assert share.before(step) <= position < share.before(step + 1)


def test_weights_are_decimal_numbers_not_binary_ones() -> None:
    tenth, rest = shares([0.1, 0.9], 10)
    assert [tenth.before(step) for step in (1, 10, 1000)] == [1, 10, 1000]
    assert rest.before(1000) == 9000


def test_a_corpus_of_a_mixture_repeats_nothing_within_an_epoch_or_a_step() -> None:
    for share in shares([0.3, 0.5, 0.2], 17):
        order = Order(np.full(10, 13), seed=5, global_batch=17, share=share)
        drawn = [order.step(step) for step in range(100)]
        for _, ids in drawn:
            assert len(set(ids.tolist())) == len(ids)
        epochs, ids = np.concatenate([e for e, _ in drawn]), np.concatenate([i for _, i in drawn])
        for epoch in range(int(epochs.max())):
            assert sorted(ids[epochs == epoch]) == list(range(130))


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(DataError, match="above 0"):
        shares([1.0, 0.0], 100)
    with pytest.raises(DataError, match="too small for a mixture of 4"):
        shares([1, 1, 1, 1], 3)
    assert Share(8).before(5) == 40
