"""Clustered corpora: the cluster is what an epoch visits once, and one member of it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from data.order import Order

SIZES = np.random.default_rng(3).integers(1, 9, size=3000)
POINTERS = np.concatenate([[0], np.cumsum(SIZES)])
CLUSTER_OF = np.repeat(np.arange(len(SIZES)), SIZES)


@pytest.fixture
def order() -> Order:
    return Order(np.array([POINTERS[-1]]), seed=11, global_batch=128, pointers=POINTERS, window=512)


def test_every_epoch_visits_every_cluster_once_and_every_step_holds_different_clusters(order: Order) -> None:
    steps = [order.step(step) for step in range(100)]
    for _, ids in steps:
        assert len(set(CLUSTER_OF[ids].tolist())) == 128
    epochs, ids = np.concatenate([e for e, _ in steps]), np.concatenate([i for _, i in steps])
    for epoch in range(4):
        assert sorted(CLUSTER_OF[ids[epochs == epoch]]) == list(range(3000))


def test_members_are_drawn_uniformly_and_afresh_each_epoch(order: Order) -> None:
    epochs = 400
    _, ids = order.positions(0, 3000 * epochs)
    counts = np.bincount(ids, minlength=POINTERS[-1])
    expected = epochs / SIZES[CLUSTER_OF]
    several = SIZES[CLUSTER_OF] > 1
    chi2 = ((counts - expected)[several] ** 2 / expected[several]).sum()
    degrees = (SIZES[SIZES > 1] - 1).sum()
    assert abs(chi2 / degrees - 1) < 5 * np.sqrt(2 / degrees)
    assert np.all(counts[~several] == epochs)


def test_a_step_is_found_without_the_steps_before_it(order: Order) -> None:
    fresh = Order(np.array([POINTERS[-1]]), seed=11, global_batch=128, pointers=POINTERS, window=512)
    for step in (2345, 23, 24):
        for a, b in zip(order.step(step), fresh.step(step), strict=True):
            assert np.array_equal(a, b)


def test_steps_are_few_milliseconds_apart_in_a_corpus_of_17_million_clusters() -> None:
    """No time is asserted; what is held is: one window, the block order, and the pointers themselves."""
    pointers = np.arange(0, 36_000_001, 2, dtype=np.uint32)
    order = Order(np.array([36_000_000]), seed=1, global_batch=1344, pointers=pointers)
    _, ids = order.step(9_999)
    assert len(set((ids // 2).tolist())) == 1344
    held = sum(a.nbytes for window in order._windows.values() for a in [window])
    held += sum(a.nbytes for pair in order._blocks.values() for a in pair)
    assert held < 10_000_000
