"""What a corpus is made of: the config of `launch/prepare.py`, its checks, and the files behind each source.

Every mistake in it becomes one sentence that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data import structured
from data.config_checks import Checks
from data.errors import DataError
from data.source_files import gzipped_too, source_files

FASTA_SUFFIXES = gzipped_too(".fa", ".fasta", ".fna", ".fas", ".ffn")
# Keys that change neither the sequences nor their order nor the shards: they are not part of a corpus's identity.
_NOT_IDENTITY = ("output", "overwrite", "sources", "threads", "mmseqs", "published")


@dataclass
class SourceConfig:
    """One origin of sequences. ``path`` is a FASTA file, a folder of them, or a glob (``**`` descends)."""

    name: str = MISSING
    path: str = MISSING
    type: str | None = None  # the RNA type of all its sequences; None reads it from each header
    download: dict[str, Any] | None = None  # where its files come from: `data.download_config`


@dataclass
class ClusterConfig:
    """Which sequences belong together: `data.clusters`."""

    method: str = "none"  # none: every sequence is alone; mmseqs: easy-linclust; table: a clustering that exists
    identity: float = 0.7  # mmseqs --min-seq-id (RiNALMo)
    coverage: float = 0.8  # mmseqs -c (RiNALMo)
    options: list[str] = field(default_factory=list)  # more arguments of easy-linclust; they decide the clusters
    table: str = ""  # representative<TAB>member accessions (plain or gzip), or a corpus with a clustering
    missing: str = "error"  # a sequence the table lacks: error, or singleton (a cluster of its own)


@dataclass
class ExcludeConfig:
    """Sequences that resemble one of ``fasta`` leave the corpus: `data.leaks`."""

    fasta: str = MISSING
    identity: float = 0.8  # of the aligned part
    coverage: float = 0.8  # of the shorter of the two sequences
    action: str = "drop"  # drop, or report: keep them and list them


@dataclass
class PrepareConfig:
    """Paths are relative to the working directory. Defaults are RiNALMo's where RiNALMo says so."""

    name: str = MISSING
    sources: list[SourceConfig] = field(default_factory=list)
    output: str = ""  # "" is corpora/NAME
    overwrite: bool = False  # replace an existing output
    min_length: int = 16  # nucleotides
    max_length: int = 8192  # nucleotides; 0 is no limit
    ambiguity: str = "keep"  # R Y K M S W B D H V N: keep, drop (the sequence), N (write N instead)
    inosine: str = "keep"  # I: keep, drop, N
    other_letters: str = "drop"  # everything else, e.g. X: drop, N
    reverse_complement: str = "keep"  # merge: a sequence and its reverse complement are duplicates
    exclude: list[ExcludeConfig] = field(default_factory=list)
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    split_by: str = "cluster"  # what stays on one side: cluster (a sequence, where there are none), sequence, family
    held_out: str = ""  # a file of Rfam families, one per line: they are the validation split (split_by: family)
    seed: int = 0  # of the shuffle and of the validation split
    validation_fraction: float = 0.001  # of the distinct sequences; 0 is no validation split
    validation_minimum: int = 1000  # at least so many, but no more than a tenth of the corpus on account of it
    shard_megabytes: int = 128  # 1e6 bytes; a shard holds whole blocks and at least one
    threads: int = 0  # processes that parse, and threads of mmseqs; 0 is one per core. Changes no byte
    mmseqs: str = "mmseqs"  # the MMseqs2 program: a name on PATH, or a path
    published: dict[str, Any] = field(default_factory=dict)  # counts to compare with: what its authors report

    @property
    def output_path(self) -> Path:
        return Path(self.output or f"corpora/{self.name}")

    @property
    def grouped(self) -> bool:
        """Whether sequences must be seen together (clusters, families, leaks) before they can be put in order."""
        return self.clusters.method != "none" or self.split_by == "family" or bool(self.exclude)

    @property
    def thread_count(self) -> int:
        return self.threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else self.threads or 1

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a corpus, apart from its sources; files by name only."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_IDENTITY}
        found["clusters"]["table"] = Path(self.clusters.table).name
        found["held_out"] = Path(self.held_out).name
        for entry in found["exclude"]:
            entry["fasta"] = Path(entry["fasta"]).name
        return found


def load_prepare_config(file: str | Path | None, overrides: Sequence[str] = (), **given: Any) -> PrepareConfig:
    """Schema defaults < YAML file < ``given`` < ``key=value`` overrides. Raises DataError."""
    config: PrepareConfig = structured.load(PrepareConfig(), file, overrides, given)
    check(structured.named(file), config)
    return config


def check(where: str, config: PrepareConfig) -> None:
    """Values that are of the right type but cannot work, each with a sentence (DataError)."""
    checks, clusters = Checks(where), config.clusters
    checks.one_of(
        (
            ("ambiguity", config.ambiguity, ("keep", "drop", "N")),
            ("inosine", config.inosine, ("keep", "drop", "N")),
            ("other_letters", config.other_letters, ("drop", "N")),
            ("reverse_complement", config.reverse_complement, ("keep", "merge")),
            ("split_by", config.split_by, ("cluster", "sequence", "family")),
            ("clusters.method", clusters.method, ("none", "mmseqs", "table")),
            ("clusters.missing", clusters.missing, ("error", "singleton")),
            *((f"exclude[{i}].action", entry.action, ("drop", "report")) for i, entry in enumerate(config.exclude)),
        )
    )
    for i, entry in enumerate(config.exclude):
        checks.fractions(f"exclude[{i}]", entry, ("identity", "coverage"))
        if not Path(entry.fasta).is_file():
            raise DataError(f"{where}: exclude: {entry.fasta} does not exist; download it or mend the path.")
    checks.clusters(clusters)
    if config.held_out and config.split_by != "family":
        checks.refuse("split_by", config.split_by, "family, since held_out lists families")
    checks.file("held_out", config.held_out)
    checks.name(config.name)
    checks.at_least(config, {"min_length": 1, "validation_minimum": 0, "threads": 0, "shard_megabytes": 1})
    checks.limit(config, "max_length", "min_length")
    checks.validation_fraction(config.validation_fraction)
    checks.sources(config.sources)


def files_of(source: SourceConfig) -> list[Path]:
    """The files of a source, never none (`source_files`)."""
    return source_files(source.name, source.path, FASTA_SUFFIXES)


def identity_key(config: PrepareConfig, files: list[list[Path]]) -> str:
    """Tells whether a partial build belongs to this config and these very files (path, size, modification time)."""

    def seen(path: Path) -> list[Any]:
        return [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]

    described = [
        [source.name, source.type, [seen(path) for path in paths]]
        for source, paths in zip(config.sources, files, strict=True)
    ]
    others = [config.clusters.table, config.held_out, *(entry.fasta for entry in config.exclude)]
    more = [seen(Path(path)) for path in others if path]
    return json.dumps({"options": config.identity(), "sources": described, "more": more}, sort_keys=True)
