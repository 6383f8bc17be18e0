"""A user's own clustering: lines of representative<TAB>member accessions -> a label for each sequence.

The form is that of MMseqs2's `_cluster.tsv`. A representative is whatever names the cluster: it need not be in the
corpus. A sequence is found by any of its accessions, those of its duplicates included; the first one read decides. The
join is done in parts on disk, so tables of any size fit.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data.errors import DataError
from data.hash_order import HashOrder
from data.row_spill import RowSpill
from data.source_files import is_gzip

_LINES = 1 << 18
_TABLE = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("label", "<u8"), ("line", "<u8")])  # hash of a member's accession
_RECORD = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("record", "<u8")])


def labels_from_table(path: Path, sequences: HashOrder, labels: npt.NDArray[np.uint64]) -> None:
    """Fills ``labels`` [count]: equal for sequences of one cluster, 0 for those that the table lacks.

    Raises DataError for a line that is no pair of names, and for a member in two clusters.
    """
    expected = sequences.count
    table = RowSpill(sequences.folder / "table", _TABLE, expected)
    for rows in _table_rows(path):
        table.add(rows["hi"], rows)
    records = RowSpill(sequences.folder / "accessions", _RECORD, expected)
    total = 0
    for found in sequences.records():
        rows = np.empty(len(found.order), dtype=_RECORD)
        rows["hi"], rows["lo"] = _hashes(found.bucket.names(found.order))
        rows["record"] = np.arange(total, total + len(rows))  # records of one sequence are neighbours, in reading order
        records.add(rows["hi"], rows)
        total += len(rows)
    if not total:
        return
    of_record = np.memmap(sequences.folder / "record-labels", dtype=np.uint64, mode="w+", shape=(total,))
    for number in range(table.count):
        known = table.part(number)
        known = known[np.lexsort((known["line"], known["lo"], known["hi"]))]
        _refuse_contradictions(path, known)
        rows = records.part(number)
        if len(known) and len(rows):
            # Sorted by (hi, lo) as one key: hi alone may be shared by two accessions in 2**64.
            at = np.searchsorted(known["hi"], rows["hi"])
            for _ in range(2):
                near = np.minimum(at, len(known) - 1)
                same = (known["hi"][near] == rows["hi"]) & (known["lo"][near] == rows["lo"])
                of_record[rows["record"][same]] = known["label"][near][same]
                at = at + 1
    before = 0
    for found in sequences.records():
        own = np.array(of_record[before : before + len(found.order)])
        before += len(own)
        named = np.flatnonzero(own)[::-1]  # backwards: the first accession that the table knows is written last
        labels[found.number[named]] = own[named]


def _table_rows(path: Path) -> Iterator[npt.NDArray[np.void]]:
    number = 1
    for lines in _line_batches(path):
        parts = [line.rstrip(b"\r\n").split(b"\t") for line in lines]
        for i, part in enumerate(parts):
            if len(part) != 2 or not part[0] or not part[1]:
                shown = lines[i].rstrip().decode("ascii", "replace")[:60]
                raise DataError(f"{path}, line {number + i}: expected representative<TAB>member, found {shown!r}.")
        rows = np.empty(len(parts), dtype=_TABLE)
        rows["hi"], rows["lo"] = _hashes([member for _, member in parts])
        representatives = _hashes([representative for representative, _ in parts])[0]
        rows["label"] = (representatives >> np.uint64(1)) | np.uint64(1)  # neither 0 nor in the range of singletons
        rows["line"] = np.arange(number, number + len(parts))
        yield rows
        number += len(parts)
    if number == 1:
        raise DataError(f"{path}: the table is empty; expected lines of representative<TAB>member.")


def _line_batches(path: Path) -> Iterator[list[bytes]]:
    try:
        with gzip.open(path) if is_gzip(path.name) else open(path, "rb") as file:
            while lines := file.readlines(_LINES * 32):
                lines = [line for line in lines if line.strip()]
                if lines:
                    yield lines
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check clusters.table.") from error


def _refuse_contradictions(path: Path, known: npt.NDArray[np.void]) -> None:
    same = (known["hi"][1:] == known["hi"][:-1]) & (known["lo"][1:] == known["lo"][:-1])
    other = np.flatnonzero(same & (known["label"][1:] != known["label"][:-1]))
    if other.size:
        first, second = known["line"][other[0]], known["line"][other[0] + 1]
        raise DataError(
            f"{path}, lines {first} and {second}: the same member stands in two clusters (blank lines not counted); "
            "each sequence needs exactly one."
        )


def _hashes(names: list[bytes]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    found = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, names)), dtype=">u8").reshape(-1, 2)
    return found[:, 0].astype(np.uint64), found[:, 1].astype(np.uint64)
