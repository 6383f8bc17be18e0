"""Checks every byte and every number of a corpus of alignments, using the reader's files but not the reader.

Hashes say that nothing changed since the corpus was written; the structural checks say that it was written rightly:
tar members, npy headers, letters, descriptions, the index, that no family (or clan, where clans were kept together) is
in both splits, and all counts of the manifest. Any other file in the directory is reported.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import dot_bracket
from data.alignment_columns import character_counts
from data.alignment_shards import page_count, page_hashes
from data.alignments import read_alignment_index, require_alignments
from data.errors import DataError
from data.index import check_files
from data.manifest import CARD, MANIFEST, PICTURE, SPLITS, read_manifest
from data.shards import npy_header_bytes


@dataclass
class AlignmentReport:
    """What was checked, and what is wrong: one sentence per problem; none means intact."""

    path: Path
    alignments: int = 0
    rows: int = 0
    letters: int = 0
    shards: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.problems

    @property
    def contents(self) -> str:
        return (
            f"{self.alignments:,} alignments with {self.rows:,} rows and {self.letters:,} letters in "
            f"{self.shards:,} shards, {self.bytes / 1e6:,.1f} MB"
        )


def verify_alignments(path: str | Path) -> AlignmentReport:
    """Checks the corpus at ``path``. Damage is reported, not raised; the rest is checked as far as it can be."""
    report = AlignmentReport(Path(path))
    try:
        manifest = read_manifest(report.path)
        require_alignments(report.path, manifest)
        check_files(report.path, manifest)
        table, pages = read_alignment_index(report.path)
    except DataError as error:  # without these nothing else can be trusted, or found
        report.problems.append(str(error))
        return report
    expected = {MANIFEST, CARD, PICTURE, *manifest["files"], *(shard["name"] for shard in manifest["shards"])}
    for extra in sorted(p.name for p in report.path.iterdir() if p.name not in expected):
        report.problems.append(f"{report.path / extra}: does not belong to the corpus.")
    shards = [
        _Shard(report.path, shard, table[table["shard"] == number]) for number, shard in enumerate(manifest["shards"])
    ]
    at = 0
    for shard in shards:
        count = page_count(shard.said["bytes"])
        shard.run(pages[at : at + count], manifest)
        at += count
        report.problems += shard.problems
        report.alignments += len(shard.table)
        report.rows += int(shard.table["depth"].sum(dtype=np.int64))
        report.letters += int(shard.letters.sum())
        report.shards += 1
        report.bytes += shard.said["bytes"]
    if at != len(pages):
        report.problems.append(f"{report.path}: the index has checksums of {len(pages)} pages, the shards {at}.")
    if not any(shard.problems for shard in shards):
        report.problems += _differences(report.path, manifest, shards)
    return report


class _Shard:
    """One shard: its hashes, its tar structure against the index, and its alignments."""

    def __init__(self, folder: Path, said: dict[str, Any], table: npt.NDArray[np.void]) -> None:
        self.path, self.said, self.table = folder / said["name"], said, table
        self.problems: list[str] = []
        self.letters = np.zeros(256, dtype=np.int64)
        self.described: list[dict[str, Any]] = []

    def run(self, pages: npt.NDArray[np.uint64], manifest: dict[str, Any]) -> None:
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            if hashlib.sha256(view).hexdigest() != self.said["sha256"]:
                self.problems.append(f"{self.path}: does not match its hash in the manifest, it was changed.")
            found = page_hashes(view)
        if len(found) != len(pages):
            self.problems.append(f"{self.path}: has {len(found)} pages, the index has checksums of {len(pages)}.")
        else:
            for page in np.flatnonzero(found != pages).tolist():
                self.problems.append(f"{self.path}: page {page} does not match its checksum.")
        try:
            self._members(manifest["alphabet"].encode(), len(manifest["type_names"]))
        except Exception as error:  # tarfile, json and numpy raise many kinds for damaged bytes
            self.problems.append(f"{self.path}: is not a readable shard ({error}).")

    def _members(self, alphabet: bytes, type_count: int) -> None:
        with tarfile.open(self.path, "r:") as tar:
            members = tar.getmembers()
            if len(members) != 2 * len(self.table) or len(self.table) != self.said["alignments"]:
                self.problems.append(
                    f"{self.path}: has {len(members)} members, the index {len(self.table)} alignments."
                )
            for row, text, array in zip(self.table, members[::2], members[1::2], strict=True):
                contents = [_content(tar, member) for member in (text, array)]
                described = json.loads(contents[0])
                self.described.append(described)
                family = described["family"]
                if (text.name, array.name) != (f"{family}.json", f"{family}.msa.npy"):
                    self.problems.append(f"{self.path}: {text.name} and {array.name} are not of family {family}.")
                at = (text.offset_data, len(contents[0]), array.offset_data + npy_header_bytes(contents[1]))
                if at != (int(row["json"]), int(row["json_bytes"]), int(row["msa"])):
                    self.problems.append(f"{self.path}: the index misplaces {family}.")
                self._alignment(row, described, np.load(io.BytesIO(contents[1]), allow_pickle=False), alphabet)
                if int(row["type"]) >= type_count or int(row["sequences"]) != 1:
                    self.problems.append(f"{self.path}: the index gives {family} an unknown type, or more than itself.")

    def _alignment(
        self, row: np.void, described: dict[str, Any], letters: npt.NDArray[np.uint8], alphabet: bytes
    ) -> None:
        where, shape = f"{self.path}: {described['family']}", (int(row["depth"]), int(row["columns"]))
        if letters.dtype != np.uint8 or letters.shape != shape or (described["depth"], described["columns"]) != shape:
            self.problems.append(f"{where} is not of the {shape[0]} rows and {shape[1]} columns of the index.")
        counts = character_counts(letters)
        self.letters += counts
        if any(code not in alphabet for code in np.flatnonzero(counts).tolist()):
            self.problems.append(f"{where} holds letters outside the alphabet.")
        structure = described["structure"]
        try:
            if structure is not None and len(dot_bracket.partners(structure)) != shape[1]:
                raise ValueError("it has another length")
        except ValueError as error:
            self.problems.append(f"{where}: the structure does not fit ({error}).")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _differences(path: Path, manifest: dict[str, Any], shards: list[_Shard]) -> list[str]:
    """Everything that the manifest tells and the shards do not hold."""
    wrong = []
    letters = np.sum([shard.letters for shard in shards], axis=0)
    if {chr(code): int(n) for code, n in enumerate(letters.tolist()) if n} != manifest["letters"]:
        wrong.append("letter counts")
    families: dict[str, set[str]] = {}
    clans: dict[str, set[str]] = {}
    for split in SPLITS:
        own = [shard for shard in shards if shard.said["split"] == split]
        said, table = manifest["splits"][split], [row for shard in own for row in shard.table]
        described = [one for shard in own for one in shard.described]
        families[split] = {one["family"] for one in described}
        clans[split] = {one["clan"] for one in described if one["clan"]}
        types = np.bincount([int(row["type"]) for row in table], minlength=len(manifest["type_names"]))
        found = {
            "alignments": len(described),
            "rows": sum(int(row["depth"]) for row in table),
            "columns": sum(int(row["columns"]) for row in table),
            "letters": int(sum(shard.letters.sum() for shard in own)),
            "types": {manifest["type_names"][t]: int(n) for t, n in enumerate(types.tolist()) if n},
        }
        if found != said or len(families[split]) != len(described):
            wrong.append(f"the counts of {split}")
        for source in manifest["sources"]:
            if source["alignments"][split] != sum(one["source"] == source["name"] for one in described):
                wrong.append(f"the alignments of {source['name']} in {split}")
    for source in manifest["sources"]:
        if source["alignments_read"] != sum(source["dropped"].values()) + sum(source["alignments"].values()):
            wrong.append(f"the alignments of {source['name']} that were left out")
    for shard in shards:
        if (int(shard.table["depth"].sum()), int(shard.letters.sum())) != (shard.said["rows"], shard.said["letters"]):
            wrong.append(f"the rows of {shard.path.name}")
    problems = [f"{path / MANIFEST}: {what} differ from what the shards hold." for what in wrong]
    both = families["train"] & families["validation"]
    if manifest["split"]["by"] == "clan":
        both |= clans["train"] & clans["validation"]
    return problems + [f"{path}: {name} is in both splits." for name in sorted(both)]
