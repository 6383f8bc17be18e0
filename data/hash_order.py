"""Distinct sequences numbered in the order of their hashes: how whole-corpus questions name a sequence.

Clustering, families and leaks are about the set of distinct sequences, not about seeds or files. So sequences are
numbered by their 128-bit hash, which depends on their letters alone; MMseqs2, whose clusters depend on the order of its
input, reads them in this order. What is kept per sequence are arrays on disk (24 bytes), mapped where they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import Bucket, Buckets, first_of_equals, sorted_by
from data.errors import DataError

EDGE = np.dtype([("number", "<u4"), ("family", "<u2")])
CHUNK = 1 << 20  # sequences looked at together
_MOST = (1 << 32) - 2
_WRITE = 512  # sequences per write of the FASTA file


@dataclass(frozen=True)
class Numbered:
    """The records of one bucket by hash, then reading place. ``order`` [n] row numbers; ``first`` [n] of its kind;

    ``number`` uint32 [n] of each record's sequence.
    """

    bucket: Bucket
    order: npt.NDArray[np.int64]
    first: npt.NDArray[np.bool_]
    number: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class HashOrder:
    """``count`` distinct sequences of the ``buckets`` (by hash); arrays lie in ``folder``."""

    buckets: Buckets
    folder: Path
    count: int

    @property
    def fasta(self) -> Path:
        return self.folder / "sequences.fa"

    @property
    def hi(self) -> npt.NDArray[np.uint64]:
        return self._array("hi", np.uint64)

    @property
    def lo(self) -> npt.NDArray[np.uint64]:
        return self._array("lo", np.uint64)

    def families(self) -> npt.NDArray[np.void]:
        """EDGE [n]: each (sequence, family) that a record states."""
        return np.fromfile(self.folder / "families", dtype=EDGE)

    def new(self, name: str, dtype: npt.DTypeLike, fill: int = 0) -> npt.NDArray[Any]:
        """A mapped array [count] of zeros (or of ``fill``), written to disk as memory needs."""
        array = np.memmap(self.folder / name, dtype=dtype, mode="w+", shape=(self.count,))
        if fill:
            array[:] = fill
        return array

    def _array(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.memmap(self.folder / name, dtype=dtype, mode="r", shape=(self.count,))

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.count, CHUNK):
            yield slice(start, min(start + CHUNK, self.count))

    def records(self) -> Iterator[Numbered]:
        """All records, bucket by bucket."""
        before = 0
        for number in range(self.buckets.count):
            found = _numbered(self.buckets.read(number), before)
            before += int(np.count_nonzero(found.first))
            yield found

    def name_of(self, wanted: int) -> str:
        """The accession of one sequence, for a message. Reads buckets until it is found."""
        for found in self.records():
            here = np.flatnonzero(found.first & (found.number == wanted))
            if here.size:
                return found.bucket.names(found.order[here])[0].decode("ascii", "replace")
        raise IndexError(wanted)


def number_sequences(buckets: Buckets, folder: Path, fasta: bool, progress: Callable[[int], object]) -> HashOrder:
    """Numbers the distinct sequences of buckets by hash; ``progress`` is told how many buckets are done.

    ``fasta``: also writes them to a file, named by their numbers.
    """
    count = 0
    with (
        open(folder / "hi", "wb") as hi,
        open(folder / "lo", "wb") as lo,
        open(folder / "families", "wb") as families,
        open(folder / "sequences.fa" if fasta else os.devnull, "wb", buffering=1 << 20) as text,
    ):
        for b in range(buckets.count):
            found = _numbered(buckets.read(b), count)
            rows, firsts = found.bucket.rows, found.order[found.first]
            hi.write(rows["hi"][firsts].tobytes())
            lo.write(rows["lo"][firsts].tobytes())
            stated = rows["family"][found.order]
            edges = np.empty(int(np.count_nonzero(stated)), dtype=EDGE)
            edges["number"], edges["family"] = found.number[stated > 0], stated[stated > 0]
            families.write(edges.tobytes())
            for start in range(0, len(firsts) if fasta else 0, _WRITE):
                letters = found.bucket.letters(firsts[start : start + _WRITE])
                first = count + start
                text.write(b"".join([b">%d\n%b\n" % (i, sequence) for i, sequence in enumerate(letters, first)]))
            count += len(firsts)
            progress(b + 1)
    if count > _MOST:
        raise DataError(f"{count} distinct sequences: clusters and exclusion work with up to {_MOST}.")
    return HashOrder(buckets, folder, count)


def _numbered(bucket: Bucket, before: int) -> Numbered:
    rows = bucket.rows
    order = sorted_by(rows["hi"], rows["lo"], rows["at"])
    first = first_of_equals(rows["hi"][order], rows["lo"][order])
    number = (before + np.cumsum(first) - 1).astype(np.uint32)
    return Numbered(bucket, order, first, number)
