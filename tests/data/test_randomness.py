"""Keyed randomness: the published generator, uniform numbers, and keys that tell their parts apart."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from data import randomness

MASK = (1 << 64) - 1
# The first outputs of splitmix64 from seed 1234567, as published with the algorithm.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def splitmix64(seed: int, count: int) -> list[int]:
    """The algorithm with Python's own integers."""
    found, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_bits_are_the_published_splitmix64_sequence():
    assert randomness.bits(1234567, range(5)).tolist() == PUBLISHED


@pytest.mark.parametrize("seed", [0, 1, MASK, 1 << 63])
def test_bits_equal_splitmix64_in_plain_integers_for_extreme_seeds(seed):
    assert randomness.bits(seed, range(50)).tolist() == splitmix64(seed, 50)


def test_an_array_of_keys_gives_what_each_key_gives_alone():
    bases = randomness.keys(7, range(20))
    together = randomness.bits(bases, np.arange(20))
    assert together.tolist() == [splitmix64(int(base), i + 1)[i] for i, base in enumerate(bases)]


def test_uniform_numbers_are_uniform_and_below_one():
    numbers = randomness.uniform(3, np.arange(400_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.bincount((numbers * 64).astype(int), minlength=64)
    chi2 = ((counts - 6250) ** 2 / 6250).sum()
    assert 30 < chi2 < 110  # 63 degrees of freedom: beyond +-4 standard deviations


def test_neighbouring_positions_and_keys_are_uncorrelated():
    numbers = randomness.uniform(3, np.arange(200_000))
    next_key = randomness.uniform(randomness.keys(0, [4])[0], np.arange(200_000))
    for a, b in ((numbers[:-1], numbers[1:]), (numbers, next_key)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(200_000)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 1000, 2**32 - 1])
def test_below_stays_below_its_bound_at_the_extremes(bound):
    extremes = np.array([0, MASK, MASK >> 1, (1 << 32) - 1], dtype=np.uint64)
    drawn = randomness.below(extremes, bound)
    assert drawn.min() == 0
    assert drawn.max() == bound - 1


@pytest.mark.parametrize("bound", [2, 3, 7, 22])
def test_below_is_unbiased(bound):
    n = 300_000
    counts = np.bincount(randomness.below(randomness.bits(bound, np.arange(n)), bound), minlength=bound)
    assert len(counts) == bound
    chi2, df = ((counts - n / bound) ** 2 / (n / bound)).sum(), bound - 1
    assert chi2 < df + 4 * np.sqrt(2 * df)


def test_below_takes_a_bound_per_element():
    bounds = np.arange(1, 1001)
    drawn = randomness.below(randomness.bits(1, np.arange(1000)), bounds)
    assert (drawn < bounds).all()
    assert drawn.max() > 900


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 65, 1000, 262_144])
def test_a_permutation_holds_every_number_once(n):
    assert np.array_equal(np.sort(randomness.permutation(9, n)), np.arange(n))


def test_permutations_of_three_are_equally_likely():
    found = [tuple(randomness.permutation(randomness.key("three", i), 3).tolist()) for i in range(6000)]
    counts = [found.count(order) for order in permutations(range(3))]
    assert sum(counts) == 6000
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 5 + 4 * np.sqrt(10)


def test_another_key_gives_another_permutation():
    fixed = np.mean(randomness.permutation(1, 10_000) == randomness.permutation(2, 10_000))
    assert fixed < 0.001


def test_keys_differ_by_every_part_and_by_their_order():
    parts = [(1, 2), (2, 1), (1, "2"), ("1", 2), (1, 2, 0), (0, 1, 2), ("ab",), ("a", "b"), ("b", "a"), (), (0,), (-1,)]
    assert len({randomness.key(*p) for p in parts}) == len(parts)


def test_keys_of_many_samples_are_distinct_and_depend_on_the_base():
    samples = np.arange(100_000)
    a, b = (randomness.keys(randomness.key(base), samples) for base in (5, 6))
    assert len(np.union1d(a, b)) == 200_000


def test_one_input_bit_sways_half_of_the_output_bits():
    x = randomness.bits(0, np.arange(2000))
    for bit in range(0, 64, 7):
        changed = randomness.mix(x) ^ randomness.mix(x ^ np.uint64(1 << bit))
        assert abs(np.bitwise_count(changed).mean() - 32) < 1
