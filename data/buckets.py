"""Hash-range buckets on disk: where a corpus is held between reading it and writing it in shuffled order.

A record goes to the bucket given by the top bits of its order key. Buckets cover disjoint key ranges, so sorting each
one and reading them in turn is sorting the whole corpus, in memory of one bucket. How many buckets there are changes
the memory needed and nothing else. A bucket is three files: fixed-size rows, letters, accessions.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.randomness import U64, key, mix

ROW = np.dtype(
    [
        ("hi", "<u8"),  # 128-bit hash of the letters
        ("lo", "<u8"),
        ("length", "<u4"),  # nucleotides
        ("name", "u1"),  # bytes of the accession
        ("source", "<u2"),
        ("type", "u1"),
    ]
)
_FLUSH_BYTES = 64 << 20


def order_keys(hi: npt.NDArray[np.uint64], seed: int) -> U64:
    """The place of a sequence in the corpus: sorted by this key. A function of its letters and the seed alone."""
    return mix(hi ^ np.uint64(key(seed, "order")))


def split_keys(lo: npt.NDArray[np.uint64], seed: int) -> U64:
    """The sequences with the smallest of these keys are the validation split."""
    return mix(lo ^ np.uint64(key(seed, "split")))


class BucketWriter:
    """Appends records to ``count`` (a power of two) buckets in ``folder``, keeping at most `_FLUSH_BYTES` in memory."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.folder, self.count, self.seed = folder, count, seed
        self._shift = np.uint64(64 - (count.bit_length() - 1))
        self._rows: list[npt.NDArray[np.void]] = []
        self._letters: list[bytes] = []
        self._names: list[bytes] = []
        self._bytes = 0

    def add(self, rows: npt.NDArray[np.void], letters: list[bytes], names: list[bytes]) -> None:
        """``rows`` ROW [n] with the letters and accession of each, in reading order."""
        self._rows.append(rows)
        self._letters += letters
        self._names += names
        self._bytes += int(rows["length"].sum()) + 100 * len(rows)  # 100: what a Python bytes object and a row weigh
        if self._bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        keys = order_keys(rows["hi"], self.seed)
        # A shift by 64 is undefined, hence the case of a single bucket.
        bucket = (keys >> self._shift).astype(np.int64) if self.count > 1 else np.zeros(len(rows), dtype=np.int64)
        order = np.argsort(bucket, kind="stable")  # stable: reading order inside a bucket decides which duplicate stays
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for b in range(self.count):
            chosen = order[bounds[b] : bounds[b + 1]]
            if not chosen.size:
                continue
            picks = chosen.tolist()
            for suffix, content in (
                ("rows", rows[chosen].tobytes()),
                ("letters", b"".join([self._letters[i] for i in picks])),
                ("names", b"".join([self._names[i] for i in picks])),
            ):
                with open(_part(self.folder, b, suffix), "ab") as file:
                    file.write(content)
        self._rows, self._letters, self._names, self._bytes = [], [], [], 0

    def close(self) -> None:
        """Flushes and makes every bucket durable."""
        self.flush()
        for path in sorted(self.folder.iterdir()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())


class Bucket:
    """One bucket, read back. ``rows`` ROW [n]; ``order`` int64: its distinct records in corpus order."""

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        self.folder, self.number = folder, number
        path = _part(folder, number, "rows")
        self.rows = np.fromfile(path, dtype=ROW) if path.exists() else np.empty(0, dtype=ROW)
        self.order = distinct_in_order(self.rows, seed)

    def letters(self, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        """The letters of the chosen rows."""
        return self._slices("letters", self.rows["length"], chosen)

    def names(self, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        """The accessions of the chosen rows."""
        return self._slices("names", self.rows["name"], chosen)

    def _slices(self, suffix: str, sizes: npt.NDArray[Any], chosen: npt.NDArray[np.int64]) -> list[bytes]:
        path = _part(self.folder, self.number, suffix)
        if not path.stat().st_size:  # an empty file cannot be mapped; all its slices are empty
            return [b""] * len(chosen)
        stop = np.cumsum(sizes, dtype=np.int64)[chosen]
        start = stop - sizes[chosen]
        # Mapped, not read: of a sequence that occurs a million times, one copy is touched. Slices are bytes and not
        # views, which the garbage collector would walk through again and again.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return [mapped[a:b] for a, b in zip(start.tolist(), stop.tolist(), strict=True)]


def distinct_in_order(rows: npt.NDArray[np.void], seed: int) -> npt.NDArray[np.int64]:
    """Row numbers of the first record of every distinct hash, sorted by order key (by `lo` if two keys are equal)."""
    keys = order_keys(rows["hi"], seed)
    order = np.lexsort((rows["lo"], keys))  # stable, so the first read comes first among duplicates
    hi, lo = rows["hi"][order], rows["lo"][order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1])
    return order[first]


def bucket_count(input_bytes: int, bucket_bytes: int = 64 << 20, limit: int = 4096) -> int:
    """A power of two such that a bucket of ``input_bytes`` of text stays near ``bucket_bytes``."""
    wanted = max(1, -(-input_bytes // bucket_bytes))
    return min(limit, 1 << (wanted - 1).bit_length())


def _part(folder: Path, bucket: int, suffix: str) -> Path:
    return folder / f"{bucket:05d}.{suffix}"
