"""Last phases of preparing profiles: samples into buckets by the key of their cluster, then both splits, a manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import Buckets, BucketWriter, order_keys, sorted_by
from data.hash_order import HashOrder
from data.manifest import CLUSTERS, INDEX, LENGTHS, MANIFEST, SPLITS, sealed
from data.publish import sync_file, write_durably
from data.reactivity_config import ReactivityConfig
from data.reactivity_filter import CLASSES, classify
from data.reactivity_manifest import LIBRARIES, RATIOS, describe_reactivity
from data.reactivity_resolve import Resolved
from data.reactivity_shards import ProfileShardWriter
from data.scan import Progress, SourceTally
from data.shards import block_table

ROW = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("cluster_hi", "<u8"),  # hash of the first member of the cluster in hash order
        ("number", "<u4"),  # of the sequence in hash order
        ("cluster", "<u4"),  # of that member
        ("length", "<u4"),  # bytes of the payload: letters, values, errors
        ("nucleotides", "<u4"),
        ("name", "u1"),
        ("held_out", "u1"),  # 1: in the validation split
    ]
)
_TOGETHER = 2048  # samples handed on at once


def regroup(
    config: ReactivityConfig,
    resolved: Resolved,
    sequences: HashOrder,
    first: npt.NDArray[np.uint32],
    held_out: npt.NDArray[np.bool_],
    folder: Path,
    progress: Progress,
) -> None:
    """Fills buckets of ROW in ``folder``, in the order of the corpus: by the key of the cluster."""
    writer = BucketWriter(folder, resolved.buckets.count)
    table, numbers, hi, lo = resolved.table(), resolved.profiles(), sequences.hi, sequences.lo
    for done, found in enumerate(sequences.records(), 1):
        for start in range(0, len(found.order), _TOGETHER):
            picks = found.order[start : start + _TOGETHER]
            number = found.number[start : start + _TOGETHER]
            lengths = table["nucleotides"][number].astype(np.int64)
            starts = table["start"][number].astype(np.int64)
            rows = np.zeros(len(picks), dtype=ROW)
            rows["hi"], rows["lo"], rows["number"], rows["cluster"] = hi[number], lo[number], number, first[number]
            rows["cluster_hi"] = hi[rows["cluster"]]
            rows["nucleotides"], rows["held_out"] = lengths, held_out[number]
            rows["length"] = lengths + 4 * lengths * resolved.channels
            names = found.bucket.names(picks)
            rows["name"] = [len(name) for name in names]
            ends = starts + 2 * lengths * resolved.channels
            payloads = [
                letters + numbers[a:b].tobytes()
                for letters, a, b in zip(found.bucket.letters(picks), starts.tolist(), ends.tolist(), strict=True)
            ]
            writer.add(order_keys(rows["cluster_hi"], config.seed), rows, payloads, names)
        progress("ordering samples", done, resolved.buckets.count)
    writer.flush()


@dataclass
class Totals:
    """Counts of one split."""

    channels: int
    sources: int
    sequences: int = 0
    nucleotides: int = 0
    classes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASSES), dtype=np.int64))
    by_source: npt.NDArray[np.int64] = field(init=False)  # sequences of each source
    libraries: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    profiles: npt.NDArray[np.int64] = field(init=False)  # [channels] samples with a value in it
    values: npt.NDArray[np.int64] = field(init=False)  # [channels] measured values
    cluster_starts: list[npt.NDArray[np.uint32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_source = np.zeros(self.sources, dtype=np.int64)
        self.profiles, self.values = (np.zeros(self.channels, dtype=np.int64) for _ in range(2))

    def pointers(self) -> npt.NDArray[np.uint32]:
        """uint32 [clusters + 1]: where the samples of each cluster start, and the end."""
        return np.concatenate([*self.cluster_starts, np.array([self.sequences], dtype=np.uint32)])


def assemble(
    config: ReactivityConfig,
    tallies: list[SourceTally],
    resolved: Resolved,
    ordered: Path,
    clusters: dict[str, Any],
    libraries: list[str],
    rename: npt.NDArray[np.uint8],
    built: Path,
    progress: Progress,
) -> None:
    """Writes shards, index, per-sample tables and manifest into ``built``."""
    buckets, table = Buckets(ordered, resolved.buckets.count, 1, ROW), resolved.table()
    validation = sum(int(buckets.read(b).rows["held_out"].sum()) for b in range(buckets.count))
    at = [0, resolved.count - validation]  # of the next sample of each split in the tables
    channels = resolved.channels
    lengths, ratios, library_of = (
        np.lib.format.open_memmap(built / name, mode="w+", dtype=dtype, shape=(resolved.count, *more), version=(1, 0))
        for name, dtype, more in ((LENGTHS, "<u4", ()), (RATIOS, "<f4", (channels,)), (LIBRARIES, "u1", ()))
    )
    totals = [Totals(channels, len(tallies)) for _ in SPLITS]
    writers = [ProfileShardWriter(built, split, config.shard_megabytes * 10**6, config.channels) for split in SPLITS]
    try:
        for number in range(buckets.count):
            bucket = buckets.read(number)
            rows = bucket.rows
            by_cluster = order_keys(rows["cluster_hi"], config.seed)
            order = sorted_by(by_cluster, rows["cluster"], order_keys(rows["hi"], config.seed), rows["lo"])
            for split in range(len(SPLITS)):
                own = order[rows["held_out"][order] == split]
                starts = np.ones(len(own), dtype=bool)
                starts[1:] = np.diff(rows["cluster"][own].astype(np.int64)) != 0
                for first in range(0, len(own), _TOGETHER):
                    picks, begins = own[first : first + _TOGETHER], starts[first : first + _TOGETHER]
                    told = table[rows["number"][picks]]
                    here = slice(at[split], at[split] + len(picks))
                    lengths[here], ratios[here] = told["nucleotides"], told["snr"]
                    library_of[here] = rename[told["library"]]
                    samples = [_parts(p, n, channels) for p, n in _payloads(bucket, picks)]
                    count_samples(totals[split], told, library_of[here], [s[1] for s in samples], config.threshold)
                    if clusters:
                        base = totals[split].sequences - len(picks)
                        totals[split].cluster_starts.append((base + np.flatnonzero(begins)).astype(np.uint32))
                    writers[split].add_profiles(
                        [s[0] for s in samples],
                        bucket.names(picks),
                        np.array(library_of[here]),
                        [s[1] for s in samples],
                        [s[2] for s in samples],
                        told["snr"],
                        begins if clusters else None,
                    )
                    at[split] += len(picks)
            progress("writing shards", number + 1, buckets.count)
        shards = [shard for writer in writers for shard in writer.close()]
    finally:
        for writer in writers:
            writer.abandon()
    for array in (lengths, ratios, library_of):
        array.flush()
    with open(built / INDEX, "wb") as file:
        np.savez(file, allow_pickle=False, **block_table(shards))
    if clusters:
        pointers = {split: total.pointers() for split, total in zip(SPLITS, totals, strict=True)}
        with open(built / CLUSTERS, "wb") as file:
            np.savez(file, allow_pickle=False, **pointers)
    for path in built.iterdir():
        if path.suffix != ".tar":
            sync_file(path)
    content = describe_reactivity(config, tallies, totals, shards, clusters, libraries, resolved.errors, built)
    write_durably(built / MANIFEST, sealed(content))


def _payloads(bucket: Any, picks: npt.NDArray[np.int64]) -> Any:
    return zip(bucket.letters(picks), bucket.rows["nucleotides"][picks].tolist(), strict=True)


def _parts(
    payload: bytes, nucleotides: int, channels: int
) -> tuple[bytes, npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """(letters, values [L, channels], errors [L, channels])"""
    numbers = np.frombuffer(payload, dtype="<f2", offset=nucleotides).reshape(2 * nucleotides, channels)
    return payload[:nucleotides], numbers[:nucleotides], numbers[nucleotides:]


def count_samples(
    total: Totals,
    told: npt.NDArray[np.void],
    libraries: npt.NDArray[np.uint8],
    values: list[npt.NDArray[np.float16]],
    threshold: float,
) -> None:
    """Adds samples (``told``: nucleotides, snr and source of each) to the counts of a split."""
    total.sequences += len(told)
    total.nucleotides += int(told["nucleotides"].sum(dtype=np.int64))
    total.classes += np.bincount(classify(told["snr"], threshold), minlength=len(CLASSES))
    total.by_source += np.bincount(told["source"], minlength=total.sources)
    total.libraries += np.bincount(libraries, minlength=256)
    measured = np.array([np.count_nonzero(~np.isnan(v), axis=0) for v in values]).reshape(-1, total.channels)
    total.profiles += (measured > 0).sum(axis=0)
    total.values += measured.sum(axis=0)
