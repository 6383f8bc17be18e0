"""The report on what levels do to a corpus, and its warnings (specs: rnaernie 0.1, 3.3, 4.4)."""

from __future__ import annotations

import numpy as np
import pytest

from data.masking.statistics import describe
from data.masking.words import WordScanner
from tests.data.masking import engine, keys, packed, random_texts

WORDS = ["ACGUAC", "UUGCAU", "GGAUCC", "CAGUGA", "AAGCAG", "GCGGCA", "CACACA", "UGUGUA", "AUUUAA", "GGGCCA"]
HEXAMERS = ["".join(word) for word in np.random.default_rng(3).choice(list("ACGU"), (600, 6))]


def test_figures_agree_with_a_plain_count():
    texts = random_texts(60, 150) + random_texts(10, 10)
    report = describe(engine(WORDS, topup="base"), packed(*texts), keys(70))
    hits = [(i, at) for i, t in enumerate(texts) for w in WORDS for at in range(len(t)) if t[at : at + 6] == w.encode()]
    covered = {(i, at + k) for i, at in hits for k in range(6)}
    motif = report["levels"]["motif"]
    assert report["sequences"] == 70
    assert report["nucleotides"] == 9100
    assert motif["hits_per_kilobase"] == pytest.approx(1000 * len(hits) / 9100)
    assert motif["coverage"] == pytest.approx(len(covered) / 9100)
    assert motif["masked_fraction"] == pytest.approx((60 * 22 / 150 + 10 * 2 / 10) / 70)
    assert motif["targets"] <= len(covered)
    assert report["levels"]["base"]["hits_per_kilobase"] is None
    assert sum(motif["composition"].values()) == pytest.approx(1)
    counts = np.array([b"".join(texts).count(letter.encode()) for letter in "ACGU"])
    assert list(report["composition"].values()) == pytest.approx((counts / 9100).tolist())


def test_enrichment_is_about_one_in_random_sequences_and_high_for_planted_words():
    plain, planted = (
        random_texts(100, 300),
        [text[:100] + b"ACGUAC" * 3 + text[118:] for text in random_texts(100, 300)],
    )
    found = [describe(engine(WORDS), packed(*texts), keys(100))["levels"]["motif"] for texts in (plain, planted)]
    assert found[0]["enrichment"] == pytest.approx(1, abs=0.3)
    assert found[1]["enrichment"] > 3


def test_sequences_without_targets_are_counted():
    report = describe(engine(["ACGUACGU"]), packed(*random_texts(50, 22)), keys(50))
    assert report["levels"]["motif"]["without_targets"] == 1.0
    assert report["levels"]["base"]["without_targets"] == 0.0


@pytest.mark.parametrize("topup", ["none", "base"])
def test_motifs_spelled_with_t_against_sequences_spelled_with_u_are_reported(topup):
    """The published code's mistake: the only motifs that match are those without U, and a top-up would hide it."""
    texts = random_texts(200, 200)
    right, wrong = engine(HEXAMERS, topup=topup), engine(HEXAMERS, topup=topup)
    wrong.scanners["motif"] = WordScanner([word.replace("U", "T") for word in HEXAMERS])
    assert describe(right, packed(*texts), keys(200))["warnings"] == []
    report = describe(wrong, packed(*texts), keys(200))
    assert report["levels"]["motif"]["composition"]["U"] == 0
    assert report["levels"]["motif"]["targets"] > 1000
    (warning,) = report["warnings"]
    assert warning.startswith("masking level motif: U is 0.0% of its targets, but 2")


def test_words_that_never_occur_are_reported():
    report = describe(engine(["TTTTTT"]), packed(*random_texts(50, 100)), keys(50))
    (warning,) = report["warnings"]
    assert "not one of its words occurs" in warning


def test_one_sided_words_and_words_that_are_everywhere_are_reported():
    texts = random_texts(100, 300)
    report = describe(engine(["AAAA", "AAAC", "CAAA"]), packed(*texts), keys(100))
    assert any("A is" in warning and "one-sided" in warning for warning in report["warnings"])
    every = [a + b + c for a in "ACGU" for b in "ACGU" for c in "ACGU"]
    report = describe(engine(every), packed(*texts), keys(100))
    (warning,) = report["warnings"]
    assert "cover 100% of all nucleotides (1.00 times" in warning


def test_words_that_cover_a_corpus_but_not_its_shuffled_letters_are_worth_masking():
    report = describe(engine(["ACGUACGUUU"]), packed(*[b"ACGUACGUUU" * 20] * 20), keys(20))
    assert report["levels"]["motif"]["coverage"] == 1
    assert report["levels"]["motif"]["enrichment"] is None
    assert report["warnings"] == []


def test_a_corpus_of_few_targets_is_not_judged():
    assert describe(engine(["AAAA"]), packed(b"AAAACCGGUU" * 3), keys(1))["warnings"] == []
