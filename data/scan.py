"""First phase of preparing: every source file -> normalised, filtered, hashed records in buckets, and a tally of them.

This process reads, decompresses and hashes the files; parsing is done by `data.workers`, in processes of their own
where there is enough to do. Duplicates are found later, when a bucket is read back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.formats.fasta import read_texts
from data.normalise import LetterPolicy
from data.prepare_config import PrepareConfig
from data.records import FilterRules, Origin, Tally
from data.workers import ParseJob, Parser, ParserPool

_WORTH_A_PROCESS = 32 << 20  # bytes of files; fewer are parsed before a process has started

Progress = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass
class SourceTally:
    """What came in from one source, what left and why, and what was changed."""

    name: str
    files: list[dict[str, Any]] = field(default_factory=list)  # name, bytes, sha256
    tally: Tally = field(default_factory=Tally)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "files": self.files, "tally": self.tally.as_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> SourceTally:
        return cls(content["name"], content["files"], Tally.from_json(content["tally"]))


def scan(
    config: PrepareConfig, files: list[list[Path]], spill: Path, buckets: int, chunk_bytes: int, progress: Progress
) -> tuple[list[SourceTally], int]:
    """Reads all files of all sources into ``buckets`` buckets in ``spill``: (a tally per source, number of writers).

    Buckets are by order key, or by plain hash if the config is `grouped`. Raises DataError.
    """
    total = sum(path.stat().st_size for paths in files for path in paths)
    policy = LetterPolicy(config.ambiguity, config.inosine, config.other_letters)
    rules = FilterRules(policy, config.min_length, config.max_length, config.reverse_complement == "merge")
    job = ParseJob(rules, str(spill), buckets, None if config.grouped else config.seed)
    wanted = config.thread_count
    parser = ParserPool(job, wanted) if wanted > 1 and total >= _WORTH_A_PROCESS else Parser(job)
    done = number = 0
    tallies = [SourceTally(source.name) for source in config.sources]
    try:
        for s, (source, paths) in enumerate(zip(config.sources, files, strict=True)):
            for path in paths:
                digest = _FileDigest()
                origin = Origin(number, str(path), s, source.type, _family_of_file(path))
                for piece in read_texts(path, chunk_bytes, digest.update):
                    parser.put(piece, origin)
                    progress(f"reading {source.name}", done + digest.bytes, total)
                tallies[s].files.append({"name": path.name, "bytes": digest.bytes, "sha256": digest.hexdigest()})
                done += digest.bytes
                number += 1
        for s, tally in parser.finish().items():
            tallies[s].tally = tally
    finally:
        parser.abandon()
    return tallies, parser.workers


def _family_of_file(path: Path) -> int:
    """Rfam publishes one file per family, named RF00001.fa.gz, whose headers do not name it."""
    found = re.match(r"RF(\d{5})\.", path.name)
    return int(found[1]) if found else 0


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
