"""Last phase of preparing: buckets of records -> a complete corpus directory, its manifest last.

Sequences are written bucket by bucket in the order of their keys, each with the first record that has it; the records
after the first go to the side table of duplicates. Without clusters a pass over the fixed-size rows comes before: it
counts distinct sequences and finds the split key below which a sequence is validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import Bucket, Buckets, first_of_equals, order_keys, sorted_by, split_keys
from data.duplicates import SOURCES, DuplicateWriter
from data.manifest import CLUSTERING, CLUSTERS, EXCLUDED, INDEX, LENGTHS, MANIFEST, SPLITS, sealed
from data.prepare_config import PrepareConfig
from data.publish import sync_file, write_durably
from data.rna_types import TYPES
from data.scan import Progress, SourceTally
from data.shards import ShardWriter, block_table
from data.split import require_split, validation_count
from data.summary import describe_corpus

_LETTERS = 16 << 20  # nucleotides handed on together


@dataclass(frozen=True)
class Plan:
    """How many sequences there will be, and how a bucket knows which are validation.

    ``last_key``: the largest split key of a validation sequence; None where the rows say it (`data.regroup`).
    """

    sequences: int
    validation: int
    last_key: np.uint64 | None = None


class SplitTotals:
    """Counts of one split: sequences, nucleotides and duplicates by source, sequences by type; its clusters."""

    def __init__(self, sources: int) -> None:
        self.sequences = np.zeros(sources, dtype=np.int64)
        self.nucleotides = np.zeros(sources, dtype=np.int64)
        self.duplicates = np.zeros(sources, dtype=np.int64)
        self.types = np.zeros(len(TYPES), dtype=np.int64)
        self.count = 0
        self.cluster_starts: list[npt.NDArray[np.uint32]] = []

    def add(self, rows: npt.NDArray[np.void], types: npt.NDArray[np.uint8]) -> None:
        self.sequences += np.bincount(rows["source"], minlength=len(self.sequences))
        weights = rows["length"].astype(np.float64)  # exact below 2**53 nucleotides
        self.nucleotides += np.bincount(rows["source"], weights, minlength=len(self.sequences)).astype(np.int64)
        self.types += np.bincount(types, minlength=len(TYPES))
        self.count += len(rows)

    def pointers(self) -> npt.NDArray[np.uint32]:
        """uint32 [clusters + 1]: where the sequences of each cluster start, and the end."""
        return np.concatenate([*self.cluster_starts, np.array([self.count], dtype=np.uint32)])


def plan_by_key(config: PrepareConfig, records: int, buckets: Buckets, progress: Progress) -> Plan:
    """Without clusters, every sequence is its own unit of the split. Raises DataError if a split would be empty."""
    most = validation_count(config, records)  # distinct sequences are at most as many as records
    smallest = np.empty(0, dtype=np.uint64)
    distinct = 0
    for number in range(buckets.count):
        rows = buckets.read(number).rows
        order = sorted_by(rows["hi"], rows["lo"])
        lo = rows["lo"][order]
        lo = lo[first_of_equals(rows["hi"][order], lo)]
        distinct += len(lo)
        if most:
            keys = np.concatenate([smallest, split_keys(lo, config.seed)])
            smallest = np.partition(keys, most)[:most] if len(keys) > most else keys
        progress("removing duplicates", number + 1, buckets.count)
    wanted = validation_count(config, distinct)
    require_split(config, distinct, wanted)
    if not wanted:
        return Plan(distinct, 0, np.uint64(0))
    last_key = np.partition(smallest, wanted - 1)[wanted - 1]
    return Plan(distinct, int(np.count_nonzero(smallest <= last_key)), last_key)


def assemble(
    config: PrepareConfig,
    tallies: list[SourceTally],
    buckets: Buckets,
    plan: Plan,
    told: dict[str, Any],
    built: Path,
    progress: Progress,
) -> None:
    """Writes shards, index, lengths, side tables and manifest into ``built``; ``told`` is what `regroup` tells."""
    train = plan.sequences - plan.validation
    lengths, sources = (
        np.lib.format.open_memmap(built / name, mode="w+", dtype=dtype, shape=(plan.sequences,), version=(1, 0))
        for name, dtype in ((LENGTHS, np.uint32), (SOURCES, np.uint16))
    )
    clustered = bool(told.get("clusters"))
    totals = [SplitTotals(len(tallies)) for _ in SPLITS]
    writers = [ShardWriter(built, split, config.shard_megabytes * 10**6) for split in SPLITS]
    duplicates = [DuplicateWriter(built, split) for split in SPLITS]
    opened: list[ShardWriter | DuplicateWriter] = [*writers, *duplicates]
    try:
        for number in range(buckets.count):
            bucket = buckets.read(number)
            ordered = _ordered(bucket, config.seed, plan)
            for s in range(len(SPLITS)):
                total = totals[s]
                for piece in ordered.pieces(s):
                    rows = bucket.rows[piece.kept]
                    at = slice(total.count + s * train, total.count + s * train + len(rows))
                    lengths[at], sources[at] = rows["length"], rows["source"]
                    if clustered:
                        total.cluster_starts.append((total.count + np.flatnonzero(piece.starts)).astype(np.uint32))
                    more = bucket.rows[piece.duplicates]
                    duplicates[s].add(
                        total.count + piece.duplicate_of,
                        bucket.names(piece.duplicates),
                        more["source"],
                        more["reversed"] ^ rows["reversed"][piece.duplicate_of],
                    )
                    total.duplicates += np.bincount(more["source"], minlength=len(tallies))
                    total.add(rows, piece.types)
                    starts = piece.starts if clustered else None
                    writers[s].add(bucket.letters(piece.kept), bucket.names(piece.kept), piece.types, starts)
            progress("writing shards", number + 1, buckets.count)
        shards = [shard for writer in writers for shard in writer.close()]
        for table in duplicates:
            table.close()
    finally:
        for closing in opened:
            closing.abandon()
    for array in (lengths, sources):
        array.flush()
    if len(tallies) == 1:
        (built / SOURCES).unlink()
    with open(built / INDEX, "wb") as file:
        np.savez(file, allow_pickle=False, **block_table(shards))
    if clustered:
        pointers = {split: total.pointers() for split, total in zip(SPLITS, totals, strict=True)}
        with open(built / CLUSTERS, "wb") as file:
            np.savez(file, allow_pickle=False, **pointers)
    for name in (INDEX, CLUSTERS, CLUSTERING, EXCLUDED):
        if (built / name).exists():
            sync_file(built / name)
    write_durably(built / MANIFEST, sealed(describe_corpus(config, tallies, totals, shards, told, built)))


@dataclass(frozen=True)
class _Piece:
    """Neighbours of one split. ``kept`` row of each sequence, ``types`` and whether it ``starts`` a cluster;

    ``duplicates`` rows of the other records, and which of the kept sequences each is a ``duplicate_of``.
    """

    kept: npt.NDArray[np.int64]
    types: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.bool_]
    duplicates: npt.NDArray[np.int64]
    duplicate_of: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Ordered:
    """The records of a bucket in corpus order: ``order`` row numbers, ``first`` of its sequence, and per sequence:

    ``validation``, ``cluster`` (equal for neighbours of one cluster), ``types``.
    """

    rows: npt.NDArray[np.void]
    order: npt.NDArray[np.int64]
    first: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    cluster: npt.NDArray[np.integer] | None
    types: npt.NDArray[np.uint8]

    def pieces(self, split: int) -> Iterator[_Piece]:
        """The sequences of one split, about `_LETTERS` nucleotides at a time."""
        wanted = np.flatnonzero(self.validation == bool(split))
        kept = self.order[self.first][wanted]
        starts = np.ones(len(wanted), dtype=bool)
        if self.cluster is not None:
            starts[1:] = np.diff(self.cluster[wanted]) != 0
        place = np.full(len(self.validation), -1, dtype=np.int64)
        place[wanted] = np.arange(len(wanted))
        of = place[np.cumsum(self.first) - 1][~self.first]  # of each duplicate: which of `kept`, or -1
        duplicates = self.order[~self.first][of >= 0]
        of = of[of >= 0]
        ends = np.cumsum(self.rows["length"][kept], dtype=np.int64)
        start = 0
        while start < len(kept):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _LETTERS, side="right")))
            low, high = np.searchsorted(of, [start, stop])
            here, more = slice(start, stop), slice(low, high)
            yield _Piece(kept[here], self.types[wanted[here]], starts[here], duplicates[more], of[more] - start)
            start = stop


def _ordered(bucket: Bucket, seed: int, plan: Plan) -> _Ordered:
    """Sorted by the key of the cluster, inside it by the key of the sequence, among duplicates by reading place."""
    rows = bucket.rows
    keys = order_keys(rows["hi"], seed)
    grouped = "cluster" in (rows.dtype.names or ())
    by_cluster = (order_keys(rows["cluster_hi"], seed), rows["cluster"]) if grouped else ()
    order = sorted_by(*by_cluster, keys, rows["lo"], rows["at"])
    first = first_of_equals(rows["hi"][order], rows["lo"][order])
    kept = order[first]
    if plan.last_key is None:
        validation = rows["held_out"][kept] > 0
    else:
        validation = (split_keys(rows["lo"][kept], seed) <= plan.last_key) & bool(plan.validation)
    types = rows["type"][kept]
    if not first.all():
        # A record that tells no type may have a duplicate that does: the first one to tell decides.
        telling = np.flatnonzero(rows["type"][order] > 0)[::-1]
        told = np.zeros(len(kept), dtype=np.uint8)
        told[(np.cumsum(first) - 1)[telling]] = rows["type"][order][telling]
        types = told
    return _Ordered(rows, order, first, validation, rows["cluster"][kept].astype(np.int64) if grouped else None, types)
