"""Sequences -> the rows that a sequence model reads: `<cls>` tokens `<eos>`, cut to a window where they are too long.

A row of more than max_tokens is cut to a random window of it, drawn by the sample's key; so a fragment lacks `<cls>` or
`<eos>` where it was cut, and the model sees that it is a fragment.

With one nucleotide per token the length of a row is known from that of the sequence, and only the window is looked up.
With pieces a row's length is known once the sequence is read, but batches are planned before, from lengths alone, on
every rank alike, and no rank should read the sequences of the others. So `planned_lengths` is cautious there: what 999
in 1,000 sequences stay within. A plan decides speed and memory, never the result; the price of being wrong is a
micro-batch that exceeds its budget by the excess of that one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alphabet import Alphabet
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.tokenizer import Tokenizer, widths

I64: TypeAlias = npt.NDArray[np.int64]

CLS_CODE, EOS_CODE = 1, 2  # ASCII control codes, for the special tokens while rows of letters are put together


@dataclass
class Rows:
    """B rows end to end, T tokens."""

    tokens: I64  # [T] ids
    lengths: I64  # [B] tokens
    sample: I64  # [T] which row
    positions: I64  # [T] from 0 in every row
    nucleotide: I64  # [T] first nucleotide of each token in the uncropped sequence; `<cls>` has none and -1 or 0
    nucleotides: I64  # [B] nucleotides in the row


class RowMaker(Protocol):
    def planned_lengths(self, nucleotides: I64) -> I64:
        """[n] tokens that rows of sequences of these lengths are planned with; at most max_tokens."""
        ...

    def rows(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64]) -> Rows:
        """One row per sequence, cut to max_tokens. Empty lists give one row, `<cls>` `<eos>`."""
        ...


def row_maker(tokenizer: Tokenizer, max_tokens: int) -> RowMaker:
    if isinstance(tokenizer, Alphabet):
        return LetterRows(tokenizer, max_tokens)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return PieceRows(tokenizer, max_tokens)


class LetterRows:
    """Rows of single nucleotides: windows are cut from the letters, and one lookup makes ids of them all."""

    def __init__(self, alphabet: Alphabet, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._lookup = alphabet.lookup.astype(np.int64)
        self._lookup[CLS_CODE], self._lookup[EOS_CODE] = alphabet.ids[alphabet.cls], alphabet.ids[alphabet.eos]

    def planned_lengths(self, nucleotides: I64) -> I64:
        """Exact: `<cls>`, letters, `<eos>`."""
        return np.minimum(nucleotides + 2, self.max_tokens)

    def rows(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64]) -> Rows:
        cls, eos = np.array([CLS_CODE], np.uint8), np.array([EOS_CODE], np.uint8)
        if not letters:
            return _packed(self._lookup[np.concatenate([cls, eos])], np.array([2]), np.array([-1]), np.array([0]))
        whole = np.array([len(sequence) for sequence in letters])
        lengths = self.planned_lengths(whole)
        starts = window_starts(whole + 2, self.max_tokens, keys)
        pieces = []
        for sequence, start, length in zip(letters, starts.tolist(), lengths.tolist(), strict=True):
            stop = start + length  # the window [start, stop) of the row `<cls>` sequence `<eos>`
            row = [sequence[max(start - 1, 0) : stop - 1]]
            if start == 0:
                row.insert(0, cls)
            if stop == len(sequence) + 2:
                row.append(eos)
            pieces += row
        read = lengths - (starts == 0) - (starts + lengths == whole + 2)
        return _packed(self._lookup[np.concatenate(pieces)], lengths, starts - 1, read)


class PieceRows:
    """Rows of pieces: every sequence is read whole, and a window of its tokens is kept."""

    def __init__(self, tokenizer: SentencePieceTokenizer, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._cls, self._eos = [tokenizer.ids[tokenizer.cls]], [tokenizer.ids[tokenizer.eos]]
        self._widths = widths(tokenizer)

    def planned_lengths(self, nucleotides: I64) -> I64:
        """Cautious, see the module; never more than one nucleotide per token would need."""
        return np.minimum(self.tokenizer.planned_length(nucleotides) + 2, self.max_tokens)

    def rows(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64]) -> Rows:
        if not letters:
            return _packed(np.array(self._cls + self._eos), np.array([2]), np.array([0]), np.array([0]))
        whole = [np.concatenate([self._cls, self.tokenizer.encode(sequence), self._eos]) for sequence in letters]
        starts = window_starts(np.array([len(row) for row in whole]), self.max_tokens, keys)
        kept = [row[start : start + self.max_tokens] for row, start in zip(whole, starts.tolist(), strict=True)]
        skipped = [self._widths[row[:start]].sum() for row, start in zip(whole, starts.tolist(), strict=True)]
        tokens, lengths = np.concatenate(kept), np.array([len(row) for row in kept])
        before = np.concatenate([[0], np.cumsum(self._widths[tokens])])  # nucleotides before each token, over all rows
        ends = np.cumsum(lengths)
        read = before[ends] - before[ends - lengths]
        packed = _packed(tokens, lengths, np.array(skipped), read)
        packed.nucleotide = before[:-1] + (np.array(skipped) - before[ends - lengths])[packed.sample]
        return packed


def window_starts(lengths: I64, max_tokens: int, keys: npt.NDArray[np.uint64]) -> I64:
    """[n] where the window of max_tokens starts in a row of that length, drawn by key; 0 where the row fits."""
    room = np.maximum(lengths - max_tokens, 0)
    draws = randomness.bits(randomness.keys(randomness.key("crop"), keys), np.zeros(len(keys)))
    return randomness.below(draws, room + 1)


def _packed(tokens: I64, lengths: I64, first: I64, nucleotides: I64) -> Rows:
    """Rows of one nucleotide per token, ``first`` [B] being the nucleotide of each row's first token."""
    sample = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[sample]
    return Rows(tokens, lengths, sample, positions, positions + first[sample], nucleotides)
