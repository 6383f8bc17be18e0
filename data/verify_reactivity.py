"""`data.verify` for corpora of profiles: every byte by its hash, and every number against what the shards hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.index import check_files, read_block_table
from data.manifest import CLUSTERS, LENGTHS, MANIFEST, SPLITS, read_manifest
from data.reactivity_filter import CLASSES, classify
from data.reactivity_manifest import LIBRARIES, RATIOS
from data.reactivity_shards import MORE, PROFILE_BLOCK
from data.verify import Report, ShardCheck, foreign_files
from data.verify_tables import check_clusters, check_hashes


def verify_reactivity(path: str | Path) -> Report:
    """Checks the corpus at ``path``. Damage is reported, not raised; the rest is checked as far as it can be."""
    report = Report(Path(path))
    try:
        manifest = read_manifest(report.path)
        check_files(report.path, manifest)
        blocks = read_block_table(report.path, PROFILE_BLOCK)
    except DataError as error:  # without these nothing else can be trusted, or found
        report.problems.append(str(error))
        return report
    report.problems += foreign_files(report.path, manifest)
    report.problems += check_hashes(report.path, manifest)
    tables = {name: np.load(report.path / name, allow_pickle=False) for name in (LENGTHS, RATIOS, LIBRARIES)}
    found = _Found(len(manifest["channels"]), manifest["threshold"])
    for number, shard in enumerate(manifest["shards"]):
        checked = _ProfileCheck(report, shard, blocks[blocks["shard"] == number], manifest)
        here = slice(report.sequences, report.sequences + shard["sequences"])
        lengths = checked.run(manifest["alphabet"].encode(), len(manifest["type_names"]))
        told = {LENGTHS: lengths, RATIOS: checked.joined("snr"), LIBRARIES: checked.joined("type")}
        for name, own in told.items():
            floats = own.dtype.kind == "f"
            if not np.array_equal(own, tables[name][here], equal_nan=floats):
                report.problems.append(f"{checked.path}: its samples differ from {name}.")
        found.add(shard["split"], checked, lengths)
        report.sequences += shard["sequences"]
        report.nucleotides += int(lengths.sum(dtype=np.int64))
        report.shards += 1
        report.blocks += shard["blocks"]
        report.bytes += shard["bytes"]
    report.problems += found.differences(report.path, manifest, len(tables[LENGTHS]))
    report.problems += check_clusters(report.path, manifest, found.starts)
    return report


class _ProfileCheck(ShardCheck):
    def __init__(
        self, report: Report, shard: dict[str, Any], table: npt.NDArray[np.void], manifest: dict[str, Any]
    ) -> None:
        super().__init__(report, shard, table, CLUSTERS in manifest["files"])
        self.more = (*self.more, "channels", *MORE)
        self.channels = manifest["channels"]
        self.arrays: dict[str, list[npt.NDArray[Any]]] = {"snr": [], "type": []}
        self.measured: list[npt.NDArray[np.int64]] = []  # values per sample and channel

    def joined(self, part: str) -> npt.NDArray[Any]:
        empty = np.empty((0, len(self.channels)), np.float32) if part == "snr" else np.empty(0, np.uint8)
        return np.concatenate([empty, *self.arrays[part]])

    def block(
        self, b: int, row: np.void, arrays: dict[str, npt.NDArray[Any]], alphabet: bytes, type_count: int
    ) -> npt.NDArray[np.int64]:
        lengths = super().block(b, row, arrays, alphabet, type_count)
        values, errors = arrays["react"], arrays["err"]
        per_letter, per_sample = (len(arrays["tok"]), len(self.channels)), (len(lengths), len(self.channels))

        def wrong(what: str) -> None:
            self.problems.append(f"{self.path}: block {b}: {what}.")

        if [name.decode() for name in arrays["channels"].tolist()] != self.channels:
            wrong("its channels are others than the manifest's")
        expected = (("react", per_letter, "<f2"), ("err", per_letter, "<f2"), ("snr", per_sample, "<f4"))
        for part, shape, dtype in expected:
            if arrays[part].shape != shape or arrays[part].dtype != np.dtype(dtype):
                wrong(f"{part} is {arrays[part].dtype} {arrays[part].shape}, expected {dtype} {shape}")
                return lengths
        if np.isinf(values).any() or np.isinf(errors).any():
            wrong("holds infinite numbers")
        if (errors < 0).any():
            wrong("holds negative errors")
        if (~np.isnan(errors) & np.isnan(values)).any():
            wrong("holds errors of values that are not measured")
        ends = arrays["off"].astype(np.int64)
        counts = np.cumsum(np.concatenate([np.zeros((1, len(self.channels)), np.int64), ~np.isnan(values)]), axis=0)
        self.measured.append(counts[ends[1:]] - counts[ends[:-1]])
        for part in self.arrays:
            self.arrays[part].append(arrays[part])
        return lengths


class _Found:
    """What the shards hold together, as the manifest counts it."""

    def __init__(self, channels: int, threshold: float) -> None:
        self.threshold = threshold
        self.letters = np.zeros(256, dtype=np.int64)
        self.starts: dict[str, list[npt.NDArray[np.bool_]]] = {split: [] for split in SPLITS}
        self.counts = {split: {"sequences": 0, "nucleotides": 0} for split in SPLITS}
        self.types = {split: np.zeros(256, dtype=np.int64) for split in SPLITS}
        self.classes = {split: np.zeros(len(CLASSES), dtype=np.int64) for split in SPLITS}
        self.profiles, self.values = ({split: np.zeros(channels, dtype=np.int64) for split in SPLITS} for _ in range(2))

    def add(self, split: str, checked: _ProfileCheck, lengths: npt.NDArray[np.uint32]) -> None:
        self.letters += checked.letters
        self.starts[split] += checked.starts
        self.types[split] += checked.types
        self.counts[split]["sequences"] += len(lengths)
        self.counts[split]["nucleotides"] += int(lengths.sum(dtype=np.int64))
        self.classes[split] += np.bincount(classify(checked.joined("snr"), self.threshold), minlength=len(CLASSES))
        for measured in checked.measured:
            self.profiles[split] += (measured > 0).sum(axis=0)
            self.values[split] += measured.sum(axis=0)

    def differences(self, path: Path, manifest: dict[str, Any], samples: int) -> Iterator[str]:
        """Sentences about counts of the manifest that the shards do not bear out."""
        names = manifest["type_names"]
        if sum(found["sequences"] for found in self.counts.values()) != samples:
            yield f"{path / LENGTHS}: lists another number of samples than the shards hold."
        if {chr(c): int(n) for c, n in enumerate(self.letters) if n} != manifest["letters"]:
            yield f"{path / MANIFEST}: letter counts differ from what the shards hold."
        for split in SPLITS:
            said = manifest["splits"][split]
            found = {
                **self.counts[split],
                "types": {names[t]: int(n) for t, n in enumerate(self.types[split][: len(names)]) if n},
                "classes": dict(zip(CLASSES, self.classes[split].tolist(), strict=True)),
                "profiles": dict(zip(manifest["channels"], self.profiles[split].tolist(), strict=True)),
                "values": dict(zip(manifest["channels"], self.values[split].tolist(), strict=True)),
            }
            for what, number in found.items():
                if said[what] != number:
                    yield f"{path / MANIFEST}: the {what} of {split} differ from what the shards hold."
            if sum(source["sequences"][split] for source in manifest["sources"]) != said["sequences"]:
                yield f"{path / MANIFEST}: the sequences of {split} by source do not add up."
