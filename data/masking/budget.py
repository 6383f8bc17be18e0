"""How many nucleotides of a sequence are selected, and which candidate intervals make them up.

The budget is the original's: n = min(rate * max_tokens, max(1, round(rate * L))), half rounded to even. Candidates are
taken in their order while they fit: one that overlaps what is taken, or exceeds what is left, is passed over. So the
budget is never exceeded (specs: rnaernie 4.1, 4.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
_RANDOM_BITS = 30


def budgets(lengths: npt.NDArray[np.integer], rate: float, max_tokens: int) -> I64:
    """[n] nucleotides to select of sequences with so many eligible ones; 0 where there are none."""
    wanted = np.minimum(np.maximum(np.rint(rate * lengths), 1), max(np.floor(rate * max_tokens + 1e-9), 1))
    return np.where(lengths > 0, wanted, 0).astype(np.int64)


def greedy(
    starts: list[int], stops: list[int], shortest: int, least: int, budget: int, taken: bytearray
) -> tuple[list[int], list[int], int]:
    """Takes intervals [start, stop) of one sequence in order; marks them in ``taken`` (a byte per nucleotide: is it?).

    One that is longer than what is left is shortened at its end, to no less than ``least`` nucleotides (0: never).
    ``shortest`` is the length of the shortest: when that no longer fits, nothing does. Nucleotides marked beforehand
    are never selected. Returns starts and stops of what was taken, and what is left.
    """
    found_starts: list[int] = []
    found_stops: list[int] = []
    for start, stop in zip(starts, stops, strict=True):
        size = stop - start
        if size > budget:
            if not least or budget < least:
                if budget < shortest:
                    break
                continue
            stop, size = start + budget, budget
        if taken.find(1, start, stop) >= 0:
            continue
        taken[start:stop] = b"\1" * size
        found_starts.append(start)
        found_stops.append(stop)
        budget -= size
        if not budget:
            break
    return found_starts, found_stops, budget


def greedy_pairs(
    places: list[int], partners: list[int], budget: int, taken: bytearray
) -> tuple[list[int], list[int], int]:
    """As `greedy`, for single nucleotides that come with a partner (-1: none), both or neither.

    Returns the nucleotides taken, for each the one that brought it in, and what is left.
    """
    found: list[int] = []
    units: list[int] = []
    for place, partner in zip(places, partners, strict=True):
        size = 1 + (partner >= 0)
        if size > budget or taken[place] or (partner >= 0 and taken[partner]):
            continue
        for nucleotide in (place, partner)[:size]:
            taken[nucleotide] = 1
            found.append(nucleotide)
            units.append(place)
        budget -= size
        if not budget:
            break
    return found, units, budget


def first_of_each(sample: I64, draws: npt.NDArray[np.uint64], quota: I64) -> I64:
    """Indices of the ``quota[s]`` smallest draws of every sample s: the greedy choice among single nucleotides.

    ``sample`` [n] ascending from 0, ``draws`` [n].
    """
    order = by_sample(sample, draws)
    counts = np.bincount(sample, minlength=len(quota))
    rank = np.arange(len(sample)) - (np.cumsum(counts) - counts)[sample]
    return order[rank < quota[sample]]


def by_sample(sample: I64, draws: npt.NDArray[np.uint64]) -> I64:
    """The order [n] that sorts by sample (ascending from 0), and within it by the upper 30 bits of draws, then place.

    Sorts plain integers, sample in the high bits and index in the low ones: several times faster than an argsort. The
    bits that count do not depend on n, so a sample's order is the same in any company.
    """
    n = len(sample)
    if not n:
        return np.zeros(0, dtype=np.int64)
    index_bits, sample_bits = (n - 1).bit_length(), int(sample[-1]).bit_length()
    random = draws >> np.uint64(64 - _RANDOM_BITS)
    if index_bits + sample_bits + _RANDOM_BITS > 64:
        return np.lexsort((random, sample))
    upper = sample.astype(np.uint64) << np.uint64(_RANDOM_BITS) | random
    words = np.sort(upper << np.uint64(index_bits) | np.arange(n, dtype=np.uint64))
    return (words & np.uint64((1 << index_bits) - 1)).astype(np.int64)
