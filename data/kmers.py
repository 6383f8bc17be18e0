"""Counts of all k-mers of A, C, G and U in a corpus, one sequence per cluster, in bounded memory.

A k-mer is a number in base 4, its first letter the most significant. Windows with any other letter are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from data.alphabet import NUCLEOTIDES
from data.index import Corpus

I64 = npt.NDArray[np.int64]
LONGEST = 12  # 4**12 counts are 134 MB
_CHUNK = 1 << 21  # letters counted at once
_OTHER = 4

_CODES = np.full(256, _OTHER, dtype=np.uint8)
for _code, _spellings in enumerate(("Aa", "Cc", "Gg", "UuTt")):
    _CODES[np.frombuffer(_spellings.encode(), dtype=np.uint8)] = _code


def representatives(corpus: Corpus) -> I64:
    """The first sequence of every cluster; every sequence where the corpus has no clusters."""
    return np.arange(corpus.count) if corpus.clusters is None else corpus.clusters[:-1].astype(np.int64)


def count(
    blocks: Iterable[list[npt.NDArray[np.uint8]]], lengths: Iterable[int], clumps: Iterable[int] = ()
) -> tuple[dict[int, I64], dict[int, int]]:
    """(k -> [4**k] occurrences, k -> windows of k letters) in sequences of ASCII letters, given in blocks.

    Occurrences that overlap are all counted, but for the lengths in ``clumps`` an occurrence that begins within the one
    before it of the same word is not: a run of 20 A is one AAAAAA there.
    """
    clumps = set(clumps)
    windows = dict.fromkeys(sorted(set(lengths)), 0)
    counts = {k: np.zeros(4**k, dtype=np.int64) for k in sorted(set(lengths))}
    for codes in _joined(blocks):
        window = np.zeros(len(codes), dtype=np.int64)
        valid = np.ones(len(codes), dtype=bool)
        for k in range(1, max(counts) + 1):  # windows grow by one letter at their end
            n = len(codes) - k + 1
            if n <= 0:
                break
            end = codes[k - 1 :]
            valid = valid[:n] & (end != _OTHER)
            window = window[:n] * 4 + end
            if k in counts:
                kept = _clump_starts(np.where(valid, window, -1), k) if k in clumps else valid
                found = window[kept]
                windows[k] += int(valid.sum())
                if 4**k > 8 * len(found):  # a table of all k-mers would cost more than sorting these
                    kmers, times = np.unique(found, return_counts=True)
                    counts[k][kmers] += times
                else:
                    counts[k] += np.bincount(found, minlength=4**k)
    return counts, windows


def _clump_starts(window: I64, k: int) -> npt.NDArray[np.bool_]:
    """Windows (-1: not a word) that are not the same word as one of the k - 1 windows before."""
    kept = window >= 0
    for shift in range(1, min(k, len(window))):
        kept[shift:] &= window[shift:] != window[:-shift]
    return kept


def sequences(corpus: Corpus, ids: I64) -> Iterator[list[npt.NDArray[np.uint8]]]:
    for start in range(0, len(ids), 4096):
        yield corpus.letters(ids[start : start + 4096])


def spelled(kmer: int, k: int) -> str:
    return "".join(NUCLEOTIDES[kmer >> 2 * place & 3] for place in range(k - 1, -1, -1))


def _joined(blocks: Iterable[list[npt.NDArray[np.uint8]]]) -> Iterator[npt.NDArray[np.uint8]]:
    """Codes of whole sequences, about _CHUNK letters at a time; no k-mer spans two sequences."""
    gap = np.array([0], dtype=np.uint8)  # not a letter
    pending: list[npt.NDArray[np.uint8]] = []
    waiting = 0
    for block in blocks:
        for sequence in block:
            pending += [sequence, gap]
            waiting += len(sequence)
            if waiting >= _CHUNK:
                yield _CODES[np.concatenate(pending)]
                pending, waiting = [], 0
    if pending:
        yield _CODES[np.concatenate(pending)]
