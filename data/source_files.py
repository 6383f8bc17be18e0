"""The files behind the path of a source."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError


def source_files(name: str, path: str, suffixes: Sequence[str]) -> list[Path]:
    """Sorted, so that no directory's listing order matters. Never empty. Raises DataError if there is nothing.

    ``path``: a file, a folder, of which those files count whose names end in one of ``suffixes`` and begin with no dot,
    or a glob (``**`` descends). ``name``: of the source.
    """
    place = Path(path)
    if place.is_dir():
        found = [p for p in place.iterdir() if p.is_file() and is_named(p, suffixes) and not p.name.startswith(".")]
        wanted = f"no file named {_patterns(suffixes)}{_below(place, suffixes)}"
    elif glob.has_magic(path) and not place.exists():
        found = [Path(p) for p in glob.glob(path, recursive=True) if Path(p).is_file()]
        wanted = "nothing matches this pattern"
    elif place.is_file():
        return [place]
    else:
        raise DataError(f"source {name}: {path} does not exist; download it or mend `path`.")
    if not found:
        raise DataError(f"source {name}: {path}: {wanted}; download the files or mend `path`.")
    return sorted(set(found), key=lambda p: p.as_posix())


def is_named(path: Path, suffixes: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def unzipped(name: str) -> str:
    """The name of a file without the suffix of gzip, if it has it."""
    return name[: -len(".gz")] if is_gzip(name) else name


def is_gzip(name: str) -> bool:
    return name.lower().endswith(".gz")


def gzipped_too(*suffixes: str) -> tuple[str, ...]:
    return suffixes + tuple(suffix + ".gz" for suffix in suffixes)


def _patterns(suffixes: Sequence[str]) -> str:
    plain = [suffix for suffix in suffixes if not suffix.endswith(".gz")]
    return ", ".join(f"*{suffix}{'[.gz]' * (suffix + '.gz' in suffixes)}" for suffix in plain)


def _below(folder: Path, suffixes: Sequence[str]) -> str:
    """How to reach files in folders of the folder, if it has any."""
    if not any(path.is_dir() for path in folder.iterdir()):
        return ""
    return f" (folders in it are not looked into; a pattern as `path` is: {folder}/**/*{suffixes[0]})"
