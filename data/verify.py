"""Checks every byte and every number of a corpus directory, using the reader's files but not the reader.

Hashes say that nothing changed since the corpus was written; the structural checks say that it was written rightly:
tar members, npy headers, offsets, letters, types, lengths, side tables and all counts of the manifest. Any other file
in the directory is reported, except README.md and describe.png, which `describe` writes and nothing reads.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.index import check_files, read_block_table
from data.manifest import CARD, CLUSTERS, LENGTHS, MANIFEST, PICTURE, SPLITS, read_manifest
from data.shards import letter_counts, npy_header_bytes, span_hashes
from data.verify_tables import check_tables


@dataclass
class Report:
    """What was checked, and what is wrong: one sentence per problem; none means intact."""

    path: Path
    sequences: int = 0
    nucleotides: int = 0
    blocks: int = 0
    shards: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.problems


def verify(path: str | Path) -> Report:
    """Checks the corpus at ``path``. Damage is reported, not raised; the rest is checked as far as it can be."""
    report = Report(Path(path))
    try:
        manifest = read_manifest(report.path)
        check_files(report.path, manifest)
        blocks = read_block_table(report.path)
    except DataError as error:  # without these nothing else can be trusted, or found
        report.problems.append(str(error))
        return report
    report.problems += foreign_files(report.path, manifest)
    lengths = np.load(report.path / LENGTHS, mmap_mode="r", allow_pickle=False)
    letters = np.zeros(256, dtype=np.int64)
    types = {split: np.zeros(256, dtype=np.int64) for split in SPLITS}
    starts: dict[str, list[npt.NDArray[np.bool_]]] = {split: [] for split in SPLITS}
    for number, shard in enumerate(manifest["shards"]):
        checked = ShardCheck(report, shard, blocks[blocks["shard"] == number], CLUSTERS in manifest["files"])
        own = lengths[report.sequences : report.sequences + shard["sequences"]]
        found = checked.run(manifest["alphabet"].encode(), len(manifest["type_names"]))
        if not np.array_equal(found, own):
            report.problems.append(f"{checked.path}: sequence lengths differ from {LENGTHS}.")
        letters += checked.letters
        types[shard["split"]] += checked.types
        starts[shard["split"]] += checked.starts
        report.sequences += shard["sequences"]
        report.nucleotides += int(own.sum(dtype=np.int64))
        report.shards += 1
        report.blocks += shard["blocks"]
        report.bytes += shard["bytes"]
    _check_counts(report, manifest, lengths, letters, types)
    report.problems += check_tables(report.path, manifest, starts)
    return report


def foreign_files(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """A sentence for every file in the directory that the manifest does not name."""
    expected = {
        MANIFEST,
        CARD,
        PICTURE,
        *manifest["files"],
        *manifest.get("sidecars", {}),
        *(shard["name"] for shard in manifest["shards"]),
    }
    for extra in sorted(p.name for p in path.iterdir() if p.name not in expected):
        yield f"{path / extra}: does not belong to the corpus."


class ShardCheck:
    """One shard: its hashes, its tar structure against the block table, and the content of its blocks.

    ``more``: members of a block beyond those of sequences.
    """

    def __init__(self, report: Report, shard: dict[str, Any], table: npt.NDArray[np.void], clustered: bool) -> None:
        self.path, self.shard, self.table, self.problems = report.path / shard["name"], shard, table, report.problems
        self.letters = np.zeros(256, dtype=np.int64)
        self.types = np.zeros(256, dtype=np.int64)
        self.more: tuple[str, ...] = ("cluster",) if clustered else ()
        self.starts: list[npt.NDArray[np.bool_]] = []  # of each block: which sequences start a cluster

    def run(self, alphabet: bytes, type_count: int) -> npt.NDArray[np.uint32]:
        """Lengths of the sequences found, in order; problems go to the report."""
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as view:
                if hashlib.sha256(view).hexdigest() != self.shard["sha256"]:
                    self.problems.append(f"{self.path}: does not match its hash in the manifest, it was changed.")
                if len(self.table) == 0 or int(self.table["span_end"][-1]) != len(view):
                    self.problems.append(f"{self.path}: the index does not cover the whole file.")
                    return np.empty(0, dtype=np.uint32)
                for b in np.flatnonzero(span_hashes(view, self.table["span_end"]) != self.table["xxh3"]).tolist():
                    self.problems.append(f"{self.path}: block {b} does not match its checksum.")
            try:
                return self._blocks(alphabet, type_count)
            except Exception as error:  # tarfile and numpy raise many kinds for a damaged header
                self.problems.append(f"{self.path}: is not a readable shard ({error}).")
                return np.empty(0, dtype=np.uint32)

    def _blocks(self, alphabet: bytes, type_count: int) -> npt.NDArray[np.uint32]:
        found = []
        with tarfile.open(self.path, "r:") as tar:
            members = {member.name: member for member in tar}
            if len(members) != (4 + len(self.more)) * len(self.table) or len(self.table) != self.shard["blocks"]:
                self.problems.append(
                    f"{self.path}: has {len(members)} members for {len(self.table)} blocks in the index."
                )
            prefix = self.path.stem.rpartition("-")[2]
            for b, row in enumerate(self.table):
                arrays = {}
                for part in ("id", "off", "tok", "type", *self.more):
                    member = members[f"{prefix}-{b:05d}.{part}.npy"]
                    file = tar.extractfile(member)
                    content = file.read() if file is not None else b""
                    told = int(row[part]) if part in (row.dtype.names or ()) else None
                    if told not in (None, member.offset_data + npy_header_bytes(content)):
                        self.problems.append(f"{self.path}: block {b}: the index misplaces {member.name}.")
                    arrays[part] = np.load(io.BytesIO(content), allow_pickle=False)
                found.append(self.block(b, row, arrays, alphabet, type_count))
        lengths = np.concatenate(found).astype(np.uint32)
        if len(lengths) != self.shard["sequences"] or int(lengths.sum(dtype=np.int64)) != self.shard["nucleotides"]:
            self.problems.append(f"{self.path}: its sequences or nucleotides are not as many as the manifest says.")
        return lengths

    def block(
        self, b: int, row: np.void, arrays: dict[str, npt.NDArray[Any]], alphabet: bytes, type_count: int
    ) -> npt.NDArray[np.int64]:
        """Checks the arrays of block ``b``; the lengths of its sequences."""
        off, tok, n = arrays["off"].astype(np.int64), arrays["tok"], int(row["sequences"])
        lengths = np.diff(off)
        if len(off) != n + 1 or len(arrays["id"]) != n or len(arrays["type"]) != n:
            self.problems.append(f"{self.path}: block {b}: its members do not all describe {n} sequences.")
        if arrays["id"].dtype.itemsize != int(row["id_width"]):
            self.problems.append(f"{self.path}: block {b}: the index has another width of accessions.")
        if off[0] != 0 or off[-1] != len(tok) or (lengths <= 0).any():
            self.problems.append(f"{self.path}: block {b}: the offsets do not partition its letters.")
        counts = letter_counts(tok)
        foreign = [chr(code) for code in np.flatnonzero(counts).tolist() if code not in alphabet]
        if foreign:
            self.problems.append(f"{self.path}: block {b}: holds letters outside the alphabet ({''.join(foreign)!r}).")
        if len(arrays["type"]) and int(arrays["type"].max()) >= type_count:
            self.problems.append(f"{self.path}: block {b}: holds a type id outside the vocabulary.")
        self.letters += counts
        self.types += np.bincount(arrays["type"], minlength=256)
        self.starts.append(arrays.get("cluster", np.empty(0, dtype=bool)))
        return lengths


def _check_counts(
    report: Report,
    manifest: dict[str, Any],
    lengths: npt.NDArray[np.uint32],
    letters: npt.NDArray[np.int64],
    types: dict[str, npt.NDArray[np.int64]],
) -> None:
    def differs(what: str) -> None:
        report.problems.append(f"{report.path / MANIFEST}: {what} differ from what the shards hold.")

    if report.sequences != len(lengths):
        differs("the sequences of the shards together")
    if {chr(c): int(n) for c, n in enumerate(letters) if n} != manifest["letters"]:
        differs("letter counts")
    start = 0
    for split in SPLITS:
        said = manifest["splits"][split]
        own = lengths[start : start + said["sequences"]]
        start += said["sequences"]
        counted = {
            manifest["type_names"][t]: int(n) for t, n in enumerate(types[split][: len(manifest["type_names"])]) if n
        }
        if counted != said["types"]:
            differs(f"the RNA types of {split}")
        if len(own) != said["sequences"] or int(own.sum(dtype=np.int64)) != said["nucleotides"]:
            differs(f"the nucleotides of {split}")
        by_source = sum(source["sequences"][split] for source in manifest["sources"])
        in_shards = sum(shard["sequences"] for shard in manifest["shards"] if shard["split"] == split)
        if not by_source == in_shards == said["sequences"]:
            differs(f"the sequences of {split} by source")
    for source in manifest["sources"]:
        if source["records"] != sum(source["dropped"].values()) + sum(source["sequences"].values()):
            report.problems.append(f"{report.path / MANIFEST}: records of {source['name']} do not add up.")
