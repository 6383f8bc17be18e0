"""Layouts over ranks and micro-batches: nothing lost, nothing twice, budgets kept, work balanced."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.layout import fill_micro_batches, plan_step, split_over_ranks

LENGTHS = st.lists(st.integers(1, 60), min_size=0, max_size=60)
RANKS = st.integers(1, 9)
BUDGET = st.integers(60, 200)


@given(LENGTHS, RANKS, BUDGET)
@settings(max_examples=200, deadline=None)
def test_a_plan_holds_every_sample_once_within_the_budget_and_equally_many_micro_batches(lengths, ranks, budget):
    plan = plan_step(lengths, ranks, budget)
    assert len(plan) == ranks
    assert sorted(i for rank in plan for batch in rank for i in batch.tolist()) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1
    for batch in (batch for rank in plan for batch in rank):
        sizes = [lengths[i] for i in batch]
        assert sum(sizes) <= budget
        assert sizes == sorted(sizes, reverse=True)
        assert batch.dtype == np.int64


@given(LENGTHS, RANKS, BUDGET)
@settings(max_examples=50, deadline=None)
def test_no_micro_batch_is_cut_earlier_than_the_budget_demands(lengths, ranks, budget):
    for rank in plan_step(lengths, ranks, budget):
        full = [batch for batch in rank if len(batch)]
        assert all(len(batch) == 0 for batch in rank[len(full) :])
        for batch, following in pairwise(full):
            assert sum(lengths[i] for i in batch) + lengths[following[0]] > budget


def test_equal_lengths_in_any_number_give_the_same_plan_every_time():
    lengths = np.random.default_rng(1).integers(1, 5, 500)
    first, second = plan_step(lengths, 7, 64), plan_step(lengths.tolist(), 7, 64)
    for a, b in zip(first, second, strict=True):
        assert [batch.tolist() for batch in a] == [batch.tolist() for batch in b]


def best_possible(costs: list[int], ranks: int) -> int:
    """The smallest maximal load, by trying every assignment."""
    choices = product(range(ranks), repeat=len(costs))

    def load(choice, rank):
        return sum(cost for cost, chosen in zip(costs, choice, strict=True) if chosen == rank)

    return min(max(load(choice, rank) for rank in range(ranks)) for choice in choices)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_largest_load_is_within_graham_s_bound_of_the_optimum(ranks):
    generator = np.random.default_rng(ranks)
    for _ in range(15):
        costs = generator.integers(1, 30, 7).tolist()
        largest = max(sum(costs[i] for i in mine) for mine in split_over_ranks(costs, ranks))
        assert largest <= (4 / 3 - 1 / (3 * ranks)) * best_possible(costs, ranks) + 1e-9


def test_a_global_batch_of_real_lengths_is_balanced_to_a_percent():
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 1344), 10, 1024).astype(int)
    loads = [lengths[mine].sum() for mine in split_over_ranks(lengths, 8)]
    assert max(loads) < 1.01 * lengths.sum() / 8


def test_longest_first_onto_the_least_loaded_and_ties_to_the_lower_rank():
    assert [mine.tolist() for mine in split_over_ranks([3, 9, 3, 5, 4], 2)] == [[1, 0], [3, 4, 2]]
    assert [mine.tolist() for mine in split_over_ranks([2, 2, 2], 3)] == [[0], [1], [2]]


def test_ranks_beyond_the_samples_get_empty_micro_batches():
    plan = plan_step([10, 20], 4, 25)
    assert [[batch.tolist() for batch in rank] for rank in plan] == [[[1]], [[0]], [[]], [[]]]
    assert plan_step([], 2, 25) == [[], []]


def test_micro_batches_are_cut_where_the_budget_ends():
    assert [run.tolist() for run in fill_micro_batches([10, 10, 5, 5, 5, 1], 20)] == [[0, 1], [2, 3, 4, 5]]
    assert fill_micro_batches([], 20) == []


def test_a_sequence_beyond_the_budget_is_named_with_both_numbers_and_the_keys_to_change():
    sentence = r"2000 tokens, more than batch.tokens_per_micro_batch = 1024; raise it or lower objective.max_tokens"
    with pytest.raises(DataError, match=sentence):
        plan_step([5, 2000, 7], 2, 1024)


def test_padded_micro_batches_count_the_longest_and_hold_similar_costs():
    costs = [900, 800, 500, 449, 300, 225, 224, 100]
    # 900 alone leaves room for one more of 2,000; below half of 900 a run ends, and so on.
    runs = [run.tolist() for run in fill_micro_batches(costs, 2000, padded=True)]
    assert runs == [[0, 1], [2, 3, 4], [5, 6], [7]]
    assert [run.tolist() for run in fill_micro_batches(costs, 900, padded=True)] == [[0], [1], [2], [3, 4], [5, 6], [7]]
    assert fill_micro_batches([], 900, padded=True) == []
    with pytest.raises(DataError, match="one sequence of the step has 900"):
        fill_micro_batches(costs, 899, padded=True)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_padded_plan_stays_within_the_budget_and_wastes_less_than_half(ranks):
    costs = np.random.default_rng(0).integers(50, 2000, 200)
    plan = plan_step(costs, ranks, 5000, padded=True)
    batches = [costs[chosen] for mine in plan for chosen in mine if len(chosen)]
    assert all(len(batch) * batch.max() <= 5000 for batch in batches)
    assert all(2 * batch.min() >= batch.max() for batch in batches)
    assert sorted(i for mine in plan for chosen in mine for i in chosen.tolist()) == list(range(200))
    assert len({len(mine) for mine in plan}) == 1
