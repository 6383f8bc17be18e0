"""Where the raw files of a corpus come from: the `download` sections of a config in configs/data/.

    sources:
      - name: ensembl
        path: raw/ensembl/*.ncrna.fa.gz     # what `prepare` reads; a file of your own needs nothing else
        download:
          urls: [https://HOST/release-109/fasta/*/ncrna/*.ncrna.fa.gz]
          checksums: CHECKSUMS              # a file beside each, as the archive publishes it; {} stands for its name
          files:                            # or figures published elsewhere
            Some.fa.gz: {bytes: 123, md5: ...}

The other keys of a source and of the config belong to `data.prepare_config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import structured
from data.checksums import ALGORITHMS
from data.errors import DataError
from data.transfer import Expected


@dataclass
class DownloadConfig:
    urls: list[str] = field(default_factory=list)  # http, https, ftp; `*` is looked up in the archive's listings
    checksums: str = ""  # name or url of the published checksum file; {} is the name of the file it is about
    files: dict[str, Any] = field(default_factory=dict)  # name -> {bytes, sha256, sha1, md5, sum}


@dataclass
class DownloadSource:
    """A source; ``download`` is None where its files are simply expected at ``path``."""

    name: str
    path: str
    download: DownloadConfig | None = None
    expected: dict[str, Expected] = field(default_factory=dict)


def load_downloads(file: Path, only: Sequence[str] = ()) -> list[DownloadSource]:
    """The sources of a config, or those named in ``only``. Raises DataError."""
    content = structured.read_yaml(file)
    sources = []
    for i, entry in enumerate(content.get("sources") or ()):
        if not hasattr(entry, "get") or not entry.get("name") or not entry.get("path"):
            raise DataError(f"{file}: sources[{i}] must have `name` and `path`.")
        source = DownloadSource(str(entry.name), str(entry.path))
        if source.name.startswith(".") or not re.fullmatch(r"[\w.\-]+", source.name):
            raise DataError(f"{file}: sources[{i}].name {source.name!r} is no plain name; its files lie in raw/NAME/.")
        if entry.get("download") is not None:
            prefix = f"sources[{i}].download."
            layer = entry.download
            if not hasattr(layer, "get"):
                raise DataError(f"{file}: {prefix[:-1]} must be a section with `urls`, not {layer!r}.")
            source.download = structured.merge(DownloadConfig(), [(str(file), layer)], prefix)
            if not source.download.urls:
                raise DataError(f"{file}: {prefix}urls is empty; give at least one url, or leave `download` out.")
            for name, figures in source.download.files.items():
                source.expected[name] = _expected(file, f"{prefix}files.{name}", figures)
        sources.append(source)
    if not sources:
        raise DataError(f"{file}: sources is empty; list at least one entry with `name` and `path`.")
    return _chosen(file, sources, only)


def _chosen(file: Path, sources: list[DownloadSource], only: Sequence[str]) -> list[DownloadSource]:
    known = [source.name for source in sources]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}."
            raise DataError(f"{file}: there is no source {name}; {hint}")
    return [source for source in sources if not only or source.name in only]


def _expected(file: Path, key: str, figures: Any) -> Expected:
    valid = ("bytes", *ALGORITHMS)
    if not isinstance(figures, dict) or not set(figures) <= set(valid):
        raise DataError(f"{file}: {key} must be a section of {', '.join(valid)}, not {figures!r}.")
    size = figures.get("bytes")
    if size is not None and (not isinstance(size, int) or size < 0):
        raise DataError(f"{file}: {key}.bytes is {size!r}, expected a number of bytes.")
    return Expected(size, {name: str(figures[name]).lower() for name in ALGORITHMS if name in figures})
