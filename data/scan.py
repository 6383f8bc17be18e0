"""First phase of preparing: every source file -> normalised, filtered, hashed records in buckets, and a tally of them.

Duplicates are not looked for here; `data.buckets` finds them when a bucket is read back.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.buckets import ROW, BucketWriter
from data.formats.fasta import FastaRecords, read_fasta
from data.normalise import DROP_REASONS, DROPPED, KEPT, LetterPolicy, Normaliser
from data.prepare_config import PrepareConfig, SourceConfig
from data.rna_types import TYPE_ID, classify

LONGEST = (1 << 31) - 1  # nucleotides of one sequence that the format can hold, when max_length is 0

Progress = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass
class SourceTally:
    """What came in from one source, what left and why, and what was changed."""

    name: str
    files: list[dict[str, Any]] = field(default_factory=list)  # name, bytes, sha256
    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)  # letters, over all records read

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "dropped": dict(self.dropped), "changed": dict(self.changed)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SourceTally:
        counters = {"dropped": Counter(content["dropped"]), "changed": Counter(content["changed"])}
        return cls(**{**content, **counters})


def scan(
    config: PrepareConfig, files: list[list[Path]], writer: BucketWriter, chunk_bytes: int, progress: Progress
) -> list[SourceTally]:
    """Reads all files of all sources in order into ``writer``. Returns one tally per source."""
    total = sum(path.stat().st_size for paths in files for path in paths)
    done = 0
    tallies = []
    filters = _Filter(config)
    for number, (source, paths) in enumerate(zip(config.sources, files, strict=True)):
        tally = SourceTally(source.name)
        for path in paths:
            digest = _FileDigest()
            for records in read_fasta(path, chunk_bytes, digest.update):
                writer.add(*filters(records, f"{path}, record {records.first} or later", source, number, tally))
                progress(f"reading {source.name}", done + digest.bytes, total)
            tally.files.append({"name": path.name, "bytes": digest.bytes, "sha256": digest.hexdigest()})
            done += digest.bytes
        tallies.append(tally)
    return tallies


class _FileDigest:
    """Hash and size of what the reading thread has read of one file."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def update(self, raw: bytes) -> None:
        self._sha256.update(raw)
        self.bytes += len(raw)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


class _Filter:
    """A batch of records -> the rows, letters and accessions of those that stay."""

    def __init__(self, config: PrepareConfig) -> None:
        self.normalise = Normaliser(LetterPolicy(config.ambiguity, config.inosine, config.other_letters))
        self.shortest, self.longest = config.min_length, config.max_length or LONGEST

    def __call__(
        self, records: FastaRecords, where: str, source: SourceConfig, number: int, tally: SourceTally
    ) -> tuple[npt.NDArray[np.void], list[bytes], list[bytes]]:
        batch = self.normalise(records.bodies, where)
        verdict, lengths = batch.verdict, batch.lengths
        verdict[(verdict == KEPT) & (lengths < self.shortest)] = DROPPED["too_short"]
        verdict[(verdict == KEPT) & (lengths > self.longest)] = DROPPED["too_long"]
        tally.records += len(verdict)
        tally.changed.update(batch.changes)
        counts = np.bincount(verdict, minlength=len(DROP_REASONS) + 1)
        tally.dropped.update({reason: int(counts[code]) for reason, code in DROPPED.items()})

        kept = np.flatnonzero(verdict == KEPT)
        picks = kept.tolist()
        letters = [batch.sequences[i] for i in picks]
        named = [classify(records.headers[i]) for i in picks]
        digests = b"".join(map(xxhash.xxh3_128_digest, letters))
        rows = np.empty(len(picks), dtype=ROW)
        hashes = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
        rows["hi"], rows["lo"] = hashes[:, 0], hashes[:, 1]
        rows["length"] = lengths[kept]
        rows["name"] = [len(name) for name, _ in named]
        rows["source"] = number
        rows["type"] = [found for _, found in named] if source.type is None else TYPE_ID[source.type]
        return rows, letters, [name for name, _ in named]
