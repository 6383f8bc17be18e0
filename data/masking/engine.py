"""Candidate intervals -> greedy budget -> top-up, for a packed batch of sequences.

    level       each sequence (or the whole batch) draws its level
    candidates  the level's intervals for the sequence, in the order in which they are tried
    greedy      intervals are taken while they fit into the budget
    top-up      what is left of the budget is filled with single nucleotides or spans, if asked for

Single nucleotides are chosen for the whole batch at once; intervals in a short loop per sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data import randomness
from data.masking import candidates
from data.masking.budget import budgets, first_of_each, greedy, greedy_pairs
from data.masking.candidates import Candidates
from data.masking.levels import LevelChoice
from data.masking.options import BASE, LEVELS, NONE, SPAN, SpanOptions, WordOptions
from data.masking.words import Hits, WordScanner

I64 = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Packed:
    """B sequences end to end, N letters. Letters are upper case, spelled with U."""

    letters: npt.NDArray[np.uint8]  # [N] ASCII
    lengths: I64  # [B]
    eligible: npt.NDArray[np.bool_]  # [N] may be selected
    partners: Sequence[I64 | None] | None = None  # per sequence: [length] of each nucleotide's partner, -1 for none

    def texts(self, chosen: I64) -> list[bytes]:
        ends = np.cumsum(self.lengths)
        whole = self.letters.tobytes()
        return [whole[end - size : end] for end, size in zip(ends[chosen], self.lengths[chosen], strict=True)]


@dataclass(frozen=True)
class Selection:
    """M selected letters."""

    place: I64  # [M] ascending, into the packed letters
    unit: I64  # [M] nucleotide of its sequence at which the interval begins that brought it in
    level: I64  # [B] index into LEVELS


class Engine:
    """``topup``: base, span or none, for every level. ``scanners`` finds the words of the levels motif and npmi."""

    def __init__(
        self,
        choice: LevelChoice,
        rate: float,
        max_tokens: int,
        span: SpanOptions,
        words: dict[str, WordOptions],
        scanners: dict[str, WordScanner],
        topup: str,
    ) -> None:
        self.choice, self.span, self.words, self.scanners, self.topup = choice, span, words, scanners, topup
        self._rate, self._max_tokens = rate, max_tokens

    def without_topup(self) -> Engine:
        bare = copy.copy(self)
        bare.topup = NONE
        return bare

    def select(self, packed: Packed, keys: Keys, fraction: float = 1.0, batch_key: int = 0) -> Selection:
        """``keys`` [B] of the samples; ``fraction`` of the run; ``batch_key`` the same for all samples of a step."""
        return self.select_at(packed, keys, self.choice.choose(keys, fraction, batch_key))

    def select_at(self, packed: Packed, keys: Keys, level: I64) -> Selection:
        """With a given level per sequence."""
        firsts = np.cumsum(packed.lengths) - packed.lengths
        sample = np.repeat(np.arange(len(packed.lengths)), packed.lengths)
        usable = np.bincount(sample, weights=packed.eligible, minlength=len(packed.lengths)).astype(np.int64)
        state = _State(packed, firsts, budgets(usable, self._rate, self._max_tokens))
        for number, name in enumerate(LEVELS):
            mine = np.flatnonzero(level == number)
            if name != "base" and len(mine):
                offered = self.candidates(name, packed, keys, mine)
                if offered is not None:
                    state.take(mine, offered, self.span.min if name == SPAN else 0)
        if self.topup == SPAN:
            short = np.flatnonzero((level != LEVELS.index("base")) & (state.left > 0))
            state.take(short, candidates.spans(packed.lengths[short], keys[short], self.span), self.span.min)
        single = level == LEVELS.index("base")
        if self.topup == BASE:
            single[:] = True
        if packed.partners is None:
            single |= level == LEVELS.index("pair")
        else:  # the pair level without a structure is the base level
            single |= (level == LEVELS.index("pair")) & np.array([own is None for own in packed.partners], dtype=bool)
        return state.fill(single, sample, keys, level)

    def candidates(self, name: str, packed: Packed, keys: Keys, mine: I64) -> Candidates | None:
        """What a level offers the sequences ``mine``; None for single nucleotides."""
        if name == SPAN:
            return candidates.spans(packed.lengths[mine], keys[mine], self.span)
        if name in self.scanners:
            hits = self.hits(name, packed, mine)
            return candidates.words(hits, keys[mine], self.words[name])
        if name == "pair" and packed.partners is not None:
            lengths = packed.lengths[mine].tolist()
            known = [packed.partners[i] for i in mine.tolist()]
            nothing = np.zeros(0, dtype=np.int64)
            own = [nothing if have is None else have for have in known]
            assert all(len(have) in (0, n) for have, n in zip(own, lengths, strict=True))
            return candidates.pairs(own, keys[mine])
        return None

    def hits(self, name: str, packed: Packed, mine: I64) -> Hits:
        """Every occurrence of the words of the level ``name`` in the sequences ``mine``."""
        return self.scanners[name].scan(packed.texts(mine))


class _State:
    """What has been selected so far: marks over all letters, and what is left of each budget."""

    def __init__(self, packed: Packed, firsts: I64, budget: I64) -> None:
        self._packed, self._firsts = packed, firsts
        self.left = budget
        self._marks = bytearray(np.where(packed.eligible, 0, 1).astype(np.uint8))  # 1: taken or not eligible
        self._unit = np.full(len(packed.letters), -1, dtype=np.int64)  # as a place in the packed letters

    def take(self, mine: I64, offered: Candidates, least: int) -> None:
        """Greedily, for the sequences ``mine``, to which the candidates' samples refer."""
        offset = self._firsts[mine][offered.sample]
        starts, stops = (offered.start + offset).tolist(), (offered.stop + offset).tolist()
        partners = None
        if offered.partner is not None:
            partners = np.where(offered.partner >= 0, offered.partner + offset, -1).tolist()
        shortest = np.zeros(len(mine), dtype=np.int64)
        begins = np.flatnonzero(np.diff(offered.sample, prepend=-1))
        if len(begins):
            shortest[offered.sample[begins]] = np.minimum.reduceat(offered.stop - offered.start, begins)
        bounds = np.searchsorted(offered.sample, np.arange(len(mine) + 1)).tolist()
        left = self.left[mine].tolist()
        taken: list[int] = []
        ends: list[int] = []
        units: list[int] = []
        for i, (a, b, least_size) in enumerate(zip(bounds[:-1], bounds[1:], shortest.tolist(), strict=True)):
            if a == b or not left[i]:
                continue
            if partners is None:
                begun, ended, left[i] = greedy(starts[a:b], stops[a:b], least_size, least, left[i], self._marks)
                units += begun
            else:
                begun, brought, left[i] = greedy_pairs(starts[a:b], partners[a:b], left[i], self._marks)
                ended = [nucleotide + 1 for nucleotide in begun]
                units += brought
            taken += begun
            ends += ended
        self.left[mine] = left
        start, stop, unit = np.array([taken, ends, units], dtype=np.int64)
        sizes = stop - start
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._unit[np.repeat(start, sizes) + within] = np.repeat(unit, sizes)

    def fill(self, single: npt.NDArray[np.bool_], sample: I64, keys: Keys, level: I64) -> Selection:
        """Single nucleotides for the rest of the budget of the sequences in ``single``, then the result."""
        wanted = np.where(single, self.left, 0)
        free = np.flatnonzero((np.frombuffer(self._marks, dtype=np.uint8) == 0) & (wanted > 0)[sample])
        if len(free):
            place = free - self._firsts[sample[free]]
            draws = randomness.bits(randomness.keys(randomness.key("base order"), keys)[sample[free]], place)
            chosen = first_of_each(sample[free], draws, wanted)
            self._unit[free[chosen]] = free[chosen]
        selected = np.flatnonzero(self._unit >= 0)
        return Selection(selected, self._unit[selected] - self._firsts[sample[selected]], level)
