"""Shards of alignments: USTAR files with two members per alignment, reproducible to the byte.

    RF00001.json       family, name, clan, source, depth, columns, query, structure (over the columns, or null)
    RF00001.msa.npy    uint8 [depth, columns]  ASCII letters A C G U X -, row 0 the query, the others in random order

A shard closes before the alignment that would take it past its target size. The index has a row per alignment, and a
checksum of every page (4 KiB) of every shard: pages are what a memory map reads, so a reader that wants a few rows
checks just what it touches anyway. That costs 0.2 % of the size. Reading is `data.alignments`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.alignment_columns import character_counts
from data.alignment_scan import Entry
from data.shards import npy

PAGE = 4096
_TAR_BLOCK = 512
_ARCHIVE_END = 2 * _TAR_BLOCK
_RECORD = 10240  # tar pads a file to whole records

ALIGNMENT = np.dtype(
    [
        ("shard", "<u4"),  # number of the shard in the manifest's list
        ("sequences", "<u4"),  # samples in this row of the table: always 1. Staging counts samples by it
        ("depth", "<u4"),
        ("columns", "<u4"),
        ("type", "u1"),  # id into the manifest's type_names
        ("msa", "<u8"),  # offsets in the shard of the letters (a multiple of 64) and of the JSON text
        ("json", "<u8"),
        ("json_bytes", "<u4"),
    ]
)


@dataclass(frozen=True)
class AlignmentShard:
    """What the manifest says of a shard, plus its part of the index: ``table`` (`shard` not yet set) and ``pages``."""

    name: str
    split: str
    bytes: int
    sha256: str
    letters: npt.NDArray[np.int64]  # [256] how often each ASCII code occurs
    table: npt.NDArray[np.void]
    pages: npt.NDArray[np.uint64]

    def described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "split": self.split,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "alignments": len(self.table),
            "rows": int(self.table["depth"].sum(dtype=np.int64)),
            "letters": int(self.letters.sum()),
        }


class AlignmentShardWriter:
    """Writes one split. `add` in corpus order, then `close`, which returns the shards in order."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self._finished: list[AlignmentShard] = []
        self._open: _OpenShard | None = None

    def add(self, entry: Entry, described: bytes, letters: npt.NDArray[np.uint8]) -> None:
        content = npy(letters)
        size = 2 * _TAR_BLOCK + _padded(len(described)) + _padded(len(content))
        if self._open is not None and _padded(self._open.size + size + _ARCHIVE_END, _RECORD) > self.shard_bytes:
            self._finish()
        if self._open is None:
            self._open = _OpenShard(self.folder / f"{self.split}-{len(self._finished):06d}.tar", self.split)
        self._open.write(entry, described, content, letters)

    def close(self) -> list[AlignmentShard]:
        self._finish()
        return self._finished

    def _finish(self) -> None:
        if self._open is not None:
            self._finished.append(self._open.finish())
            self._open = None


class _OpenShard:
    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split, self.size = path, split, 0
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by finish)
        self._letters = np.zeros(256, dtype=np.int64)
        self._rows: list[tuple[int, ...]] = []

    def write(self, entry: Entry, described: bytes, content: bytes, letters: npt.NDArray[np.uint8]) -> None:
        described_at = self._member(f"{entry.family}.json", described)
        content_at = self._member(f"{entry.family}.msa.npy", content)
        letters_at = content_at + len(content) - letters.size
        where = (letters_at, described_at, len(described))
        self._rows.append((0, 1, entry.depth, entry.columns, entry.type, *where))
        self._letters += character_counts(letters)

    def _member(self, name: str, content: bytes) -> int:
        """Appends a member as webdataset's TarWriter would (mtime 0, user and group root); where its data starts."""
        header = tarfile.TarInfo(name)
        header.size, header.mtime, header.mode = len(content), 0, 0o444
        header.uname = header.gname = "root"
        self._file.write(header.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(content)
        self._file.write(bytes(_padded(len(content)) - len(content)))
        at = self.size + _TAR_BLOCK
        self.size += _TAR_BLOCK + _padded(len(content))
        return at

    def finish(self) -> AlignmentShard:
        """Closes, hashes (the bytes as they lie on disk) and syncs the file."""
        self._file.write(bytes(_padded(self.size + _ARCHIVE_END, _RECORD) - self.size))
        self._file.close()
        with open(self.path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                sha256, size, pages = hashlib.sha256(view).hexdigest(), len(view), page_hashes(view)
            os.fsync(file.fileno())
        table = np.array(self._rows, dtype=ALIGNMENT)
        return AlignmentShard(self.path.name, self.split, size, sha256, self._letters, table, pages)


def page_hashes(view: memoryview) -> npt.NDArray[np.uint64]:
    """xxh3_64 of each `PAGE` bytes of a shard, the last page being shorter."""
    digests = (xxhash.xxh3_64_intdigest(view[at : at + PAGE]) for at in range(0, len(view), PAGE))
    return np.fromiter(digests, dtype=np.uint64, count=page_count(len(view)))


def page_count(size: int) -> int:
    return -(-size // PAGE)


def alignment_index(shards: Sequence[AlignmentShard]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of index.npz: one per field of ALIGNMENT [alignments of all shards], and ``pages`` of all shards."""
    tables = []
    for number, shard in enumerate(shards):
        table = shard.table.copy()
        table["shard"] = number
        tables.append(table)
    joined = np.concatenate(tables)
    arrays = {name: np.ascontiguousarray(joined[name]) for name in ALIGNMENT.names or ()}
    return {**arrays, "pages": np.concatenate([shard.pages for shard in shards])}


def _padded(size: int, unit: int = _TAR_BLOCK) -> int:
    return -(-size // unit) * unit
