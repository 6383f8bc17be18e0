"""Finding every occurrence of a set of words in sequences: Aho-Corasick (pyahocorasick), on strings of letters.

Overlapping and nested occurrences are all found. Sequences are joined with a letter that no word has, so one pass reads
a whole batch. Words and sequences must be spelled alike, which is the caller's part: words come from
data/formats/motifs.py and sequences from a corpus, both upper case with U (tests/data/test_masking_statistics.py shows
what happens when they are not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import ahocorasick
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
_GAP = b"\n"


@dataclass(frozen=True)
class Hits:
    """n occurrences, in the order of reading: by sample, then by end, then longest first."""

    sample: I64  # [n]
    start: I64  # [n] nucleotide
    stop: I64  # [n] the one after the last
    mined: npt.NDArray[np.bool_]  # [n] only in the second list


class WordScanner:
    """Of ``words``, and of ``mined`` words (which count as words where they are both). May be empty."""

    def __init__(self, words: Sequence[str], mined: Sequence[str] = ()) -> None:
        self._automaton = ahocorasick.Automaton()
        for word in chain(mined, words):
            self._automaton.add_word(word, 2 * len(word) + 1)
        for word in words:
            self._automaton.add_word(word, 2 * len(word))
        self.count = len(self._automaton)
        if self.count:
            self._automaton.make_automaton()

    def scan(self, sequences: Sequence[bytes]) -> Hits:
        """``sequences``: ASCII letters."""
        text = _GAP.join(sequences).decode("latin-1")
        found = chain.from_iterable(self._automaton.iter(text)) if self.count and text else ()
        ends, values = np.fromiter(found, dtype=np.int64).reshape(-1, 2).T
        firsts = np.cumsum([0, *(len(sequence) + 1 for sequence in sequences)])[: len(sequences)].astype(np.int64)
        sample = np.searchsorted(firsts, ends, side="right") - 1
        stop = ends + 1 - (firsts[sample] if len(ends) else 0)
        return Hits(sample, stop - (values >> 1), stop, (values & 1).astype(bool))
