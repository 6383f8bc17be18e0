"""Hash-range buckets on disk: where a corpus is held between reading it and writing it in shuffled order.

A record goes to the bucket given by the top bits of its key. Buckets cover disjoint key ranges, so sorting each one
and reading them in turn is sorting the whole corpus, in memory of one bucket. How many buckets there are, and how many
processes write them, changes the memory needed and nothing else. A bucket is three files per writer: fixed-size rows,
letters, accessions.
"""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.randomness import U64, key, mix

ROW = np.dtype(
    [
        ("hi", "<u8"),  # 128-bit hash of the letters (of the smaller strand, where reverse complements are merged)
        ("lo", "<u8"),
        ("at", "<u8"),  # when it was read: `reading_place`; of duplicates, the smallest stays
        ("length", "<u4"),  # nucleotides, and bytes in the file of letters
        ("source", "<u2"),
        ("family", "<u2"),  # number of the Rfam family, 0 for none
        ("name", "u1"),  # bytes of the accession
        ("type", "u1"),
        ("reversed", "u1"),  # 1: the hash is that of the reverse complement
    ]
)
# A row that knows its cluster; `data.regroup` makes them. A duplicate's letters are left out, so its length is 0.
GROUPED_ROW = np.dtype(
    [
        *ROW.descr,
        ("cluster_hi", "<u8"),  # hash of the first member of the cluster in hash order
        ("cluster", "<u4"),  # number of that member in hash order
        ("held_out", "u1"),  # 1: in the validation split
    ]
)
_FLUSH_BYTES = 64 << 20
_RECORD_BITS = 40  # of a reading place; leaves 2**24 files


def reading_place(file: int, record: int) -> int:
    """Orders records as they are read: by file (counted over all sources) and by number in it, from 0."""
    return (file << _RECORD_BITS) + record


def order_keys(hi: npt.NDArray[np.uint64], seed: int) -> U64:
    """The place of a sequence in the corpus: sorted by this key. A function of its letters and the seed alone."""
    return mix(hi ^ np.uint64(key(seed, "order")))


def split_keys(lo: npt.NDArray[np.uint64], seed: int) -> U64:
    """The sequences with the smallest of these keys are the validation split."""
    return mix(lo ^ np.uint64(key(seed, "split")))


class BucketWriter:
    """Appends records to ``count`` (a power of two) buckets in ``folder``, keeping at most `_FLUSH_BYTES` in memory.

    Several writers may fill the same buckets under different names ``who``.
    """

    def __init__(self, folder: Path, count: int, who: int = 0) -> None:
        self.folder, self.count, self.who = folder, count, who
        self._shift = np.uint64(64 - (count.bit_length() - 1))
        self._keys: list[U64] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._letters: list[bytes] = []
        self._names: list[bytes] = []
        self._bytes = 0

    def add(self, keys: U64, rows: npt.NDArray[np.void], letters: list[bytes], names: list[bytes]) -> None:
        """Rows [n] with the key that chooses the bucket, the letters and the accession of each."""
        self._keys.append(keys)
        self._rows.append(rows)
        self._letters += letters
        self._names += names
        self._bytes += int(rows["length"].sum()) + 150 * len(rows)  # 150: what two bytes objects and a row weigh
        if self._bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        # A shift by 64 is undefined, hence the case of a single bucket.
        bucket = (keys >> self._shift).astype(np.uint16) if self.count > 1 else np.zeros(len(rows), dtype=np.uint16)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1))
        picks, rows = order.tolist(), rows[order]
        for b in np.flatnonzero(np.diff(bounds)).tolist():
            start, stop = int(bounds[b]), int(bounds[b + 1])
            for suffix, content in (
                ("rows", rows[start:stop].tobytes()),
                ("letters", b"".join([self._letters[i] for i in picks[start:stop]])),
                ("names", b"".join([self._names[i] for i in picks[start:stop]])),
            ):
                with open(self.folder / f"{b:05d}.{self.who}.{suffix}", "ab", buffering=0) as file:
                    file.write(content)
        self._keys, self._rows, self._letters, self._names, self._bytes = [], [], [], [], 0


@dataclass(frozen=True)
class Buckets:
    """``count`` buckets in ``folder``, filled by ``writers`` writers with rows of ``dtype``."""

    folder: Path
    count: int
    writers: int = 1
    dtype: np.dtype[Any] = ROW

    def read(self, number: int) -> Bucket:
        names = (self.folder / f"{number:05d}.{who}.rows" for who in range(self.writers))
        return Bucket([path for path in names if path.exists()], self.dtype)


class Bucket:
    """One bucket, read back: ``rows`` [n] of all its writers, in no particular order, with letters and accessions."""

    def __init__(self, parts: list[Path], dtype: np.dtype[Any]) -> None:
        self._parts = parts
        found = [np.fromfile(part, dtype=dtype) for part in parts]
        self.rows = np.concatenate(found) if found else np.empty(0, dtype=dtype)
        self._bounds = np.cumsum([0, *(len(rows) for rows in found)], dtype=np.int64)
        self._starts: dict[str, npt.NDArray[np.int64]] = {}

    def letters(self, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        """The letters of the chosen rows."""
        return self._slices("letters", "length", chosen)

    def names(self, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        """The accessions of the chosen rows."""
        return self._slices("names", "name", chosen)

    def _slices(self, suffix: str, size: str, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        if suffix not in self._starts:
            starts = np.cumsum(self.rows[size], dtype=np.int64) - self.rows[size]
            for a, b in itertools.pairwise(self._bounds.tolist()):
                starts[a:b] -= starts[a] if b > a else 0
            self._starts[suffix] = starts
        start = self._starts[suffix][chosen]
        stop = start + self.rows[size][chosen]
        part = np.searchsorted(self._bounds, chosen, side="right") - 1
        mapped: list[Any] = []
        try:
            # Mapped, not read: of a sequence that occurs a million times, one copy is touched. Slices are bytes and
            # not views, which the garbage collector would walk through again and again.
            for rows in self._parts:
                path = rows.with_suffix("." + suffix)
                with open(path, "rb") as file:
                    empty = not path.stat().st_size  # cannot be mapped; all its slices are empty
                    mapped.append(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            places = zip(part.tolist(), start.tolist(), stop.tolist(), strict=True)
            return [mapped[p][a:b] for p, a, b in places]
        finally:
            for view in mapped:
                if isinstance(view, mmap.mmap):
                    view.close()


def first_of_equals(hi: npt.NDArray[np.uint64], lo: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Of hashes sorted so that equal ones are neighbours: which are the first of their kind."""
    first = np.ones(len(hi), dtype=bool)
    first[1:] = (hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1])
    return first


def sorted_by(key: npt.NDArray[np.uint64], *then: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The order that sorts by ``key``, then by each of ``then``, which are looked at only where keys are equal."""
    order = np.argsort(key)
    ordered = key[order]
    if (ordered[1:] != ordered[:-1]).all():
        return order
    return np.lexsort((*then[::-1], key))


def bucket_count(input_bytes: int, bucket_bytes: int = 64 << 20, limit: int = 4096) -> int:
    """A power of two such that a bucket of ``input_bytes`` of text stays near ``bucket_bytes``."""
    wanted = max(1, -(-input_bytes // bucket_bytes))
    return min(limit, 1 << (wanted - 1).bit_length())
