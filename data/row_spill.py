"""Fixed-size rows sorted into files by a 64-bit key: joins and groupings of any size in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.randomness import U64, mix

_PART_ROWS = 1 << 21


class RowSpill:
    """Rows of ``dtype``, about ``expected`` of them. Equal keys go to the same part, and parts are read in order."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], expected: int) -> None:
        self.folder, self.dtype = folder, dtype
        self.count = 1 << max(0, -(-expected // _PART_ROWS) - 1).bit_length()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def add(self, keys: U64, rows: npt.NDArray[np.void]) -> None:
        part = (mix(np.ascontiguousarray(keys)) % np.uint64(self.count)).astype(np.uint16)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(self.count + 1))
        rows = rows[order]
        for p in np.flatnonzero(np.diff(bounds)).tolist():
            with open(self.folder / str(p), "ab") as file:
                file.write(rows[bounds[p] : bounds[p + 1]].tobytes())

    def part(self, number: int) -> npt.NDArray[np.void]:
        path = self.folder / str(number)
        return np.fromfile(path, dtype=self.dtype) if path.exists() else np.empty(0, dtype=self.dtype)

    def parts(self) -> Iterator[npt.NDArray[np.void]]:
        """Every part that has rows."""
        for number in range(self.count):
            rows = self.part(number)
            if len(rows):
                yield rows
