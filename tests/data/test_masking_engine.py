"""Budget, candidates, greedy choice, top-up and corruption of the masking engine (specs: rnaernie 4.1, 4.2, 4.4)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.masking import candidates
from data.masking.budget import budgets, by_sample, first_of_each, greedy
from data.masking.corruption import Corruption
from data.masking.options import LEVELS, SpanOptions, WordOptions
from data.masking.pairs import partners
from data.masking.words import WordScanner
from tests.data.masking import engine, keys, packed, random_texts, select


def close(found: float, total: int, share: float) -> bool:
    return abs(found / total - share) < 3 * np.sqrt(share * (1 - share) / total)


# The budget


def test_the_budget_is_the_originals():
    assert budgets(np.array([22, 50, 508]), 0.15, 512).tolist() == [3, 8, 76]
    lengths = np.arange(1, 600)
    expected = [int(min(0.15 * 512, max(1, round(0.15 * n)))) for n in lengths.tolist()]  # Python rounds half to even
    assert budgets(lengths, 0.15, 512).tolist() == expected
    assert budgets(np.array([10, 30]), 0.15, 512).tolist() == [2, 4]  # 1.5 and 4.5


def test_nothing_is_selected_where_nothing_is_eligible():
    assert budgets(np.array([0, 1]), 0.15, 512).tolist() == [0, 1]
    assert select(engine(), packed("NNNN", "A", ""), "base") == [[], [0], []]


def test_the_smallest_draws_of_each_sample():
    generator = np.random.default_rng(0)
    sample = np.sort(generator.integers(0, 30, 1000))
    draws = generator.integers(0, 2**64, 1000, dtype=np.uint64)
    quota = generator.integers(0, 40, 30)
    found = first_of_each(sample, draws, quota)
    expected = [i for s in range(30) for i in sorted(np.flatnonzero(sample == s), key=lambda i: draws[i])[: quota[s]]]
    assert found.tolist() == expected
    assert by_sample(np.zeros(0, np.int64), np.zeros(0, np.uint64)).tolist() == []


@pytest.mark.parametrize("company", [0, 5, 3000])
def test_the_order_within_a_sample_is_the_same_in_any_company_even_where_draws_hardly_differ(company):
    draws = np.array([5, 4, 3, 1 << 40, 2, 0, 1 << 34, 1, 3 << 34], dtype=np.uint64)
    others = np.random.default_rng(0).integers(0, 2**64, company, dtype=np.uint64)
    sample = np.concatenate([np.zeros(9, np.int64), np.arange(1, company + 1) << (20 if company == 3000 else 0)])
    order = by_sample(sample, np.concatenate([draws, others]))
    assert order[:9].tolist() == [0, 1, 2, 4, 5, 7, 6, 8, 3]  # below 2**34 draws are equal, and places decide
    assert order[9:].tolist() == list(range(9, 9 + company))


intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=60)


@given(intervals, st.integers(0, 30), st.integers(0, 6), st.sets(st.integers(0, 49), max_size=10))
@settings(max_examples=300, deadline=None)
def test_greedy_takes_what_a_plain_reading_of_the_rule_takes(offered, budget, least, blocked):
    offered = [(start, min(start + size, 50)) for start, size in offered]
    taken = bytearray(1 if place in blocked else 0 for place in range(50))
    shortest = min((b - a for a, b in offered), default=0)
    found = greedy([a for a, _ in offered], [b for _, b in offered], shortest, least, budget, taken)
    covered, expected, left = set(blocked), [], budget
    for start, stop in offered:
        if least:
            while stop - start > left and stop - start > least:
                stop -= 1
        window = set(range(start, stop))
        if left and len(window) <= left and not window & covered:
            covered |= window
            expected.append((start, stop))
            left -= len(window)
    assert list(zip(found[0], found[1], strict=True)) == expected
    assert found[2] == left
    assert {place for place, mark in enumerate(taken) if mark} == covered


# Spans


def test_span_lengths_of_the_original():
    own = SpanOptions(min=5, max=8)
    assert candidates.length_probabilities(own) * 25 == pytest.approx([12, 6, 4, 3])
    geometric = candidates.length_probabilities(SpanOptions(min=1, max=10, distribution="geometric"))
    assert (geometric * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.05)  # SpanBERT's mean
    assert candidates.length_probabilities(SpanOptions(min=4, max=8, distribution="uniform")).tolist() == [0.2] * 5


def test_offered_spans_have_these_lengths_and_every_start_once_in_random_order():
    own = SpanOptions(min=5, max=8)
    found = candidates.spans(np.full(400, 200), keys(400), own)
    assert [sorted(found.start[found.sample == i].tolist()) for i in range(3)] == [list(range(200))] * 3
    assert found.start[found.sample == 0].tolist() != found.start[found.sample == 1].tolist()
    inside = found.start < 190
    sizes = np.bincount((found.stop - found.start)[inside], minlength=9)
    for size, share in zip((5, 6, 7, 8), (12, 6, 4, 3), strict=True):
        assert close(sizes[size], inside.sum(), share / 25)
    first = np.bincount(found.start.reshape(400, 200)[:, 0], minlength=200)
    assert abs(((first - 2) ** 2 / 2).sum() - 199) < 4 * np.sqrt(2 * 199)


@pytest.mark.parametrize("length", [1, 3, 9, 10, 15, 60, 508])
@pytest.mark.parametrize("tail", [0, 9])
def test_spans_never_leave_the_sequence_nor_enter_the_tail(length, tail):
    own = engine(min=5, max=8, tail=tail)
    touched = set(itertools.chain(*select(own, packed(*random_texts(300, length)), "span")))
    assert touched <= set(range(max(length - tail, 0)))
    if length >= 60:
        assert touched == set(range(length - tail))


def test_no_level_exceeds_the_budget_and_topped_up_ones_meet_it():
    lengths = [1, 5, 9, 10, 22, 23, 24, 30, 50, 101, 333, 508]
    batch = packed(*(text for n in lengths for text in random_texts(20, n, seed=n)))
    for topup, level in itertools.product(("none", "base", "span"), ("base", "span", "motif", "pair")):
        own = engine(["ACGU", "GGAC", "UUUUUU", "CAGCAGCA"], topup=topup)
        found = [len(places) for places in select(own, batch, level)]
        budget = budgets(batch.lengths, 0.15, 512).tolist()
        assert all(n <= most for n, most in zip(found, budget, strict=True))
        if topup == "base" or level in ("base", "pair"):
            assert found == budget
        if topup == "span":
            assert all(n > 0 for n, length in zip(found, batch.lengths, strict=True) if length >= 24)


def test_a_rate_of_one_takes_everything():
    found = select(engine(rate=1.0, topup="base"), packed(*random_texts(3, 40)), "span")
    assert found == [list(range(40))] * 3


def test_letters_that_are_not_eligible_are_never_selected_and_no_span_holds_one():
    text = b"ACGUNACGUACGUACGUANNNNCGUACGUACGUACGUACGUNACGUACGUACGUACGU" * 2
    for level in ("base", "span", "motif"):
        own = engine(["ACGU", "GUNA"], rate=0.5, topup="none", min=3, max=9)
        places = list(itertools.chain(*select(own, packed(*[text] * 50), level)))
        assert set(text[place] for place in places) == set(b"ACGU")


# Words


def test_every_occurrence_of_every_word_as_a_plain_search_finds_them():
    words = ["A", "AC", "ACG", "CGA", "GGGG", "ACGUACGU", "UU"]
    texts = [*random_texts(30, 80), b"", b"ACGUACGU", b"GGGGGG", b"NNANN"]
    found = WordScanner(words).scan(texts)
    expected = sorted(
        (i, at, at + len(word))
        for i, text in enumerate(texts)
        for word in words
        for at in range(len(text))
        if text[at : at + len(word)] == word.encode()
    )
    assert sorted(zip(found.sample.tolist(), found.start.tolist(), found.stop.tolist(), strict=True)) == expected
    assert found.sample.tolist() == sorted(found.sample.tolist())


def test_nothing_is_found_across_two_sequences_nor_without_words():
    assert len(WordScanner(["ACGU"]).scan([b"AC", b"GU"]).start) == 0
    assert len(WordScanner([]).scan([b"ACGU"]).start) == 0
    assert len(WordScanner(["ACGU"]).scan([]).start) == 0


def test_a_word_of_both_lists_counts_as_one_of_the_database():
    assert WordScanner(["AC"], ["AC", "GG"]).scan([b"ACGG"]).mined.tolist() == [False, True]


def test_motif_targets_are_occurrences_of_motifs():
    own = engine(["ACGU", "GGACU"])
    text = b"UUUUUACGUUUUUUGGACUUUUUUUUUACGUUUU" * 4
    seen = set()
    for seed in range(40):
        (places,) = select(own, packed(text), "motif", seed)
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        seen |= {text[run[0] : run[-1] + 1] for run in runs}
    assert seen == {b"ACGU", b"GGACU"}


def test_words_in_order_of_length_and_the_database_before_mined_ones():
    text = b"ACGUACGUAAGGGGGG"
    scanner = WordScanner(["ACGU", "ACGUACGUA"], ["GGG", "GGGG"])
    hits = scanner.scan([text] * 200)
    longest = candidates.words(hits, keys(200), WordOptions(order="longest"))
    sizes = (longest.stop - longest.start).reshape(200, -1)
    assert (np.diff(sizes, axis=1) <= 0).all()
    shuffled = candidates.words(hits, keys(200), WordOptions(order="shuffle"))
    first = np.bincount(shuffled.start.reshape(200, -1)[:, 0])
    assert len(np.flatnonzero(first)) >= 6
    db_first = candidates.words(hits, keys(200), WordOptions(order="db_first"))
    starts, stops = db_first.start.reshape(200, -1), db_first.stop.reshape(200, -1)
    assert set(stops[:, :3].ravel()) <= {4, 8, 9}  # ACGU twice and ACGUACGUA, in any order
    assert len({tuple(row) for row in starts[:, :3].tolist()}) > 1
    assert {tuple(row) for row in starts[:, 3:].tolist()} == {(10, 10, 11, 11, 12, 12, 13)}  # as they occur
    assert stops[0, 3:].tolist() == [13, 14, 14, 15, 15, 16, 16]


# Pairs


def test_a_base_and_its_partner_are_selected_together():
    structure = b"((((....))))..[[[..]]]" * 5
    own = partners(structure, 0, len(structure))
    batch = packed(*random_texts(300, len(structure)), partners=[own] * 300)
    found = select(engine(), batch, "pair")
    for places in found:
        chosen = set(places)
        assert {int(own[place]) for place in places if own[place] >= 0} <= chosen
    counts = np.bincount(np.concatenate(found), minlength=len(structure))
    assert counts.min() > 0
    assert sum(map(len, found)) / 300 > 0.9 * budgets(np.array([110]), 0.15, 512)[0]


def test_without_a_structure_the_pair_level_is_the_base_level():
    texts = random_texts(40, 60)
    assert select(engine(), packed(*texts), "pair") == select(engine(), packed(*texts), "base")
    some = [None if i % 2 else np.full(60, -1) for i in range(40)]
    mixed, plain = select(engine(), packed(*texts, partners=some), "pair"), select(engine(), packed(*texts), "base")
    assert [m for i, m in enumerate(mixed) if i % 2] == [p for i, p in enumerate(plain) if i % 2]


def test_partners_are_counted_from_the_window_and_lost_outside_it():
    assert partners(b"((..))", 0, 6).tolist() == [5, 4, -1, -1, 1, 0]
    assert partners(b"((..))", 1, 4).tolist() == [3, -1, -1, 0]
    with pytest.raises(DataError, match="a structure of the corpus cannot be read"):
        partners(b"((..)", 0, 5)
    with pytest.raises(DataError, match="has 4 characters, but its sequence has at least 6 nucleotides"):
        partners(b"(())", 2, 4)


# Purity


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("topup", ["none", "base", "span"])
def test_a_sequence_is_masked_alike_in_any_company_and_order(level, topup):
    own = engine(["ACG", "GGU", "CAUG"], topup=topup)
    texts = [t for n in (7, 24, 80, 200) for t in random_texts(6, n, seed=n)]
    structures = [
        partners((b"(" * (len(t) // 3)).ljust(len(t) - len(t) // 3, b".") + b")" * (len(t) // 3), 0, len(t))
        for t in texts
    ]
    sample_keys, number = keys(24), np.full(24, LEVELS.index(level))

    def masks(chosen: list[int]) -> list[list[int]]:
        batch = packed(*(texts[i] for i in chosen), partners=[structures[i] for i in chosen])
        found = own.select_at(batch, sample_keys[chosen], number[: len(chosen)])
        ends = np.cumsum(batch.lengths)
        return [
            found.place[(found.place >= end - size) & (found.place < end)].tolist()
            if i == 0
            else (found.place[(found.place >= end - size) & (found.place < end)] - (end - size)).tolist()
            for i, (end, size) in enumerate(zip(ends.tolist(), batch.lengths.tolist(), strict=True))
        ]

    together = masks(list(range(24)))
    assert together == [masks([i])[0] for i in range(24)]
    order = np.random.default_rng(0).permutation(24).tolist()
    assert masks(order) == [together[i] for i in order]


@pytest.mark.parametrize("level", ["base", "span", "motif"])
def test_another_key_another_mask_and_the_same_key_the_same(level):
    text = random_texts(1, 300)[0]  # equal length and first base, which is all that the original's seed knew
    own = engine(["ACG", "GGU", "CAUG", "UA"], topup="none")
    masks = select(own, packed(*[text] * 100), level)
    assert len(set(map(tuple, masks))) == 100
    assert masks == select(own, packed(*[text] * 100), level)
    assert masks != select(own, packed(*[text] * 100), level, seed=1)


# Corruption

MASK, POOL = 4, np.array([6, 7, 8, 9])


@pytest.mark.parametrize(("differs", "changed"), [(False, 0.075), (True, 0.1)])
def test_of_selected_tokens_80_10_10_and_the_random_one_may_be_the_original(differs, changed):
    n = 200_000
    original = np.tile(POOL, n // 4)
    shown = Corruption(MASK, POOL, 10, 0.8, 0.1, differs).replace(original, np.arange(n), np.repeat(keys(1), n))
    assert close((shown == MASK).sum(), n, 0.8)
    assert close(((shown != MASK) & (shown != original)).sum(), n, changed)
    other = shown[(shown != MASK) & (shown != original)]
    assert all(close((other == letter).sum(), len(other), 1 / 4) for letter in POOL)


def test_tokens_of_a_unit_share_their_fate_but_not_their_random_letter():
    units = np.repeat(np.arange(20_000), 5)
    original = np.full(100_000, 6)
    corruption = Corruption(MASK, POOL, 10, 0.8, 0.1, True)
    shown = corruption.replace(original, np.arange(100_000), np.repeat(keys(1), 100_000), units).reshape(-1, 5)
    kinds = np.select([shown == MASK, shown == 6], [0, 1], 2)
    assert (kinds == kinds[:, :1]).all()
    assert close((kinds[:, 0] == 0).sum(), 20_000, 0.8)
    assert close((kinds[:, 0] == 1).sum(), 20_000, 0.1)
    random = shown[kinds[:, 0] == 2]
    assert (random != random[:, :1]).any()
