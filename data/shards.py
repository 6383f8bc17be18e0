"""Writing shards: sequences in corpus order -> USTAR files of npy blocks, reproducible to the byte.

A block holds at most 1024 sequences and at most 1 MiB of letters (or one longer sequence), and closes at the end of a
cluster where there is one within that; a shard closes before the block that would take it past its target size.
Members of a block, all plain npy:

    000123-00007.id.npy     S [n]      accessions
    000123-00007.off.npy    uint32 [n + 1]   where each sequence starts in tok
    000123-00007.tok.npy    uint8 [letters]  ASCII
    000123-00007.type.npy   uint8 [n]  ids into the manifest's type_names
    000123-00007.cluster.npy  bool [n]  whether a sequence starts a cluster; only in corpora with clusters

Every byte of a shard belongs to the span of exactly one block (the first starts at 0, the last ends with the file), and
the span's xxh3_64 goes into the index: a reader can check a block when it first touches it. Reading is `data.index`.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

BLOCK_SEQUENCES = 1024
BLOCK_LETTERS = 1 << 20
_TAR_BLOCK = 512
_ARCHIVE_END = 2 * _TAR_BLOCK
_RECORD = 10240  # tar pads a file to whole records

BLOCK = np.dtype(
    [
        ("shard", "<u4"),  # number of the shard in the manifest's list
        ("sequences", "<u4"),
        ("tok", "<u8"),  # offsets in the shard of each member's array data; all are multiples of 64
        ("off", "<u8"),
        ("id", "<u8"),
        ("id_width", "<u4"),  # bytes per accession
        ("type", "<u8"),
        ("span_end", "<u8"),  # the span starts where the previous block's ends, or at 0
        ("xxh3", "<u8"),  # xxh3_64 of the span
    ]
)


def block_dtype(more: Sequence[str] = ()) -> np.dtype[Any]:
    """BLOCK with the offsets of further members, which corpora of other kinds have in every block."""
    return np.dtype([*BLOCK.descr, *((name, "<u8") for name in more)])


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a shard, plus its block table (BLOCK [blocks], `shard` not yet set)."""

    name: str
    split: str
    bytes: int
    sha256: str
    sequences: int
    nucleotides: int
    letters: npt.NDArray[np.int64]  # [256] how often each ASCII code occurs
    blocks: npt.NDArray[np.void]

    def described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "split": self.split,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "sequences": self.sequences,
            "nucleotides": self.nucleotides,
            "blocks": len(self.blocks),
        }


class ShardWriter:
    """Writes one split. `add` in corpus order, then `close`, which returns the shards in order.

    How sequences are divided over calls of `add` changes no byte. Hashing and syncing a finished shard happens in a
    thread while the next one is written.

    Another kind of corpus has more members per block: `more` names them and `more_members` makes them (npy bytes by
    member name, of the sequences [start, stop) that wait), and `forget` drops what was written.
    """

    more: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.folder, self.split, self.shard_bytes = folder, split, shard_bytes
        self._letters: list[bytes] = []
        self._names: list[bytes] = []
        self._types = np.empty(0, dtype=np.uint8)
        self._starts = np.empty(0, dtype=bool)
        self._clustered = False
        self._tar: _OpenShard | None = None
        self._finished: list[Future[ShardRecord]] = []
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="shard-finisher")

    def add(
        self,
        letters: Sequence[bytes],
        names: Sequence[bytes],
        types: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.bool_] | None = None,
        last: bool = False,
    ) -> None:
        """Letters, accession and type id of each sequence, and whether it starts a cluster (None: there are none).

        What does not fill a block waits for more.
        """
        self._letters += letters
        self._names += names
        self._clustered |= starts is not None
        self._types = np.concatenate([self._types, types])
        self._starts = np.concatenate([self._starts, np.ones(len(letters), dtype=bool) if starts is None else starts])
        ends = np.cumsum(np.fromiter(map(len, self._letters), dtype=np.int64, count=len(self._letters)))
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            full = int(np.searchsorted(ends, before + BLOCK_LETTERS, side="right"))
            stop = max(start + 1, min(start + BLOCK_SEQUENCES, full))
            if stop >= len(ends):
                if not last:
                    break  # whether a cluster ends here is known with the next sequence
                stop = len(ends)
            else:
                boundaries = np.flatnonzero(self._starts[start + 1 : stop + 1])
                stop = start + 1 + int(boundaries[-1]) if boundaries.size else stop
            self._write_block(start, stop, ends[start:stop] - before)
            start = stop
        self._letters, self._names = self._letters[start:], self._names[start:]
        self._types, self._starts = self._types[start:], self._starts[start:]
        self.forget(start)

    def more_members(self, start: int, stop: int) -> dict[str, bytes]:
        return {}

    def forget(self, stop: int) -> None:
        """The sequences before ``stop`` were written."""

    def _write_block(self, start: int, stop: int, ends: npt.NDArray[np.int64]) -> None:
        tok = np.frombuffer(b"".join(self._letters[start:stop]), dtype=np.uint8)
        members = {
            "id.npy": npy(np.array(self._names[start:stop], dtype="S")),
            "off.npy": npy(np.concatenate([[0], ends]).astype("<u4")),
            "tok.npy": npy(tok),
            "type.npy": npy(self._types[start:stop]),
        }
        if self._clustered:
            members["cluster.npy"] = npy(self._starts[start:stop])
        members |= self.more_members(start, stop)
        size = sum(_TAR_BLOCK + _padded(len(content)) for content in members.values())
        if self._tar is not None and _padded(self._tar.size + size + _ARCHIVE_END, _RECORD) > self.shard_bytes:
            self._finish_shard()
        if self._tar is None:
            self._tar = _OpenShard(self.folder, self.split, len(self._finished), self.more)
        self._tar.write(members, stop - start, len(tok))

    def _finish_shard(self) -> None:
        if self._tar is not None:
            self._finished.append(self._finisher.submit(self._tar.finish))
            self._tar = None
        for done in self._finished:
            if done.done():
                done.result()  # an error, e.g. a full disk, surfaces here and not at the very end

    def close(self) -> list[ShardRecord]:
        self.add([], [], np.empty(0, dtype=np.uint8), last=True)
        self._finish_shard()
        try:
            return [shard.result() for shard in self._finished]
        finally:
            self._finisher.shutdown()

    def abandon(self) -> None:
        """Ends the thread after a failure; the files are the caller's to remove."""
        self._finisher.shutdown(cancel_futures=True)


class _OpenShard:
    def __init__(self, folder: Path, split: str, number: int, more: tuple[str, ...] = ()) -> None:
        self.number, self.split, self.more = number, split, more
        self.path = folder / f"{split}-{number:06d}.tar"
        self._file = open(self.path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by finish)
        self.size = 0  # bytes of all members so far
        self.sequences = self.nucleotides = 0
        self._tok: list[slice] = []  # where the letters of each block lie
        self._blocks: list[tuple[int, ...]] = []

    def write(self, members: dict[str, bytes], sequences: int, nucleotides: int) -> None:
        data_at = {}
        for name, content in sorted(members.items()):
            data_at[name] = self.size + _TAR_BLOCK + npy_header_bytes(content)
            self.size += _TAR_BLOCK + _padded(len(content))
            self._file.write(_tar_header(f"{self.number:06d}-{len(self._blocks):05d}.{name}", len(content)))
            self._file.write(content)
            self._file.write(bytes(_padded(len(content)) - len(content)))
        width = (len(members["id.npy"]) - npy_header_bytes(members["id.npy"])) // sequences
        row = (data_at["tok.npy"], data_at["off.npy"], data_at["id.npy"], width, data_at["type.npy"], self.size)
        self._blocks.append((0, sequences, *row, 0, *(data_at[f"{name}.npy"] for name in self.more)))
        self.sequences += sequences
        self.nucleotides += nucleotides
        self._tok.append(slice(data_at["tok.npy"], data_at["tok.npy"] + nucleotides))

    def finish(self) -> ShardRecord:
        """Closes, hashes, counts (the bytes as they lie on disk) and syncs the file."""
        self._file.write(bytes(_padded(self.size + _ARCHIVE_END, _RECORD) - self.size))
        self._file.close()
        blocks = np.array(self._blocks, dtype=block_dtype(self.more))
        with open(self.path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                blocks["span_end"][-1] = len(view)
                blocks["xxh3"] = span_hashes(view, blocks["span_end"])
                sha256, size = hashlib.sha256(view).hexdigest(), len(view)
                letters = sum((_count(view[tok]) for tok in self._tok), np.zeros(256, dtype=np.int64))
            os.fsync(file.fileno())
        counts = (self.sequences, self.nucleotides, letters)
        return ShardRecord(self.path.name, self.split, size, sha256, *counts, blocks)


def _tar_header(name: str, size: int) -> bytes:
    """What webdataset's TarWriter writes (mtime 0, user and group root), without its import of torch (1 s, 200 MB)."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, 0, 0o444
    member.uname = member.gname = "root"
    return member.tobuf(tarfile.USTAR_FORMAT)


def block_table(shards: Sequence[ShardRecord]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of index.npz, one per field of BLOCK, each [blocks of all shards in order]."""
    tables = []
    for number, shard in enumerate(shards):
        table = shard.blocks.copy()
        table["shard"] = number
        tables.append(table)
    joined = np.concatenate(tables)
    return {name: np.ascontiguousarray(joined[name]) for name in joined.dtype.names or ()}


def letter_counts(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """[256] how often each ASCII code occurs: four comparisons for ACGU, a histogram for the few others."""
    counts = np.zeros(256, dtype=np.int64)
    plain = np.zeros(len(letters), dtype=bool)
    for code in b"ACGU":
        found = letters == code
        counts[code] = np.count_nonzero(found)
        plain |= found
    if counts.sum() < len(letters):
        counts += np.bincount(letters[~plain], minlength=256)
    return counts


def _count(view: memoryview) -> npt.NDArray[np.int64]:
    """`letter_counts` of a part of a mapped file, of which nothing must be left when the file is unmapped."""
    return letter_counts(np.frombuffer(view, dtype=np.uint8))


def span_hashes(view: memoryview, span_ends: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """xxh3_64 of each span of a shard."""
    ends = [int(end) for end in span_ends]
    starts = [0, *ends[:-1]]
    return np.array([xxhash.xxh3_64_intdigest(view[a:b]) for a, b in zip(starts, ends, strict=True)], dtype=np.uint64)


def npy(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of an npy file, format 1.0."""
    if array.dtype.hasobject:
        raise ValueError("an npy file without pickle holds no Python objects")
    array = np.ascontiguousarray(array)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    return stream.getvalue() + array.tobytes()


def npy_header_bytes(content: bytes) -> int:
    """Bytes before the array data of an npy 1.0 file: a multiple of 64."""
    return 10 + int.from_bytes(content[8:10], "little")


def _padded(size: int, unit: int = _TAR_BLOCK) -> int:
    return -(-size // unit) * unit
