"""Which samples a step trains on: permutations, exact seeking, no repeats within a step."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from data import randomness
from data.errors import DataError
from data.order import Order, sample_keys

UNEVEN = [5, 1, 0, 17, 3, 40, 2, 2, 30, 0]  # 100 samples
GOLDEN_FIRST = [61, 71, 15, 50, 27, 91, 84, 72]
GOLDEN_SPANNING = [55, 0, 45, 57, 47, 72, 40, 44]
GOLDEN_KEYS = [5179672145207677516, 10228888610730988384]


def plain_epoch(block_counts: list[int], seed: int, window: int, epoch: int) -> list[int]:
    """The scheme of the module's first paragraph, without exchanges, with lists."""
    firsts = [sum(block_counts[:b]) for b in range(len(block_counts))]
    laid = []
    for b in randomness.permutation(randomness.key(seed, "blocks", epoch), len(block_counts)).tolist():
        laid += range(firsts[b], firsts[b] + block_counts[b])
    found = []
    for w, start in enumerate(range(0, len(laid), window)):
        part = laid[start : start + window]
        shuffle = randomness.permutation(randomness.key(seed, "window", epoch, w), len(part))
        found += [part[i] for i in shuffle.tolist()]
    return found


@pytest.mark.parametrize("window", [7, 16, 100, 262_144])
def test_the_first_epoch_equals_the_scheme_written_with_lists(window):
    order = Order(UNEVEN, seed=3, global_batch=10, window=window)
    _, ids = order.positions(0, 100)
    assert ids.tolist() == plain_epoch(UNEVEN, 3, window, 0)


@pytest.mark.parametrize("window", [7, 33, 262_144])
@pytest.mark.parametrize("batch", [1, 7, 13, 25, 60, 100, 130])
def test_every_epoch_holds_every_sample_once(batch, window):
    order = Order(UNEVEN, seed=1, global_batch=batch, window=window)
    for epoch in range(6):
        epochs, ids = order.positions(epoch * 100, (epoch + 1) * 100)
        assert set(epochs.tolist()) == {epoch}
        assert sorted(ids.tolist()) == list(range(100))


def test_step_s_is_the_slice_of_n_positions():
    order = Order(UNEVEN, seed=1, global_batch=13, window=33)
    epochs, ids = order.positions(0, 13 * 40)
    for step in range(40):
        own_epochs, own_ids = order.step(step)
        assert own_ids.tolist() == ids[13 * step : 13 * (step + 1)].tolist()
        assert own_epochs.tolist() == epochs[13 * step : 13 * (step + 1)].tolist()


def test_any_step_is_the_same_whatever_was_asked_before():
    visited = Order(UNEVEN, seed=1, global_batch=13, window=9)
    for step in np.random.default_rng(0).permutation(60).tolist():
        fresh = Order(UNEVEN, seed=1, global_batch=13, window=9)
        assert visited.step(step)[1].tolist() == fresh.step(step)[1].tolist()


def test_changing_a_returned_array_does_not_change_the_order():
    order = Order(UNEVEN, seed=1, global_batch=13)
    for _ in range(2):
        _, ids = order.step(0)
        assert ids.max() >= 0
        ids[:] = -1


@pytest.mark.parametrize(("total", "batch"), [(100, 25), (100, 7), (101, 25), (997, 249), (1000, 96), (53, 13)])
def test_a_step_over_two_epochs_repeats_no_sample(total, batch):
    order = Order([total // 3, total - total // 3], seed=5, global_batch=batch, window=31)
    spanning = 0
    for step in range(12 * total // batch):
        epochs, ids = order.step(step)
        assert len(set(ids.tolist())) == batch
        spanning += epochs[0] != epochs[-1]
    assert spanning or total % batch == 0


def test_samples_exchanged_at_an_epoch_boundary_only_change_places():
    with_exchange = Order([100], seed=5, global_batch=13)
    differing = 0
    for epoch in range(1, 10):
        _, ids = with_exchange.positions(100 * epoch, 100 * (epoch + 1))
        plain = plain_epoch([100], 5, 262_144, epoch)
        assert sorted(ids.tolist()) == sorted(plain)
        moved = [i for i in range(100) if ids[i] != plain[i]]
        differing += len(moved)
        assert all(i < 2 * 13 for i in moved)
    assert differing


@pytest.mark.parametrize("batch", [30, 100, 230])
def test_a_corpus_below_four_batches_still_fills_every_step(batch):
    order = Order(UNEVEN, seed=1, global_batch=batch)
    seen = np.zeros(100, dtype=int)
    for step in range(20):
        epochs, ids = order.step(step)
        assert len(ids) == batch
        assert np.array_equal(epochs, np.arange(step * batch, (step + 1) * batch) // 100)
        seen += np.bincount(ids, minlength=100)
    assert seen.max() - seen.min() <= 1


def test_seed_and_epoch_change_the_order():
    orders = [Order([1000], seed, 10).positions(0, 3000)[1] for seed in (1, 2)]
    assert np.mean(orders[0] == orders[1]) < 0.01
    assert np.mean(orders[0][:1000] == orders[0][1000:2000]) < 0.01


def test_the_order_is_the_one_that_saved_runs_were_trained_with():
    """Fixed by version 0.1: a change here makes every saved run continue with other samples."""
    order = Order(UNEVEN, seed=42, global_batch=8)
    assert order.step(0)[1].tolist() == GOLDEN_FIRST
    assert order.step(12)[1].tolist() == GOLDEN_SPANNING
    assert sample_keys(42, [0, 1], [7, 7]).tolist() == GOLDEN_KEYS


def test_seeking_in_40_million_samples_costs_a_few_windows_of_memory():
    tracemalloc.start()
    try:
        order = Order(np.full(39_063, 1024), seed=1, global_batch=1344)
        steps_per_epoch = order.samples_per_epoch // 1344
        for step in (0, 17, steps_per_epoch // 2, steps_per_epoch, 5 * steps_per_epoch + 4, 10**9):
            epochs, ids = order.step(step)
            assert len(np.unique(ids)) == 1344
            assert epochs[0] == step * 1344 // order.samples_per_epoch
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 16e6  # the ids of one epoch alone would be 320 MB
    assert peak < 48e6


def test_batches_of_a_class_sorted_corpus_are_mixed_as_by_drawing_lots():
    """chi2 / df of the classes in batches of 512, 64 blocks of 1,024 samples and 8 classes of 8 blocks each."""
    order = Order(np.full(64, 1024), seed=1, global_batch=512)
    batches = order.samples_per_epoch // 512
    total = 0.0
    for epoch in range(4):
        _, ids = order.positions(epoch * 65_536, (epoch + 1) * 65_536)
        counts = np.stack([np.bincount(batch // 8192, minlength=8) for batch in ids.reshape(batches, 512)])
        total += ((counts - 64) ** 2 / 64).sum()
    assert 0.9 < total / (4 * batches * 7) < 1.2


def test_sample_keys_tell_epochs_samples_and_seeds_apart():
    epochs, ids = np.repeat(np.arange(10), 1000), np.tile(np.arange(1000), 10)
    one, other = sample_keys(1, epochs, ids), sample_keys(2, epochs, ids)
    assert len(np.union1d(one, other)) == 20_000
    assert one[1005] == sample_keys(1, [1], [5])[0]


def test_nothing_to_train_on_and_an_impossible_batch_are_refused():
    with pytest.raises(DataError, match="no sequence"):
        Order([0, 0], seed=1, global_batch=4)
    with pytest.raises(DataError, match="at least 1"):
        Order([5], seed=1, global_batch=0)
