"""Reading a corpus of alignments: any alignment by number, any rows of it, from the mapped shards.

`AlignmentCorpus` is one split of a prepared directory and has what the order, the layout and validation ask of a corpus
(`data.index.Corpus`); in place of letters it gives `Alignment`s, which read their rows when asked for them, those rows
only. Opening checks the manifest, the index and the sizes of all shards; the pages of a shard are checked when they are
first touched (`data.mapped_pages`), so a damaged shard is an error and never a wrong letter.

Alignments are numbered 0 .. count - 1 within the split, in the corpus's own order, which was shuffled when it was
built. Rows 1 and up of an alignment were shuffled too. One thread may read at a time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import dot_bracket
from data.alignment_config import KIND
from data.alignment_shards import ALIGNMENT
from data.errors import DataError
from data.index import check_files
from data.manifest import INDEX, SPLITS, read_manifest
from data.mapped_pages import MappedPages

Ids = npt.NDArray[np.integer] | list[int]
_AGAIN = "copy the corpus again or prepare it again"


@dataclass(frozen=True, eq=False)
class Alignment:
    """One alignment: ``depth`` rows of ``columns`` letters; row 0 is the query. Reads nothing until asked."""

    id: int
    depth: int
    columns: int
    _shard: int
    _msa: int
    _json: tuple[int, int]
    _pages: MappedPages

    def rows(self, indices: Ids) -> npt.NDArray[np.uint8]:
        """uint8 [n, columns] ASCII letters (A C G U X -) of these rows, in this order, as a fresh array.

        Reads those rows only. Raises DataError for a row that there is not, or bytes that fail their checksum.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.depth):
            bad = chosen[(chosen < 0) | (chosen >= self.depth)][0]
            raise DataError(f"{self._pages.path}: row {bad} is not in the alignment {self.id}, which has {self.depth}.")
        return self._pages.rows(self._shard, self._msa, self.columns, chosen)

    @cached_property
    def described(self) -> dict[str, Any]:
        """The JSON member: family, name, clan, source, depth, columns, query (name of row 0), structure."""
        start, size = self._json
        content: dict[str, Any] = json.loads(self._pages.span(self._shard, start, start + size).tobytes())
        return content

    @property
    def family(self) -> str:
        return str(self.described["family"])

    @property
    def structure(self) -> str | None:
        """Consensus structure over the columns, in brackets and pseudoknot letters, `.` elsewhere; None if unknown."""
        structure: str | None = self.described["structure"]
        return structure

    @property
    def partners(self) -> npt.NDArray[np.int64] | None:
        """int64 [columns]: the column that each one pairs with, or -1; None without a structure."""
        return None if self.structure is None else dot_bracket.partners(self.structure)


class AlignmentCorpus:
    """One split of a directory of alignments.

    ``count`` alignments; ``lengths`` uint32 [count] columns; ``depths`` uint32 [count] rows; ``block_counts`` int64
    [count] of ones, since every alignment can be read alone; ``clusters`` None; ``type_names`` RNA type of each type
    id; ``fingerprint`` of the whole corpus; ``manifest`` as read.
    """

    path: Path
    manifest: dict[str, Any]
    fingerprint: str
    split: str
    count: int
    lengths: npt.NDArray[np.uint32]
    depths: npt.NDArray[np.uint32]
    block_counts: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.integer] | None
    type_names: list[str]

    @classmethod
    def open(
        cls, path: str | Path, split: str = "train", shards: Callable[[str], Path] | None = None
    ) -> AlignmentCorpus:
        """Raises DataError if the directory is no intact corpus of alignments (see the module) or has no such split.

        ``shards`` gives the path of a shard once it is there (`data.staging`); shards are then mapped when first read.
        """
        return cls(Path(path), split, shards)

    def __init__(self, path: Path, split: str, shards: Callable[[str], Path] | None = None) -> None:
        if split not in SPLITS:
            raise DataError(f"{path}: there is no split {split!r}; splits are {' and '.join(SPLITS)}.")
        self.path, self.split = path, split
        self.manifest = read_manifest(path)
        require_alignments(path, self.manifest)
        self.fingerprint = self.manifest["fingerprint"]
        self.type_names = self.manifest["type_names"]
        self.clusters = None
        check_files(path, self.manifest, with_shards=shards is None)

        table, pages = read_alignment_index(path)
        own = np.array([shard["split"] == split for shard in self.manifest["shards"]], dtype=bool)
        self._table = table[own[table["shard"]]]
        self.count = len(self._table)
        self.lengths = np.ascontiguousarray(self._table["columns"])
        self.depths = np.ascontiguousarray(self._table["depth"])
        self.block_counts = np.ones(self.count, dtype=np.int64)
        if self.count != self.manifest["splits"][split]["alignments"]:
            raise DataError(f"{path}: manifest and index count different numbers of alignments; {_AGAIN}.")
        if not self.count:
            raise DataError(f"{path}: the {split} split is empty; prepare the corpus with validation_fraction above 0.")
        self.pages = MappedPages(path, self.manifest["shards"], pages, shards)
        if shards is None:
            self.pages.map_all(np.flatnonzero(own).tolist())

    def alignments(self, ids: Ids) -> list[Alignment]:
        """The alignments of these numbers. Raises DataError for one outside the split.

        Where shards arrive while training runs, this waits until those of all of them are there.
        """
        rows = self._table[self._own(ids)]
        self.pages.require(np.unique(rows["shard"]).tolist())
        return [
            Alignment(i, int(r["depth"]), int(r["columns"]), int(r["shard"]), int(r["msa"]), _span(r), self.pages)
            for i, r in zip(np.asarray(ids).tolist(), rows, strict=True)
        ]

    def types(self, ids: Ids) -> npt.NDArray[np.uint8]:
        """RNA type id of each alignment's family, uint8 [n]; `type_names` names them."""
        found: npt.NDArray[np.uint8] = self._table["type"][self._own(ids)]
        return found

    def accessions(self, ids: Ids) -> list[str]:
        """The family of each alignment."""
        return [alignment.family for alignment in self.alignments(ids)]

    def close(self) -> None:
        """Lets go of the mapped shards."""
        self.pages.close()

    def _own(self, ids: Ids) -> npt.NDArray[np.int64]:
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
            bad = wanted[(wanted < 0) | (wanted >= self.count)][0]
            raise DataError(f"{self.path}: alignment {bad} is not in the {self.split} split, which has {self.count}.")
        return wanted


def _span(row: np.void) -> tuple[int, int]:
    return int(row["json"]), int(row["json_bytes"])


def require_alignments(path: Path, manifest: dict[str, Any]) -> None:
    """Raises DataError for a corpus of another kind."""
    kind = manifest.get("kind", "sequences")
    if kind != KIND:
        raise DataError(
            f"{path}: is a corpus of {kind}, alignments were expected; prepare one with launch/prepare.py alignments."
        )


def read_alignment_index(path: Path) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint64]]:
    """index.npz as (ALIGNMENT [alignments], checksums of all pages). Raises DataError if it is not readable as that."""
    try:
        with np.load(io.BytesIO((path / INDEX).read_bytes()), allow_pickle=False) as arrays:
            table = np.empty(len(arrays["shard"]), dtype=ALIGNMENT)
            for name in ALIGNMENT.names or ():
                table[name] = arrays[name]
            return table, arrays["pages"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path / INDEX}: cannot be read as an index of alignments ({error}); {_AGAIN}.") from error
