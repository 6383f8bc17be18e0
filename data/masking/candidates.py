"""The intervals that a level offers for each sequence, in the order in which they are tried.

Every draw is keyed by (sample, place in the sequence), so what a sequence is offered does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data import randomness
from data.masking.budget import by_sample
from data.masking.options import DB_FIRST, GEOMETRIC, INV_RANK, LONGEST, SpanOptions, WordOptions
from data.masking.words import Hits

I64 = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Candidates:
    """n intervals of B sequences, sorted by sequence and then by turn."""

    sample: I64  # [n]
    start: I64  # [n]
    stop: I64  # [n]
    partner: I64 | None = None  # [n] one more nucleotide that is taken along, or -1


def spans(lengths: I64, keys: Keys, options: SpanOptions) -> Candidates:
    """One span from every place but the tail, in random order, of random length, cut where the tail begins."""
    room = np.maximum(lengths - options.tail, 0)
    sample = np.repeat(np.arange(len(room)), room)
    start = np.arange(len(sample)) - (np.cumsum(room) - room)[sample]
    drawn = randomness.uniform(_keyed("span length", keys)[sample], start)
    sizes = options.min + np.searchsorted(np.cumsum(length_probabilities(options))[:-1], drawn, side="right")
    order = by_sample(sample, randomness.bits(_keyed("span order", keys)[sample], start))
    return Candidates(sample, start[order], np.minimum(start + sizes, room[sample])[order])


def length_probabilities(options: SpanOptions) -> npt.NDArray[np.float64]:
    """[max - min + 1] of the span lengths, shortest first."""
    rank = np.arange(options.max - options.min + 1)
    if options.distribution == INV_RANK:
        weights = 1 / (rank + 1.0)
    elif options.distribution == GEOMETRIC:
        weights = (1 - options.p) ** rank.astype(np.float64)
    else:
        weights = np.ones(len(rank))
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def words(hits: Hits, keys: Keys, options: WordOptions) -> Candidates:
    """The occurrences of words, in the order that ``options`` asks for."""
    size = hits.stop - hits.start
    turn = randomness.bits(_keyed("word order", keys)[hits.sample], (hits.start << 16) | size)
    if options.order == LONGEST:
        turn = (np.uint64(0xFFFF) - size.astype(np.uint64)) << np.uint64(48) | turn >> np.uint64(16)
    elif options.order == DB_FIRST:
        turn = np.where(hits.mined, np.uint64(1 << 63), turn >> np.uint64(1))  # of equal turns the first read is first
    order = by_sample(hits.sample, turn)
    return Candidates(hits.sample, hits.start[order], hits.stop[order])


def pairs(partners: list[I64], keys: Keys) -> Candidates:
    """Every nucleotide once, in random order, with its partner where it has one."""
    lengths = np.array([len(own) for own in partners], dtype=np.int64)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    start = np.arange(len(sample)) - (np.cumsum(lengths) - lengths)[sample]
    order = by_sample(sample, randomness.bits(_keyed("pair order", keys)[sample], start))
    partner = np.concatenate(partners) if partners else start
    return Candidates(sample, start[order], start[order] + 1, partner[order])


def _keyed(name: str, keys: Keys) -> Keys:
    return randomness.keys(randomness.key(name), keys)
