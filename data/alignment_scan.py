"""First phase of preparing alignments: source files -> cleaned alignments in one spool file, and what was left out.

The spool holds of each alignment the JSON member and the letters as they will stand in a shard: the query, then a keyed
random order of the other rows, cut to `max_rows`. What stays in memory is a small `Entry` per alignment.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alignment_columns import CHANGE_KINDS, CleanAlignment, clean
from data.alignment_config import AlignmentConfig
from data.alignment_families import by_family, family_of, read_clans, read_families
from data.errors import DataError
from data.formats.alignment import read_alignments
from data.formats.raw_alignment import RawAlignment
from data.rna_types import TYPE_ID, classify
from data.scan import Progress

DROP_REASONS = ("excluded", "duplicate", "too_narrow", "too_wide", "too_shallow")


@dataclass(frozen=True)
class Entry:
    """An alignment in the spool: its JSON member starts at ``at``, its letters [depth, columns] follow that."""

    family: str
    name: str  # Stockholm's `#=GF ID`, or ""
    clan: str  # or ""
    source: int
    type: int
    depth: int
    columns: int
    at: int
    json_bytes: int


@dataclass
class AlignmentTally:
    """What came in from one source, what left and why, and what was changed in what stayed."""

    name: str
    files: list[dict[str, Any]] = field(default_factory=list)  # name, bytes, sha256
    alignments: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> the first one
    changed: Counter[str] = field(default_factory=Counter)
    rows_not_stored: int = 0  # beyond max_rows

    def drop(self, reason: str, raw: RawAlignment, family: str) -> None:
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, f"{raw.path.name}, alignment {raw.number} ({family})")


def scan(
    config: AlignmentConfig, files: list[list[Path]], spool: Path, progress: Progress
) -> tuple[list[Entry], list[AlignmentTally]]:
    """Reads all files of all sources into ``spool``. Of two alignments of one family the first one read stays.

    Raises DataError, also where ``config.exclude`` names no family that was read.
    """
    total = sum(path.stat().st_size for paths in files for path in paths)
    tallies = [AlignmentTally(source.name) for source in config.sources]
    done = 0
    with open(spool, "wb", buffering=1 << 20) as file:
        reading = _Reading(config, file)
        for s, (source, paths) in enumerate(zip(config.sources, files, strict=True)):
            for path in paths:
                digest, size = hashlib.sha256(), [0]

                def on_raw(raw: bytes, digest: Any = digest, size: list[int] = size) -> None:
                    digest.update(raw)
                    size[0] += len(raw)

                for raw in read_alignments(path, source.format, on_raw):
                    reading.take(raw, s, tallies[s])
                    progress(f"reading {source.name}", done + size[0], total)
                tallies[s].files.append({"name": path.name, "bytes": size[0], "sha256": digest.hexdigest()})
                done += size[0]
    if config.exclude and not sum(tally.dropped["excluded"] for tally in tallies):
        raise DataError(
            f"{config.exclude}: none of its families is in the sources; list them by accession or name, as RF00001."
        )
    return reading.entries, tallies


class _Reading:
    """Cleans, filters and spools one alignment after the other."""

    def __init__(self, config: AlignmentConfig, spool: IO[bytes]) -> None:
        self.config, self.spool = config, spool
        self.excluded = read_families(config.exclude) if config.exclude else {}
        self.clans = read_clans(config.clans) if config.clans else None
        self.entries: list[Entry] = []
        self.seen: set[str] = set()
        self.at = 0

    def take(self, raw: RawAlignment, source: int, tally: AlignmentTally) -> None:
        config, family, name = self.config, family_of(raw), raw.text("ID")
        tally.alignments += 1
        tally.rows += len(raw.rows)
        reason = "excluded" if by_family(self.excluded, family, name) is not None else ""
        reason = reason or "duplicate" * (family in self.seen)
        if reason:
            tally.drop(reason, raw, family)
            return
        found = clean(raw, config.rules)
        depth, columns = found.letters.shape
        for reason, applies in (
            ("too_narrow", columns < config.min_columns),
            ("too_wide", bool(config.max_columns) and columns > config.max_columns),
            ("too_shallow", depth < config.min_depth),
        ):
            if applies:
                tally.drop(reason, raw, family)
                return
        self.seen.add(family)
        tally.changed += found.changes
        letters = shuffled(found.letters, config.seed, family, config.max_rows)
        tally.rows_not_stored += depth - len(letters)
        given = config.sources[source].type
        # A type as Rfam writes it, `Gene; snRNA; snoRNA;`, in the form of a header that the table of types reads.
        told = classify(b"rfam|x|" + raw.features.get("TP", b"").replace(b" ", b""))[1]
        if self.clans is not None:
            clan = by_family(self.clans, family, name) or ""
        else:
            clan = raw.text("CL")
        self._spool(found, letters, family, name, clan, TYPE_ID[given] if given else told, source)

    def _spool(
        self,
        found: CleanAlignment,
        letters: npt.NDArray[np.uint8],
        family: str,
        name: str,
        clan: str,
        type_id: int,
        source: int,
    ) -> None:
        depth, columns = letters.shape
        described = {
            "family": family,
            "name": name,
            "clan": clan,
            "source": self.config.sources[source].name,
            "depth": depth,
            "columns": columns,
            "query": found.query,
            "structure": found.structure,
        }
        content = json.dumps(described, sort_keys=True).encode()
        self.spool.write(content)
        self.spool.write(letters.data)
        self.entries.append(Entry(family, name, clan, source, type_id, depth, columns, self.at, len(content)))
        self.at += len(content) + letters.size


def shuffled(letters: npt.NDArray[np.uint8], seed: int, family: str, most: int) -> npt.NDArray[np.uint8]:
    """Row 0, then the others in a random order that depends on seed and family; ``most`` rows in all, 0 for no limit.

    So any run of rows is a random sample of the alignment, and so are the rows that are stored.
    """
    others = 1 + randomness.permutation(randomness.key(seed, "rows", family), len(letters) - 1)
    order = np.concatenate([[0], others])[: most or None]
    return np.ascontiguousarray(letters[order])


def described_changes(tally: AlignmentTally) -> dict[str, int]:
    return {**{kind: tally.changed[kind] for kind in CHANGE_KINDS}, "rows_not_stored": tally.rows_not_stored}
