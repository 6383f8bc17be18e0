"""What a corpus of reactivity profiles is made of: the config of `launch/prepare.py reactivity`, and its checks.

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
from data.formats import openvaccine, rdat, reactivity_table
from data.prepare_config import FASTA_SUFFIXES, ClusterConfig
from data.reactivity_filter import CLASSES
from data.source_files import is_named, source_files

SUFFIXES = (*reactivity_table.SUFFIXES, *rdat.SUFFIXES, *openvaccine.SUFFIXES)
KIND = "reactivity"
MOST_CHANNELS = 32
# Keys that change neither the samples nor their order nor the shards: they are not part of a corpus's identity.
_NOT_IDENTITY = ("kind", "output", "overwrite", "sources", "threads", "mmseqs", "published")


@dataclass
class ReactivitySource:
    """One origin of profiles. ``path`` is a file, a folder of them, or a glob; formats are told by the suffix."""

    name: str = MISSING
    path: str = MISSING
    experiments: dict[str, str] = field(default_factory=dict)  # experiment -> channel, where names do not tell it
    sequences: str = ""  # a table with sequence_id and sequence, for files that hold ids only (pseudo-labels)
    signal_to_noise: float | None = None  # of every profile of this source, in place of what the file says
    drop_datasets: list[str] = field(default_factory=list)  # rows whose dataset_name starts so leave,
    keep_datasets: list[str] = field(default_factory=list)  # unless it starts with one of these
    download: dict[str, Any] | None = None  # where its files come from: `data.download_config`


@dataclass
class SplitConfig:
    """Which samples are the validation split: one of ``folds`` folds of the samples of the classes ``of``."""

    by: str = "sequence"  # sequence: stratified by library (spec RibonanzaNet 4); cluster: whole clusters
    folds: int = 6  # 0 for no validation split
    fold: int = 0
    of: list[str] = field(default_factory=lambda: ["clean"])


@dataclass
class ReactivityConfig:
    """Paths are relative to the working directory. Defaults are RibonanzaNet's."""

    name: str = MISSING
    kind: str = KIND
    sources: list[ReactivitySource] = field(default_factory=list)
    channels: list[str] = field(default_factory=lambda: ["2A3", "DMS"])  # this order everywhere in the corpus
    output: str = ""  # "" is corpora/NAME
    overwrite: bool = False  # replace an existing output
    min_length: int = 1  # nucleotides
    max_length: int = 0  # nucleotides; 0 is no limit
    ambiguity: str = "keep"  # R Y K M S W B D H V N: keep, drop (the sequence), N (write N instead)
    other_letters: str = "drop"  # everything else, e.g. X: drop, N
    unpaired: str = "keep"  # sequences without a profile in every channel: keep, drop
    threshold: float = 1.0  # of signal-to-noise, between the classes clean, dirty and noisy
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0  # of the shuffle and of the folds
    shard_megabytes: int = 128  # 1e6 bytes; a shard holds whole blocks and at least one
    threads: int = 0  # threads of mmseqs; 0 is one per core. Changes no byte
    mmseqs: str = "mmseqs"  # the MMseqs2 program: a name on PATH, or a path
    published: dict[str, Any] = field(default_factory=dict)  # counts to compare with: what its authors report

    @property
    def output_path(self) -> Path:
        return Path(self.output or f"corpora/{self.name}")

    @property
    def thread_count(self) -> int:
        return self.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a corpus, apart from its sources; files by name only."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_IDENTITY}
        found["clusters"]["table"] = Path(self.clusters.table).name
        return found


def load_reactivity_config(file: str | Path | None, overrides: Sequence[str] = (), **given: Any) -> ReactivityConfig:
    """Schema defaults < YAML file < ``given`` < ``key=value`` overrides. Raises DataError."""
    config: ReactivityConfig = structured.load(ReactivityConfig(), file, overrides, given)
    check(structured.named(file), config)
    return config


def check(where: str, config: ReactivityConfig) -> None:
    """Values that are of the right type but cannot work, each with a sentence (DataError)."""
    checks, clusters, split = Checks(where), config.clusters, config.split
    checks.one_of(
        (
            ("kind", config.kind, (KIND,)),
            ("ambiguity", config.ambiguity, ("keep", "drop", "N")),
            ("other_letters", config.other_letters, ("drop", "N")),
            ("unpaired", config.unpaired, ("keep", "drop")),
            ("split.by", split.by, ("sequence", "cluster")),
            ("clusters.method", clusters.method, ("none", "mmseqs", "table")),
            ("clusters.missing", clusters.missing, ("error", "singleton")),
            *((f"split.of[{i}]", name, CLASSES) for i, name in enumerate(split.of)),
        )
    )
    checks.name(config.name)
    if not config.channels or len(config.channels) > MOST_CHANNELS or len(set(config.channels)) < len(config.channels):
        checks.refuse("channels", list(config.channels), f"1 to {MOST_CHANNELS} different names")
    if split.by == "cluster" and clusters.method == "none":
        checks.refuse("clusters.method", clusters.method, "mmseqs or table, since split.by is cluster")
    checks.clusters(clusters)
    if split.folds == 1 or split.folds < 0:
        checks.refuse("split.folds", split.folds, "2 or more, or 0 for no validation split")
    if split.folds and not 0 <= split.fold < split.folds:
        checks.refuse("split.fold", split.fold, f"a fold from 0 to {split.folds - 1}")
    if split.folds and not split.of:
        checks.refuse("split.of", list(split.of), "at least one of " + ", ".join(CLASSES))
    checks.at_least(config, {"min_length": 1, "threads": 0, "shard_megabytes": 1})
    checks.limit(config, "max_length", "min_length")
    checks.sources(config.sources)
    for i, source in enumerate(config.sources):
        channels = (
            (f"sources[{i}].experiments.{given}", to, config.channels) for given, to in source.experiments.items()
        )
        checks.one_of(channels)
        checks.file(f"sources[{i}].sequences", source.sequences)


def files_of(source: ReactivitySource) -> list[Path]:
    """The files of a source, never none (`source_files`), each with a suffix that tells its format."""
    found = source_files(source.name, source.path, SUFFIXES)
    for one in found:
        if not is_named(one, SUFFIXES):
            known = ", ".join(SUFFIXES)
            if is_named(one, FASTA_SUFFIXES):
                raise DataError(
                    f"source {source.name}: {one}: holds sequences (FASTA), a table of profiles is wanted: {known}; "
                    "sequences alone are prepared by `launch/prepare.py --from`."
                )
            raise DataError(
                f"source {source.name}: {one}: the format is told by the suffix, one of {known}; rename the file, or "
                "convert it."
            )
    return found


def identity_key(config: ReactivityConfig, files: list[list[Path]]) -> str:
    """Tells whether a partial build belongs to this config and these very files (path, size, modification time)."""

    def seen(path: Path) -> list[Any]:
        return [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]

    described = [
        [source_options(source), [seen(path) for path in paths]]
        for source, paths in zip(config.sources, files, strict=True)
    ]
    more = [seen(Path(path)) for path in (config.clusters.table, *(s.sequences for s in config.sources)) if path]
    options = config.identity()
    return json.dumps({"kind": KIND, "options": options, "sources": described, "more": more}, sort_keys=True)


def source_options(source: ReactivitySource) -> dict[str, Any]:
    """What decides how a source is read, apart from its files."""
    found = {k: v for k, v in dataclasses.asdict(source).items() if k not in ("path", "download")}
    found["sequences"] = Path(source.sequences).name
    return found
