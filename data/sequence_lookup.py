"""id -> sequence, from a table such as test_sequences.csv: for files of profiles that hold ids only.

Letters lie in a file on disk; what is kept in memory per sequence is a 128-bit hash of its id and a place (28 bytes).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data.errors import DataError
from data.formats.reactivity_table import read_table

_ENTRY = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("start", "<u8"), ("length", "<u4")])


class SequenceLookup:
    """Reads ``table`` once; ``spill`` is a file to write letters to.

    Raises DataError as `read_table` does, and for an id that stands with two sequences.
    """

    def __init__(self, table: Path, spill: Path) -> None:
        parts: list[npt.NDArray[np.void]] = []
        entries: list[tuple[int, int, int, int]] = []
        start = 0
        with open(spill, "wb", buffering=1 << 20) as file:
            for record in read_table(table):
                if record.letters is None:
                    raise DataError(f"{table}: has no column sequence, so it cannot tell the sequences of ids.")
                entries.append((*_halves(record.name), start, len(record.letters)))
                file.write(record.letters)
                start += len(record.letters)
                if len(entries) == 1 << 16:
                    parts.append(np.array(entries, dtype=_ENTRY))
                    entries = []
        found = np.concatenate([*parts, np.array(entries, dtype=_ENTRY)])
        self._entries = found[np.lexsort((found["start"], found["lo"], found["hi"]))]
        with open(spill, "rb") as file:
            self._letters = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if start else b""
        hi, lo = self._entries["hi"], self._entries["lo"]
        for i in np.flatnonzero((hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1])).tolist():
            if self._at(i) != self._at(i + 1):
                shown = self._at(i)[:20].decode("ascii", "replace")
                raise DataError(f"{table}: one id stands with two sequences, one of which starts with {shown}.")

    def __call__(self, name: str) -> bytes | None:
        """The letters as they stand in the table, None for an id that it lacks."""
        hi, lo = _halves(name)
        at = int(np.searchsorted(self._entries["hi"], np.uint64(hi)))
        while at < len(self._entries) and int(self._entries["hi"][at]) == hi:
            if int(self._entries["lo"][at]) == lo:
                return self._at(at)
            at += 1
        return None

    def _at(self, place: int) -> bytes:
        start = int(self._entries["start"][place])
        return bytes(self._letters[start : start + int(self._entries["length"][place])])


def _halves(name: str) -> tuple[int, int]:
    return divmod(xxhash.xxh3_128_intdigest(name.encode()), 1 << 64)
