"""Words mined from a corpus: k-mers enriched against a Markov background, and k-mers whose letters belong together.

Both count one sequence per cluster: on a corpus that is not clustered, the most enriched words are fragments of the
family with the most copies (the published list is ribosomal RNA for the most part; specs: rnaernie 0.1, 9).

    enriched   observed against expected under a Markov chain of the corpus; rank by z = (n - e) / sqrt(e);
               occurrences of a word that overlap each other count once, so that runs of one letter do not win
    npmi       normalised pointwise mutual information of the worst of all ways to cut the word in two:
               min over cuts of log(p(w) / (p(a) p(b))) / -log p(w), between -1 and 1

The result is a plain list that data/formats/motifs.py reads: comment lines say where it comes from, and a comment after
each word gives its figures. It is deterministic: same corpus and options, same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import kmers
from data.errors import DataError
from data.index import Corpus
from data.publish import write_durably

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Word:
    letters: str
    count: int
    score: float  # z or NPMI
    expected: float  # occurrences that the background explains


@dataclass(frozen=True)
class Mined:
    words: list[Word]  # best first
    sequences: int
    nucleotides: int


def mine_enriched(
    corpus: Corpus,
    shortest: int = 6,
    longest: int = 10,
    top: int = 1000,
    order: int = 2,
    least: int = 20,
    most: int | None = None,
) -> Mined:
    """The ``top`` words of shortest to longest letters with at least ``least`` occurrences, more than expected.

    ``order`` of the Markov background; ``most``: read only so many clusters (or sequences). Raises DataError for
    options that cannot work.
    """
    _check(shortest, longest, top, least, most)
    if not 0 <= order < shortest - 1:
        raise DataError(
            f"a Markov background of order {order} is not possible for words of {shortest} letters; expected 0 to "
            f"{shortest - 2}."
        )
    ids, lengths = kmers.representatives(corpus)[:most], range(shortest, longest + 1)
    counts, windows = kmers.count(kmers.sequences(corpus, ids), {1, order + 1, *lengths}, clumps=lengths)
    initial, step = _background(counts[order + 1], order)
    rows: list[tuple[npt.NDArray[Any], ...]] = []
    probability = initial  # of each word of as many letters as there are in the state
    for k in range(order + 1, longest + 1):
        # p(w1..wk) = p(w1..wk-1) * p(wk | the last `order` letters before it)
        probability = (probability[:, None] * step[np.arange(len(probability)) % 4**order]).ravel()
        if k >= shortest:
            expected = probability * windows[k]
            kept = np.flatnonzero((counts[k] >= least) & (counts[k] > expected))
            z = (counts[k][kept] - expected[kept]) / np.sqrt(expected[kept])
            rows.append((kept, np.full(len(kept), k), counts[k][kept], z, expected[kept]))
    return Mined(_best(rows, top), len(ids), windows[1])


def mine_npmi(
    corpus: Corpus,
    shortest: int = 4,
    longest: int = 8,
    top: int = 1000,
    least: int = 20,
    most: int | None = None,
) -> Mined:
    """The ``top`` words of shortest to longest letters with the highest NPMI above 0, at least ``least`` occurrences.

    ``most`` as in `mine_enriched`. Raises DataError for options that cannot work.
    """
    _check(shortest, longest, top, least, most)
    if shortest < 2:
        raise DataError("a word of 1 letter has no parts; the shortest word must have at least 2 letters.")
    ids = kmers.representatives(corpus)[:most]
    counts, windows = kmers.count(kmers.sequences(corpus, ids), range(1, longest + 1))
    with np.errstate(divide="ignore"):
        log_p = {k: np.log(own / max(windows[k], 1)) for k, own in counts.items()}
    rows: list[tuple[npt.NDArray[Any], ...]] = []
    for k in range(shortest, longest + 1):
        kept = np.flatnonzero(counts[k] >= least)
        parts = np.full(len(kept), -np.inf)  # the likeliest way to get the word from two parts
        for cut in range(1, k):
            parts = np.maximum(parts, log_p[cut][kept >> 2 * (k - cut)] + log_p[k - cut][kept & 4 ** (k - cut) - 1])
        own = log_p[k][kept]
        # A word that is all there is has probability 1 and parts that are as certain: no information.
        npmi = np.divide(own - parts, -own, out=np.zeros(len(kept)), where=own < 0)
        good = npmi > 0
        expected = np.exp(parts[good]) * windows[k]
        rows.append((kept[good], np.full(good.sum(), k), counts[k][kept[good]], npmi[good], expected))
    return Mined(_best(rows, top), len(ids), windows[1])


def write_words(path: Path, mined: Mined, corpus: Corpus, score: str, options: dict[str, Any]) -> None:
    """Writes the list whole or not at all. ``score`` names the figure that words are ranked by."""
    clusters = "one sequence per cluster" if corpus.clusters is not None else "every sequence (not clustered)"
    lines = [
        f"# words of the corpus {corpus.manifest['name']}, fingerprint {corpus.fingerprint}",
        f"# {clusters}: {mined.sequences} sequences, {mined.nucleotides} nucleotides",
        f"# {score}: " + ", ".join(f"{name} {value}" for name, value in options.items()),
        *(
            f"{word.letters}  # {score} {word.score:.6g}, count {word.count}, expected {word.expected:.6g}"
            for word in mined.words
        ),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another output.") from error


def _check(shortest: int, longest: int, top: int, least: int, most: int | None) -> None:
    if not 1 <= shortest <= longest <= kmers.LONGEST:
        raise DataError(f"words of {shortest} to {longest} letters are not possible; expected 1 to {kmers.LONGEST}.")
    if top < 1:
        raise DataError(f"the number of words is {top}, expected at least 1.")
    if least < 1:
        raise DataError(f"the least number of occurrences is {least}, expected at least 1.")
    if most is not None and most < 1:
        raise DataError(f"the number of sequences to read is {most}, expected at least 1.")


def _background(counts: I64, order: int) -> tuple[F64, F64]:
    """([4**order] probability of a state, [4**order, 4] of the next letter), from the counts of order + 1 letters."""
    table = counts.reshape(-1, 4) + 0.25  # a transition that was never seen is rare, not impossible
    return table.sum(axis=1) / table.sum(), table / table.sum(axis=1, keepdims=True)


def _best(rows: list[tuple[npt.NDArray[Any], ...]], top: int) -> list[Word]:
    """The highest scores; of equal ones the longer word, then the alphabetically first."""
    kmer, size, count, score, expected = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.lexsort((kmer, -size, -score))[:top]
    found = zip(*(column[order].tolist() for column in (kmer, size, count, score, expected)), strict=True)
    words = [Word(kmers.spelled(m, k), n, s, e) for m, k, n, s, e in found]
    assert all(math.isfinite(word.score) for word in words)
    return words
