"""Shards mapped into memory and checked page by page, each page when it is first touched.

A page is 4 KiB, what the machine reads anyway for one byte of a mapped file. So a reader of a few rows of a deep
alignment reads and checks those rows' pages and no others, and still no byte is handed out unchecked. What is checked
once is not checked again, unless the file was written to since (`data.mapped_file`). One thread may read at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.alignment_shards import PAGE, page_count
from data.errors import DataError
from data.mapped_file import MappedFile, map_file

_DENSE = 4  # where a quarter of a stretch of pages is wanted, the whole stretch is fetched ahead
_AGAIN = "copy the corpus again or prepare it again"

U8 = npt.NDArray[np.uint8]


class MappedPages:
    """The shards of a corpus. ``shards`` as the manifest lists them; ``pages``: xxh3_64 of all their pages in order.

    ``locate`` gives the path of a shard once it is there (`data.staging`); shards are then mapped when first read.
    """

    def __init__(
        self,
        path: Path,
        shards: Sequence[dict[str, Any]],
        pages: npt.NDArray[np.uint64],
        locate: Callable[[str], Path] | None,
    ) -> None:
        self.path = path
        self._names = [shard["name"] for shard in shards]
        self._sizes = [int(shard["bytes"]) for shard in shards]
        counts = [page_count(size) for size in self._sizes]
        if sum(counts) != len(pages):
            raise DataError(
                f"{path}: the index has checksums of {len(pages)} pages, the shards {sum(counts)}; {_AGAIN}."
            )
        self._hashes = np.split(pages, np.cumsum(counts)[:-1])
        self._locate = locate
        self._bytes: list[U8 | None] = [None] * len(self._names)
        self._maps: list[mmap.mmap | None] = [None] * len(self._names)
        self._checked = [np.zeros(0, dtype=bool)] * len(self._names)
        self._files: list[MappedFile | None] = [None] * len(self._names)
        self._closed = False

    def map_all(self, shards: Sequence[int]) -> None:
        """Now, so that replacing the corpus while it is read cannot mix two."""
        for shard in shards:
            self._map(shard, self.path / self._names[shard])

    def require(self, shards: Sequence[int]) -> None:
        """Maps shards that are not mapped yet, waiting for them; lets go of those that were evicted meanwhile."""
        if self._closed:
            raise DataError(f"{self.path}: this reader was closed; open the corpus again.")
        missing = [shard for shard in shards if self._bytes[shard] is None]
        for shard in missing:
            assert self._locate is not None
            self._map(shard, self._locate(self._names[shard]))
        for shard, name in enumerate(self._names) if missing else ():
            if self._bytes[shard] is not None and shard not in shards and not (self.path / name).exists():
                self._bytes[shard] = self._maps[shard] = self._files[shard] = None

    def span(self, shard: int, start: int, stop: int) -> U8:
        """Bytes [start, stop) of a shard, a read-only view. Raises DataError where a checksum does not match."""
        self._check(shard, np.arange(start // PAGE, page_count(stop)))
        return self._mapped(shard)[start:stop]

    def rows(self, shard: int, start: int, width: int, chosen: npt.NDArray[np.int64]) -> U8:
        """[n, width]: rows ``chosen`` of a table of ``width`` bytes per row that starts at ``start``, as a copy."""
        first = (start + chosen * width) // PAGE
        last = (start + chosen * width + width - 1) // PAGE
        touched = [np.arange(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        self._check(shard, np.unique(np.concatenate(touched)) if touched else np.empty(0, dtype=np.int64))
        stop = start + (int(chosen.max(initial=-1)) + 1) * width
        copy: U8 = self._mapped(shard)[start:stop].reshape(-1, width)[chosen]
        return copy

    def pages_checked(self, shard: int) -> int:
        """How many pages of a shard have been read so far."""
        return int(np.count_nonzero(self._checked[shard]))

    def close(self) -> None:
        """Lets go of the mapped shards; views handed out keep theirs alive as long as they live."""
        self._bytes, self._maps = [None] * len(self._names), [None] * len(self._names)
        self._files = [None] * len(self._names)
        self._closed = True

    def _mapped(self, shard: int) -> U8:
        self.require([shard])
        found = self._bytes[shard]
        assert found is not None
        return found

    def _check(self, shard: int, pages: npt.NDArray[np.int64]) -> None:
        mapped = self._mapped(shard).data
        checked, file = self._checked[shard], self._files[shard]
        if file is not None and file.changed():
            checked[:] = False
        fresh = pages[~checked[pages]]
        if fresh.size > 1 and fresh.size * _DENSE >= fresh[-1] - fresh[0] + 1:
            self._announce(shard, int(fresh[0]) * PAGE, (int(fresh[-1]) + 1) * PAGE)
        for page in fresh.tolist():
            if xxhash.xxh3_64_intdigest(mapped[page * PAGE : (page + 1) * PAGE]) != int(self._hashes[shard][page]):
                raise DataError(
                    f"{self.path / self._names[shard]}: the {PAGE} bytes from {page * PAGE} on do not match their "
                    f"checksum, the file was damaged or changed; {_AGAIN} (launch/prepare.py verify {self.path} checks "
                    "the rest)."
                )
            checked[page] = True

    def _announce(self, shard: int, start: int, stop: int) -> None:
        """Has these bytes fetched in one go: on a network file system a page at a time would be slow."""
        mapped = self._maps[shard]
        if mapped is not None and hasattr(mapped, "madvise"):
            start -= start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, min(stop, len(mapped)) - start)

    def _map(self, shard: int, path: Path) -> None:
        mapped = map_file(path)
        if len(mapped) != self._sizes[shard]:
            raise DataError(f"{path}: has {len(mapped)} bytes, the manifest says {self._sizes[shard]}; {_AGAIN}.")
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_RANDOM)  # no reading ahead of rows that nobody asked for
        self._bytes[shard], self._maps[shard] = np.frombuffer(mapped, dtype=np.uint8), mapped
        self._checked[shard] = np.zeros(page_count(len(mapped)), dtype=bool)
        self._files[shard] = MappedFile(path, mapped)
