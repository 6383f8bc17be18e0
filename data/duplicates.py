"""Every accession of a sequence: the records that were dropped as its duplicates, in a side table of the corpus.

Per split, in corpus order:

    SPLIT.duplicates.npy        DUPLICATE [duplicates]: the sequence each belongs to, its source, its strand
    SPLIT.duplicate_names.npy   uint8 [bytes]: their accessions, end to end
    sources.npy                 uint16 [sequences]: source of the record that was kept, as lengths.npy is ordered

A split without duplicates has no table, and a corpus of one source no sources.npy. Training needs none of them, and
readers map them: looking a sequence up costs a binary search and no memory.
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError

DUPLICATE = np.dtype(
    [
        ("sequence", "<u8"),  # number in the split; ascending
        ("name_end", "<u8"),  # its accession is names[previous name_end : name_end]
        ("source", "<u2"),
        ("reversed", "u1"),  # 1: it is the reverse complement of the sequence that was kept
    ]
)
SOURCES = "sources.npy"
_HEADER_BYTES = 256


def table_name(split: str) -> str:
    return f"{split}.duplicates.npy"


def names_name(split: str) -> str:
    return f"{split}.duplicate_names.npy"


@dataclass(frozen=True)
class Record:
    """One record of the sources that has a sequence of the corpus; ``reversed``: as its reverse complement."""

    accession: str
    source: str
    reversed: bool


class NpyStream:
    """An npy file of one dimension written piece by piece, its length unknown until `close`. Empty, it is removed."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (closed by close)
        self._file.write(bytes(_HEADER_BYTES))

    def write(self, array: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(array, dtype=self.dtype).tobytes())
        self.length += len(array)

    def close(self) -> None:
        """Completes the header and makes the file durable."""
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        text = repr(described).encode()
        size = _HEADER_BYTES
        if len(text) + 11 > size:
            raise ValueError(f"the header of {self.dtype} needs more than {size} bytes")
        self._file.seek(0)
        header = b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text
        self._file.write(header.ljust(size - 1) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self.length:
            self.path.unlink()

    def abandon(self) -> None:
        self._file.close()


class DuplicateWriter:
    """Writes the side table of one split; `add` in corpus order."""

    def __init__(self, folder: Path, split: str) -> None:
        self._table = NpyStream(folder / table_name(split), DUPLICATE)
        self._names = NpyStream(folder / names_name(split), np.uint8)
        self.count = 0

    def add(
        self,
        sequence: npt.NDArray[np.int64],
        names: list[bytes],
        source: npt.NDArray[np.uint16],
        reverse: npt.NDArray[np.uint8],
    ) -> None:
        """[n] duplicates: number of the sequence in the split, accession, source and strand of each."""
        if not names:
            return
        rows = np.zeros(len(names), dtype=DUPLICATE)
        rows["sequence"], rows["source"], rows["reversed"] = sequence, source, reverse
        rows["name_end"] = self._names.length + np.cumsum([len(name) for name in names])
        self._table.write(rows)
        self._names.write(np.frombuffer(b"".join(names), dtype=np.uint8))
        self.count += len(names)

    def close(self) -> None:
        self._table.close()
        self._names.close()

    def abandon(self) -> None:
        self._table.abandon()
        self._names.abandon()


class DuplicateTable:
    """The side table of one split, read back. ``sidecars``: the files that the manifest lists.

    Raises DataError where one is missing, as in a copy made for training.
    """

    def __init__(self, folder: Path, split: str, sidecars: Container[str]) -> None:
        def table(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
            try:
                return load(folder / name) if name in sidecars else np.empty(0, dtype=dtype)
            except (OSError, ValueError) as error:
                raise DataError(f"{folder / name}: cannot be read ({error}); copy the whole corpus.") from error

        self.rows: npt.NDArray[np.void] = table(table_name(split), DUPLICATE)
        self._names: npt.NDArray[np.uint8] = table(names_name(split), np.uint8)
        self._sources: npt.NDArray[np.uint16] = table(SOURCES, np.uint16)

    def source(self, number: int) -> int:
        """The source of the record that was kept, by its number in the whole corpus (train, then validation)."""
        return int(self._sources[number]) if len(self._sources) else 0

    def of(self, sequence: int) -> list[tuple[bytes, int, bool]]:
        """(accession, source, reversed) of each duplicate of one sequence, in the order in which they were read."""
        low, high = np.searchsorted(self.rows["sequence"], [sequence, sequence + 1])
        start = int(self.rows["name_end"][low - 1]) if low else 0
        found = []
        for row in self.rows[low:high]:
            end = int(row["name_end"])
            found.append((self._names[start:end].tobytes(), int(row["source"]), bool(row["reversed"])))
            start = end
        return found


def load(path: Path) -> npt.NDArray[Any]:
    """A mapped npy file."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
