"""Rows `<cls>` nucleotides `<eos>` or `<cls>` nucleotides `[IND]` `[type]` `<eos>`, as RNAErnie reads them.

Unlike the rows of data/rows.py a row is always framed whole: a sequence that is too long is cut to its first
nucleotides, as the original does, or to a random window of them. Where types are appended, 4 tokens are kept for the
frame in every row, whether the sequence has a type or not, so how much of a sequence is read does not depend on its
type (specs: rnaernie 2.5, 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alphabet import Alphabet
from data.rows import Rows

I64 = npt.NDArray[np.int64]
INDICATOR = "[IND]"
FIRST, RANDOM = CROPS = ("first", "random")


@dataclass
class FramedRows(Rows):
    """``letter_token`` [N] the token of each letter; ``starts`` [B] first nucleotide that was read of each sequence."""

    letters: npt.NDArray[np.uint8]  # [N] ASCII, as given
    letter_token: I64  # [N]
    starts: I64  # [B]
    type_token: I64  # [B] place of the type in `tokens`, -1 for rows without


class FramedRowMaker:
    """``frame``: tokens of a row that are no nucleotides, at most (2, or 4 with types)."""

    def __init__(self, alphabet: Alphabet, max_tokens: int, crop: str, frame: int) -> None:
        self._room, self._frame, self._random = max_tokens - frame, frame, crop == RANDOM
        self._lookup = alphabet.lookup.astype(np.int64)
        self._cls, self._eos = alphabet.ids[alphabet.cls], alphabet.ids[alphabet.eos]
        self._indicator = alphabet.ids.get(INDICATOR, -1)

    def planned_lengths(self, nucleotides: I64) -> I64:
        """[n] tokens that rows of these sequences are planned with: with a type, which some of them lack."""
        return np.minimum(nucleotides, self._room) + self._frame

    def rows(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64], types: I64) -> FramedRows:
        """One row per sequence. ``types`` [B]: token id of the type, -1 for none. Empty lists give `<cls>` `<eos>`."""
        if not letters:
            letters, keys, types = [np.zeros(0, np.uint8)], np.zeros(1, np.uint64), np.array([-1])
        whole = np.array([len(sequence) for sequence in letters], dtype=np.int64)
        read = np.minimum(whole, self._room)
        starts = np.zeros(len(read), dtype=np.int64)
        if self._random:
            draws = randomness.bits(randomness.keys(randomness.key("crop"), keys), np.zeros(len(keys)))
            starts = randomness.below(draws, whole - read + 1)
        cut = [
            sequence[start : start + size]
            for sequence, start, size in zip(letters, starts.tolist(), read.tolist(), strict=True)
        ]
        typed = types >= 0
        lengths = read + 2 + 2 * typed
        firsts = np.cumsum(lengths) - lengths
        sample = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.arange(len(sample)) - firsts[sample]
        letter_token = np.flatnonzero((positions > 0) & (positions <= read[sample]))
        joined = np.concatenate(cut)
        tokens = np.empty(len(sample), dtype=np.int64)
        tokens[letter_token] = self._lookup[joined]
        tokens[firsts], tokens[firsts + lengths - 1] = self._cls, self._eos
        type_token = np.where(typed, firsts + read + 2, -1)
        tokens[type_token[typed] - 1], tokens[type_token[typed]] = self._indicator, types[typed]
        return FramedRows(
            tokens,
            lengths,
            sample,
            positions,
            positions - 1 + starts[sample],
            read,
            joined,
            letter_token,
            starts,
            type_token,
        )


class WholeFrames:
    """A `data.rows.RowMaker` of rows that always have `<cls>` and `<eos>`: windows are cut from the nucleotides."""

    def __init__(self, alphabet: Alphabet, max_tokens: int) -> None:
        self._maker = FramedRowMaker(alphabet, max_tokens, RANDOM, frame=2)

    def planned_lengths(self, nucleotides: I64) -> I64:
        """Exact: `<cls>`, letters, `<eos>`."""
        return self._maker.planned_lengths(nucleotides)

    def rows(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64]) -> Rows:
        """One row per sequence. Empty lists give `<cls>` `<eos>`."""
        return self._maker.rows(letters, keys, np.full(len(letters), -1))
