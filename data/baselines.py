"""What models without a transformer reach: letter frequencies, and a Markov chain of the preceding nucleotides.

A masked-LM run that does not get below the perplexity of the letter frequencies has learned nothing, and one that does
not get below that of the Markov chain has learned composition only. The chain predicts from the *true* preceding
letters, also where a masked model would see `<mask>`: a generous baseline. It does not look to the right.

Letters are ASCII; T and U are one letter, lower case counts as upper case, and any other letter (N, IUPAC codes, gaps)
is never counted, never scored and never part of a context. Contexts do not cross from one array to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

from data.errors import DataError

MAX_ORDER = 8  # 4**9 counts, and 5**9 while counting
_OTHER = 4  # the code of any letter but A, C, G, U
_CHUNK = 1 << 22  # letters counted at once: bounds the memory, about 100 MB

_CODES = np.full(256, _OTHER, dtype=np.uint8)
for _code, _spellings in enumerate(("Aa", "Cc", "Gg", "UuTt")):
    _CODES[np.frombuffer(_spellings.encode(), dtype=np.uint8)] = _code


def letter_frequencies(blocks: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """[4]: the shares of A, C, G, U among the nucleotides of these arrays of letters; sums to 1.

    Raises DataError when there is not a single nucleotide.
    """
    counts = np.zeros(5, dtype=np.int64)
    for block in blocks:
        counts += np.bincount(_CODES[block], minlength=5)
    nucleotides = counts[:4].astype(np.float64)
    if nucleotides.sum() == 0:
        raise DataError("There is no A, C, G or U in the sequences, so letter frequencies are undefined.")
    shares: npt.NDArray[np.float64] = nucleotides / nucleotides.sum()
    return shares


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """Probabilities of a letter after ``order`` letters, add-one smoothed. Order 0 is the unigram model.

    Where the context is not complete (the first positions, or an ambiguous letter in it) the letter frequencies, also
    add-one smoothed, stand in for it.
    """

    order: int
    probabilities: npt.NDArray[np.float64]  # [4**order, 4], the context read as a number in base 4, oldest letter first
    frequencies: npt.NDArray[np.float64]  # [4]

    @classmethod
    def fit(cls, sequences: Iterable[npt.NDArray[np.uint8]], order: int = 2) -> MarkovModel:
        """Counts over arrays of letters, one per sequence; 50 million nucleotides take about a second.

        Raises DataError for an order not in [0, 8] and for sequences without a single nucleotide.
        """
        if not 0 <= order <= MAX_ORDER:
            raise DataError(f"The order of a Markov model must be between 0 and {MAX_ORDER}; got {order}.")
        # Counted in base 5, "other" being a fifth letter: incomplete contexts land in bins of their own, which are cut.
        bins = 5 ** (order + 1)
        counts = np.zeros(bins, dtype=np.int64)
        letters = np.zeros(5, dtype=np.int64)
        for codes in _chunks(sequences):
            letters += np.bincount(codes, minlength=5)
            padded = np.concatenate([np.full(order, _OTHER, dtype=np.uint8), codes])
            counts += np.bincount(_windows(padded, order + 1, base=5), minlength=bins)
        if letters[:4].sum() == 0:
            raise DataError("There is no A, C, G or U in the sequences, so a Markov model cannot be fitted.")
        table = counts.reshape((5,) * (order + 1))[(slice(4),) * (order + 1)].reshape(-1, 4) + 1.0
        smoothed = letters[:4] + 1.0
        return cls(order, table / table.sum(axis=1, keepdims=True), smoothed / smoothed.sum())

    def nats(self, letters: npt.NDArray[np.uint8], positions: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """-ln of the probability of the true letter, at each of ``positions`` (indices or a boolean mask; all if None).

        ``letters`` [L] is one sequence. Returns one number per position, NaN where the true letter is not A, C, G or U.
        """
        codes = _CODES[letters]
        padded = np.concatenate([np.full(self.order, _OTHER, dtype=np.uint8), codes])
        complete = _windows(padded == _OTHER, self.order + 1, base=1) == 0
        known = codes < _OTHER
        nats = np.full(len(codes), np.nan)
        nats[known] = -np.log(self.frequencies[codes[known]])
        cells = _windows(np.minimum(padded, 3), self.order + 1, base=4)[complete]
        nats[complete] = -np.log(self.probabilities.reshape(-1)[cells])
        return nats if positions is None else nats[np.asarray(positions)]

    def nll(
        self, sequences: Iterable[npt.NDArray[np.uint8]], positions: Iterable[npt.ArrayLike | None]
    ) -> tuple[float, int]:
        """(sum of nats, number of positions scored) over sequences and the positions in each, as for `nats`."""
        total, count = 0.0, 0
        for letters, chosen in zip(sequences, positions, strict=True):
            nats = self.nats(letters, chosen)
            total += float(np.nansum(nats))
            count += int(np.count_nonzero(~np.isnan(nats)))
        return total, count


def perplexity(nats: float, count: int) -> float:
    """exp(nats / count) of what `MarkovModel.nll` or an oracle gives. Raises DataError when nothing was scored."""
    if count == 0:
        raise DataError("No position was scored, so there is no perplexity.")
    return exp(nats / count)


def _chunks(sequences: Iterable[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
    """Codes of many sequences end to end, one "other" between two of them so that no context crosses."""
    separator = np.array([ord("-")], dtype=np.uint8)
    parts: list[npt.NDArray[np.uint8]] = []
    size = 0
    for sequence in sequences:
        parts += [sequence, separator]
        size += len(sequence) + 1
        if size >= _CHUNK:
            yield _CODES[np.concatenate(parts)]
            parts, size = [], 0
    if parts:
        yield _CODES[np.concatenate(parts)]


def _windows(codes: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], width: int, base: int) -> npt.NDArray[np.int64]:
    """[N - width + 1]: every run of ``width`` codes as one number, the first code its highest digit; base 1 adds up."""
    number = np.zeros(len(codes) - width + 1, dtype=np.int64)
    for i in range(width):
        number *= base
        number += codes[i : i + len(number)]
    return number
