"""The baselines against plain Python, against a known chain, and at the edges of sequences and of the alphabet."""

from __future__ import annotations

from collections import Counter
from math import log

import numpy as np
import pytest

from data import baselines
from data.baselines import MarkovModel, letter_frequencies, perplexity
from data.errors import DataError

TEXTS = ["ACGUACGUUGCA", "A", "", "GGNAUCCRAUG", "acgtTTACG-ACG", "UUUUUUUU"]


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def plain(text: str) -> str:
    return text.upper().replace("T", "U")


def reference(texts: list[str], order: int):
    """Add-one smoothed counts by dictionaries: a function of (text, position) -> nats, None where not scored."""
    single, after = Counter(), Counter()
    for text in map(plain, texts):
        single.update(x for x in text if x in "ACGU")
        windows = (text[i : i + order + 1] for i in range(len(text) - order))
        after.update(w for w in windows if set(w) <= set("ACGU"))

    def nats(text: str, i: int) -> float | None:
        text = plain(text)
        if text[i] not in "ACGU":
            return None
        context = text[max(0, i - order) : i]
        if len(context) < order or not set(context) <= set("ACGU"):
            return -log((single[text[i]] + 1) / (single.total() + 4))
        return -log((after[context + text[i]] + 1) / (sum(after[context + x] for x in "ACGU") + 4))

    return nats


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_equals_plain_python(order: int) -> None:
    model = MarkovModel.fit(map(letters, TEXTS), order)
    nats = reference(TEXTS, order)
    for text in [*TEXTS, "CAGUACGNNACGUU"]:
        expected = [nats(text, i) for i in range(len(text))]
        found = model.nats(letters(text))
        assert np.allclose(found, [np.nan if x is None else x for x in expected], equal_nan=True)
    assert np.allclose(model.probabilities.sum(axis=1), 1)
    assert model.probabilities.shape == (4**order, 4)


def test_positions_as_indices_or_mask_and_unscored_letters() -> None:
    model = MarkovModel.fit(map(letters, TEXTS), 2)
    row = letters("ACGNUUACG")
    every = model.nats(row)
    assert np.isnan(every[3])
    assert np.count_nonzero(np.isnan(every)) == 1
    assert np.array_equal(model.nats(row, [1, 3, 8]), every[[1, 3, 8]], equal_nan=True)
    mask = np.arange(9) % 2 == 1
    assert np.array_equal(model.nats(row, mask), every[mask], equal_nan=True)
    total, count = model.nll([row, row], [mask, [0]])
    assert count == 4  # three of the mask's four, and one
    assert total == pytest.approx(np.nansum(every[mask]) + every[0])
    assert perplexity(total, count) == pytest.approx(np.exp(total / 4))


def test_chunks_change_nothing(monkeypatch) -> None:
    whole = MarkovModel.fit(map(letters, TEXTS * 3), 2)
    monkeypatch.setattr(baselines, "_CHUNK", 8)
    assert np.array_equal(MarkovModel.fit(map(letters, TEXTS * 3), 2).probabilities, whole.probabilities)


def test_contexts_do_not_cross_sequences() -> None:
    model = MarkovModel.fit([letters("AAAA"), letters("CCCC")], 1)
    assert model.probabilities[0].tolist() == pytest.approx([4 / 7, 1 / 7, 1 / 7, 1 / 7])  # never saw C after A


def test_recovers_the_entropy_rate_of_a_chain() -> None:
    rng = np.random.default_rng(0)
    law = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.85, 0.05], [0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    chains = np.zeros((400, 500), dtype=np.int64)
    for t in range(1, 500):
        chains[:, t] = (rng.random(400)[:, None] >= np.cumsum(law, axis=1)[chains[:, t - 1], :3]).sum(axis=1)
    rows = letters("ACGU")[chains]
    values, vectors = np.linalg.eig(law.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    rate = -(stationary[:, None] * law * np.log(law)).sum()
    model = MarkovModel.fit(rows[:300], 1)
    assert np.allclose(model.probabilities, law, atol=0.01)
    total, count = model.nll(rows[300:], [np.arange(20, 500)] * 100)
    assert total / count == pytest.approx(rate, abs=0.02)
    unigram = MarkovModel.fit(rows[:300], 0)
    total, count = unigram.nll(rows[300:], [None] * 100)
    assert total / count == pytest.approx(-(stationary * np.log(stationary)).sum(), abs=0.02)
    assert np.allclose(letter_frequencies(rows), stationary, atol=0.01)


def test_letter_frequencies() -> None:
    assert letter_frequencies([letters("AACG"), letters("NtUu-")]).tolist() == pytest.approx(
        [2 / 7, 1 / 7, 1 / 7, 3 / 7]
    )


def test_refuses() -> None:
    with pytest.raises(DataError, match="undefined"):
        letter_frequencies([letters("NN-")])
    with pytest.raises(DataError, match="cannot be fitted"):
        MarkovModel.fit([])
    for order in (-1, 9):
        with pytest.raises(DataError, match="order"):
            MarkovModel.fit([letters("ACGU")], order)
    with pytest.raises(DataError, match="No position"):
        perplexity(0.0, 0)
