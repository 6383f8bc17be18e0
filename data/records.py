"""One piece of FASTA text -> the rows, letters and accessions of the records that stay, and a tally of all of them.

This is what a parsing process does with each piece (`data.workers`). Duplicates are not looked for here: they may be
anywhere in the corpus, and are found when a bucket is read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.buckets import ROW, reading_place
from data.formats.fasta import FastaText
from data.normalise import DROPPED, KEPT, LetterPolicy, Normaliser, complement
from data.rna_types import TYPE_ID, classify, rfam_family

LONGEST = (1 << 31) - 1  # nucleotides of one sequence that the format can hold, when max_length is 0


@dataclass
class Tally:
    """What became of records: how many were read, dropped (by reason) and changed (letters, by kind).

    ``first_dropped``: for each reason the first record, as (reading place, sentence that names file and record).
    """

    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.records += other.records
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)
        for reason, first in other.first_dropped.items():
            if reason not in self.first_dropped or first[0] < self.first_dropped[reason][0]:
                self.first_dropped[reason] = first

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        total = cls()
        for tally in tallies:
            total.add(tally)
        return total

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "dropped": dict(self.dropped), "changed": dict(self.changed)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Tally:
        first = {reason: (int(at), what) for reason, (at, what) in content["first_dropped"].items()}
        return cls(content["records"], Counter(content["dropped"]), Counter(content["changed"]), first)


@dataclass(frozen=True)
class FilterRules:
    """The part of a config that decides about single records."""

    policy: LetterPolicy
    min_length: int
    max_length: int  # 0 is no limit
    merge_strands: bool = False


@dataclass(frozen=True)
class Origin:
    """Where a piece of text comes from: number and path of its file, and number of its source.

    ``type``: the type that all its records have; None reads it from each header. ``family``: of records that name none.
    """

    file: int
    path: str
    source: int
    type: str | None = None
    family: int = 0


class RecordFilter:
    """Applies one set of rules to pieces of text. Stateless between calls."""

    def __init__(self, rules: FilterRules) -> None:
        self.rules = rules
        self.normalise = Normaliser(rules.policy)
        self.longest = rules.max_length or LONGEST

    def __call__(
        self, piece: FastaText, origin: Origin
    ) -> tuple[npt.NDArray[np.void], list[bytes], list[bytes], Tally]:
        """Raises DataError for text that is not text, naming file and record."""
        records = piece.parse()
        batch = self.normalise(records.bodies, origin.path, records.first)
        verdict, lengths = batch.verdict, batch.lengths
        verdict[(verdict == KEPT) & (lengths < self.rules.min_length)] = DROPPED["too_short"]
        verdict[(verdict == KEPT) & (lengths > self.longest)] = DROPPED["too_long"]
        tally = Tally(len(verdict), changed=batch.changes)
        kept = np.flatnonzero(verdict == KEPT)
        if len(kept) < len(verdict):
            self._tell_dropped(tally, verdict, records.first, records.headers, origin)

        picks = kept.tolist()
        letters = batch.sequences if len(picks) == len(verdict) else [batch.sequences[i] for i in picks]
        headers = records.headers if len(picks) == len(verdict) else [records.headers[i] for i in picks]
        named = [classify(header) for header in headers]
        names = [name for name, _ in named]
        rows = np.empty(len(picks), dtype=ROW)
        rows["hi"], rows["lo"], rows["reversed"] = digests(letters, self.rules.merge_strands)
        rows["at"] = np.uint64(reading_place(origin.file, records.first - 1)) + kept.astype(np.uint64)
        rows["length"] = lengths[kept]
        rows["source"] = origin.source
        rows["family"] = [(b"RF" in header and rfam_family(header)) or origin.family for header in headers]
        rows["name"] = [len(name) for name in names]
        rows["type"] = [found for _, found in named] if origin.type is None else TYPE_ID[origin.type]
        return rows, letters, names, tally

    @staticmethod
    def _tell_dropped(
        tally: Tally, verdict: npt.NDArray[np.uint8], number: int, headers: list[bytes], origin: Origin
    ) -> None:
        for reason, code in DROPPED.items():
            found = np.flatnonzero(verdict == code)
            if found.size:
                first = int(found[0])
                name = classify(headers[first])[0].decode("ascii", "replace") or "no name"
                told = f"{origin.path.rpartition('/')[2]}, record {number + first} ({name})"
                tally.dropped[reason] = len(found)
                tally.first_dropped[reason] = (reading_place(origin.file, number - 1 + first), told)


def digests(
    letters: list[bytes], merge_strands: bool = False
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """xxh3_128 of each sequence as (upper half, lower half), and whether it is that of the other strand.

    Merging takes the smaller of the hashes of a sequence and its reverse complement, so both have the same.
    """
    hi, lo = _halves(letters)
    if not merge_strands:
        return hi, lo, np.zeros(len(letters), dtype=np.uint8)
    other_hi, other_lo = _halves([complement(sequence)[::-1] for sequence in letters])
    smaller = (other_hi < hi) | ((other_hi == hi) & (other_lo < lo))
    return np.where(smaller, other_hi, hi), np.where(smaller, other_lo, lo), smaller.astype(np.uint8)


def _halves(letters: list[bytes]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    found = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, letters)), dtype=">u8").reshape(-1, 2)
    return found[:, 0].astype(np.uint64), found[:, 1].astype(np.uint64)
