"""What a corpus of alignments is made of: its config, the checks of it, and the files behind each source.

kind: alignments
name: rfam
sources:
  - {name: seed, path: raw/rfam_seed/Rfam.seed.gz}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data import structured
from data.alignment_columns import COLUMNS, QUERIES, ColumnRules
from data.config_checks import Checks
from data.formats.alignment import FORMATS, SUFFIXES
from data.source_files import gzipped_too, source_files

KIND = "alignments"
# Keys that change no byte of the shards.
_NOT_IDENTITY = ("kind", "output", "overwrite", "sources", "published")


@dataclass
class AlignmentSource:
    """One origin of alignments. ``path`` is a file, a folder of files, or a glob (``**`` descends)."""

    name: str = MISSING
    path: str = MISSING
    format: str = "auto"  # stockholm, a3m, a2m, fasta; auto: by content and name
    type: str | None = None  # the RNA type of all its families; None takes it from Stockholm's `#=GF TP`
    download: dict[str, Any] | None = None  # where its files come from: `data.download_config`


@dataclass
class AlignmentConfig:
    """Paths are relative to the working directory."""

    kind: str = KIND
    name: str = MISSING
    sources: list[AlignmentSource] = field(default_factory=list)
    output: str = ""  # "" is corpora/NAME
    overwrite: bool = False  # replace an existing output
    columns: str = "rf"  # match columns of Stockholm and FASTA: rf (without an RF line: gaps), gaps, all
    max_gaps: float = 0.5  # where gaps decide: columns with a larger share of gaps are dropped
    query: str = "first"  # row 0 of those, whose gap columns are dropped: first, random; none keeps the consensus frame
    min_columns: int = 1  # after that; narrower alignments are dropped
    max_columns: int = 0  # wider ones too; 0 is no limit (a recipe crops)
    min_depth: int = 2  # rows; of one row, column attention learns nothing
    max_rows: int = 8192  # rows stored of an alignment, the query and a random choice; 0 is all of them
    exclude: str = ""  # a file of families to leave out, one per line
    split_by: str = "family"  # what is never in both splits: family, clan
    clans: str = ""  # a file of clans (Rfam.clanin or clan_membership.txt); "" takes Stockholm's `#=GF CL`
    held_out: str = ""  # a file of families: they, and their clans with split_by clan, are the validation split
    validation_fraction: float = 0.02  # of the alignments; 0 is no validation split
    seed: int = 0  # of the order of alignments and rows, of a random query and of the validation split
    shard_megabytes: int = 128  # 1e6 bytes; a shard holds at least one alignment
    published: dict[str, Any] = field(default_factory=dict)  # counts to compare with: what its authors report

    @property
    def output_path(self) -> Path:
        return Path(self.output or f"corpora/{self.name}")

    @property
    def rules(self) -> ColumnRules:
        return ColumnRules(self.columns, self.max_gaps, self.query, self.seed)

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a corpus, apart from its sources; files by name only."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_IDENTITY}
        return {**found, **{key: Path(found[key]).name for key in ("exclude", "clans", "held_out")}}


def load_alignment_config(file: str | Path | None, overrides: Sequence[str] = (), **given: Any) -> AlignmentConfig:
    """Schema defaults < YAML file < ``given`` < ``key=value`` overrides. Raises DataError."""
    config: AlignmentConfig = structured.load(AlignmentConfig(), file, overrides, given)
    check(structured.named(file), config)
    return config


def check(where: str, config: AlignmentConfig) -> None:
    """Values that are of the right type but cannot work, each with a sentence (DataError)."""
    checks, formats = Checks(where), ("auto", *FORMATS)
    checks.one_of(
        (
            ("kind", config.kind, (KIND,)),
            ("columns", config.columns, COLUMNS),
            ("query", config.query, QUERIES),
            ("split_by", config.split_by, ("family", "clan")),
            *((f"sources[{i}].format", source.format, formats) for i, source in enumerate(config.sources)),
        )
    )
    for key in ("exclude", "clans", "held_out"):
        checks.file(key, getattr(config, key))
    checks.name(config.name)
    if not 0 <= config.max_gaps <= 1:
        checks.refuse("max_gaps", config.max_gaps, "a share from 0 to 1")
    checks.validation_fraction(config.validation_fraction)
    checks.at_least(config, {"min_columns": 1, "min_depth": 1, "shard_megabytes": 1})
    checks.limit(config, "max_columns", "min_columns")
    checks.limit(config, "max_rows", "min_depth", "all rows")
    checks.sources(config.sources)


def files_of(source: AlignmentSource) -> list[Path]:
    """The files of a source, never none (`source_files`)."""
    return source_files(source.name, source.path, gzipped_too(*SUFFIXES))


def identity_key(config: AlignmentConfig, files: list[list[Path]]) -> str:
    """Tells whether a partial build belongs to this config and these very files (path, size, modification time)."""
    listed = [[Path(path) for path in (config.exclude, config.clans, config.held_out) if path]]
    seen = [[[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths] for paths in files + listed]
    sources = [[source.name, source.format, source.type] for source in config.sources]
    return json.dumps({"options": config.identity(), "sources": sources, "files": seen}, sort_keys=True)
