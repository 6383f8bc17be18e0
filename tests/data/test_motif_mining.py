"""Words mined from a corpus: recounted plainly, planted ones found, clusters, determinism, refusals."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest

from data import kmers
from data.corpus import prepare
from data.errors import DataError
from data.formats.motifs import read_motifs
from data.index import Corpus
from data.motif_mining import mine_enriched, mine_npmi, write_words
from data.prepare_config import ClusterConfig
from tests.data.clustered import families_of, write_families, write_table
from tests.data.corpora import config, random_sequences, write_fasta

PLANTED = "GGAUCCGA"


def corpus_of(folder: Path, sequences: list[str]) -> Corpus:
    options = {"min_length": 1, "validation_fraction": 0.0}
    prepare(config(folder / "corpus", write_fasta(folder / "in.fa", sequences), **options))
    return Corpus.open(folder / "corpus")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    sequences = random_sequences(400, shortest=60, longest=120)
    return corpus_of(tmp_path_factory.mktemp("planted"), [s[:20] + PLANTED + s[20:] for s in sequences])


def letters_of(corpus: Corpus) -> list[str]:
    return [view.tobytes().decode() for view in corpus.letters(np.arange(corpus.count))]


def plain_counts(texts: list[str], k: int, clumps: bool = False) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        for at in range(len(text) - k + 1):
            word = text[at : at + k]
            before = [text[at - shift : at - shift + k] for shift in range(1, k) if at >= shift]
            if set(word) <= set("ACGU") and not (clumps and word in before):
                counts[word] += 1
    return counts


def test_counts_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(kmers, "_CHUNK", 200)
    texts = [*random_sequences(60, seed=4), "AAAAAAAANAAAA", "ACACACACAC", "NNN", "A", "ACGU" * 30]
    blocks = [
        [np.frombuffer(text.encode(), np.uint8) for text in texts[start : start + 7]] for start in range(0, 65, 7)
    ]
    counts, windows = kmers.count(blocks, [1, 2, 3, 6], clumps=[3, 6])
    for k in (1, 2, 3, 6):
        expected = plain_counts(texts, k, clumps=k in (3, 6))
        assert {kmers.spelled(i, k): n for i, n in enumerate(counts[k].tolist()) if n} == expected
        assert windows[k] == sum(plain_counts(texts, k).values())


def test_a_planted_word_is_the_most_enriched(planted):
    words = mine_enriched(planted, 6, 10, top=50).words
    assert words[0].letters == PLANTED
    assert words[0].count >= 400
    assert [word.score for word in words] == sorted((word.score for word in words), reverse=True)
    assert all(word.score > 0 and word.count >= 20 for word in words)


def test_figures_of_enriched_words_agree_with_a_plain_markov_model(planted):
    texts = letters_of(planted)
    mined = mine_enriched(planted, 6, 7, top=200, order=1)
    pairs = plain_counts(texts, 2)
    total = sum(pairs.values())
    first = {a: sum(pairs[a + b] for b in "ACGU") / total for a in "ACGU"}
    step = {a + b: pairs[a + b] / sum(pairs[a + c] for c in "ACGU") for a in "ACGU" for b in "ACGU"}
    observed = {k: plain_counts(texts, k, clumps=True) for k in (6, 7)}
    for word in mined.words[:40]:
        k = len(word.letters)
        p = first[word.letters[0]]
        for at in range(k - 1):
            p *= step[word.letters[at : at + 2]]
        expected = p * sum(len(text) - k + 1 for text in texts)
        assert word.count == observed[k][word.letters]
        assert word.expected == pytest.approx(expected, rel=1e-3)
        assert word.score == pytest.approx((word.count - expected) / sqrt(expected), rel=1e-2)
    assert mined.nucleotides == sum(map(len, texts))


def test_figures_of_npmi_words_agree_with_a_plain_count(planted):
    texts = letters_of(planted)
    mined = mine_npmi(planted, 3, 6, top=300)
    counts = {k: plain_counts(texts, k) for k in range(1, 7)}
    totals = {k: sum(own.values()) for k, own in counts.items()}

    def p(word: str) -> float:
        return counts[len(word)][word] / totals[len(word)]

    for word in mined.words[:40]:
        w = word.letters
        parts = max(p(w[:cut]) * p(w[cut:]) for cut in range(1, len(w)))
        assert word.count == counts[len(w)][w]
        assert word.score == pytest.approx(log(p(w) / parts) / -log(p(w)), rel=1e-6)
        assert 0 < word.score <= 1
    assert all(word.letters in PLANTED for word in mined.words[:3])


def test_one_sequence_of_a_cluster_is_counted(tmp_path):
    families = families_of(30, 5)
    fasta, table = write_families(tmp_path / "f.fa", families), write_table(tmp_path / "clusters.tsv", families)
    clusters = ClusterConfig(method="table", table=str(table))
    prepare(config(tmp_path / "corpus", fasta, clusters=clusters, min_length=1, validation_fraction=0.0))
    corpus = Corpus.open(tmp_path / "corpus")
    mined = mine_enriched(corpus, 6, 8, least=1)
    assert (corpus.count, mined.sequences, mined.nucleotides) == (150, 30, 30 * 150)
    firsts = [letters_of(corpus)[i] for i in corpus.clusters[:-1].tolist()]
    assert mined.words[0].count == plain_counts(firsts, len(mined.words[0].letters), True)[mined.words[0].letters]
    assert mine_npmi(corpus, least=1).sequences == 30
    assert mine_enriched(corpus, 6, 8, least=1, most=7).sequences == 7


def test_the_list_is_read_again_says_where_it_comes_from_and_has_the_same_bytes_each_time(planted, tmp_path):
    for name in ("a", "b"):
        write_words(tmp_path / f"{name}.txt", mine_enriched(planted, top=30), planted, "z", {"k": "6-10"})
    content = (tmp_path / "a.txt").read_bytes()
    assert content == (tmp_path / "b.txt").read_bytes()
    assert planted.fingerprint in content.decode().splitlines()[0]
    assert "every sequence (not clustered): 400 sequences" in content.decode().splitlines()[1]
    assert read_motifs([tmp_path / "a.txt"]).words == [word.letters for word in mine_enriched(planted, top=30).words]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortest": 0}, "words of 0 to 10 letters are not possible"),
        ({"longest": 13}, "words of 6 to 13 letters are not possible; expected 1 to 12"),
        ({"shortest": 9, "longest": 8}, "words of 9 to 8 letters are not possible"),
        ({"top": 0}, "the number of words is 0"),
        ({"least": 0}, "the least number of occurrences is 0"),
        ({"most": 0}, "the number of sequences to read is 0"),
        ({"order": 5}, "order 5 is not possible for words of 6 letters; expected 0 to 4"),
    ],
)
def test_options_that_cannot_work_are_refused(planted, options, message):
    with pytest.raises(DataError, match=message):
        mine_enriched(planted, **options)


def test_npmi_needs_words_of_two_letters(planted):
    with pytest.raises(DataError, match="has no parts"):
        mine_npmi(planted, shortest=1)
