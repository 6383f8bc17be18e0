"""What a corpus is made of: the config of `launch/prepare.py`, its checks, and the files behind each source.

Every mistake in it becomes one sentence that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import DataError
from data.rna_types import TYPES

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".fas", ".ffn")
# Keys that change neither the sequences nor their order nor the shards: they are not part of a corpus's identity.
_NOT_IDENTITY = ("output", "overwrite", "sources")


@dataclass
class SourceConfig:
    """One origin of sequences. ``path`` is a FASTA file, a folder of them, or a glob (``**`` descends)."""

    name: str = MISSING
    path: str = MISSING
    type: str | None = None  # the RNA type of all its sequences; None reads it from each header


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
    seed: int = 0  # of the shuffle and of the validation split
    validation_fraction: float = 0.001  # of the distinct sequences; 0 is no validation split
    validation_minimum: int = 1000  # at least so many, but no more than a tenth of the corpus on account of it
    shard_megabytes: int = 128  # 1e6 bytes; a shard holds whole blocks and at least one

    @property
    def output_path(self) -> Path:
        return Path(self.output or f"corpora/{self.name}")

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a corpus, apart from its sources."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_IDENTITY}


def load_prepare_config(file: str | Path | None, overrides: Sequence[str] = (), **given: Any) -> PrepareConfig:
    """Schema defaults < YAML file < ``given`` < ``key=value`` overrides. Raises DataError."""
    layers: list[tuple[str, DictConfig]] = []
    if file is not None:
        layers.append((str(file), _read_yaml(Path(file))))
    if given:
        layers.append(("the command line", OmegaConf.create(given)))
    config = OmegaConf.structured(PrepareConfig)
    where = "the command line"
    for where, layer in layers:
        _check_keys(where, layer)
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise DataError(_sentence(where, error)) from error
    for override in overrides:
        config = _override(config, override)
    _check_missing(str(file) if file is not None else where, config)
    try:
        prepared = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise DataError(_sentence(where, error)) from error
    assert isinstance(prepared, PrepareConfig)
    _check_values(str(file) if file is not None else "the command line", prepared)
    return prepared


def source_files(source: SourceConfig) -> list[Path]:
    """The files of a source, sorted by path so that no directory's listing order matters. Never empty."""
    path = Path(source.path)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file() and _is_fasta(p)]
        wanted = "no file named " + ", ".join("*" + suffix + "[.gz]" for suffix in FASTA_SUFFIXES)
    elif glob.has_magic(source.path) and not path.exists():
        found = [Path(p) for p in glob.glob(source.path, recursive=True) if Path(p).is_file()]
        wanted = "nothing matches this pattern"
    elif path.is_file():
        return [path]
    else:
        raise DataError(f"source {source.name}: {source.path} does not exist; download it or mend `path`.")
    if not found:
        raise DataError(f"source {source.name}: {source.path}: {wanted}; download the files or mend `path`.")
    return sorted(set(found), key=lambda p: p.as_posix())


def _is_fasta(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return not name.startswith(".") and name.endswith(FASTA_SUFFIXES)


def _read_yaml(file: Path) -> DictConfig:
    try:
        layer = OmegaConf.load(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path of the config.") from error
    except Exception as error:  # yaml's errors share no public base in OmegaConf
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: is not valid YAML ({reason}).") from error
    if not isinstance(layer, DictConfig):
        raise DataError(f"{file}: expected `key: value` lines at the top, found a list or a single value.")
    return layer


def _nearest(key: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    match = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"valid names: {', '.join(valid)}."


def _check_keys(where: str, layer: DictConfig) -> None:
    valid = [f.name for f in fields(PrepareConfig)]
    for key in layer:
        if key not in valid:
            raise DataError(f"{where}: unknown key {str(key)!r}; {_nearest(str(key), valid)}")
    if "sources" not in layer:
        return
    if not isinstance(layer.sources, ListConfig):
        raise DataError(f"{where}: sources must be a list of entries with `name` and `path`.")
    valid = [f.name for f in fields(SourceConfig)]
    for i, source in enumerate(layer.sources):
        if not isinstance(source, DictConfig):
            raise DataError(f"{where}: sources[{i}] must have `name` and `path`, found {source!r}.")
        for key in source:
            if key not in valid:
                raise DataError(f"{where}: unknown key 'sources[{i}].{key}'; {_nearest(str(key), valid)}")


def _override(config: Any, override: str) -> Any:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise DataError(f"the command line: {override!r} is not an override; write key=value, e.g. min_length=20.")
    head = key.split(".")[0].split("[")[0]
    valid = [f.name for f in fields(PrepareConfig)]
    if head not in valid:
        raise DataError(f"the command line: unknown key {key!r}; {_nearest(head, valid)}")
    number = re.match(r"sources[.\[](\d+)", key)
    if number and int(number[1]) >= len(config.sources):
        raise DataError(f"the command line: {override!r}: there are {len(config.sources)} sources, numbered from 0.")
    try:
        value = OmegaConf.from_dotlist([override])
        OmegaConf.update(config, key, OmegaConf.select(value, key) if head != "sources" else _last(value), merge=True)
    except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
        raise DataError(_sentence(f"the command line: {override!r}", error)) from error
    return config


def _last(value: Any) -> Any:
    """The one leaf of ``sources.0.path=x``, which OmegaConf reads as nested dictionaries."""
    while isinstance(value, DictConfig):
        value = next(iter(value.values()))
    return value


def _check_missing(where: str, config: Any) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise DataError(f"{where}: {missing[0]} has no value; set it in the file or as {missing[0]}=VALUE.")
    if not config.sources:
        raise DataError(f"{where}: sources is empty; list at least one entry with `name` and `path`.")


def _check_values(where: str, config: PrepareConfig) -> None:
    def refuse(key: str, value: object, expected: str) -> None:
        raise DataError(f"{where}: {key} is {value!r}, expected {expected}.")

    for key, allowed in (
        ("ambiguity", ("keep", "drop", "N")),
        ("inosine", ("keep", "drop", "N")),
        ("other_letters", ("drop", "N")),
    ):
        if getattr(config, key) not in allowed:
            refuse(key, getattr(config, key), "one of " + ", ".join(allowed))
    if not config.name or config.name.startswith(".") or "/" in config.name:
        refuse("name", config.name, "a plain name without slashes")
    if config.min_length < 1:
        refuse("min_length", config.min_length, "a length of at least 1")
    if config.max_length and config.max_length < config.min_length:
        refuse("max_length", config.max_length, f"0 (no limit) or at least min_length ({config.min_length})")
    if not 0 <= config.validation_fraction < 1:
        refuse("validation_fraction", config.validation_fraction, "a fraction from 0 to below 1")
    if config.validation_minimum < 0:
        refuse("validation_minimum", config.validation_minimum, "a count of 0 or more")
    if config.shard_megabytes < 1:
        refuse("shard_megabytes", config.shard_megabytes, "at least 1")
    names = [source.name for source in config.sources]
    for i, source in enumerate(config.sources):
        if names.index(source.name) != i:
            refuse(f"sources[{i}].name", source.name, "a name that no other source has")
        if source.type is not None and source.type not in TYPES:
            raise DataError(
                f"{where}: sources[{i}].type {source.type!r} is no RNA type; {_nearest(source.type, TYPES)}"
            )


def _sentence(where: str, error: Exception) -> str:
    reason = " ".join(str(error).split("\n")[0].split()).rstrip(".?")
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    return f"{where}: {key}: {reason}." if key else f"{where}: {reason}."


def identity_key(config: PrepareConfig, files: list[list[Path]]) -> str:
    """Tells whether a partial build belongs to this config and these very files (path, size, modification time)."""
    described = [
        [source.name, source.type, [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]]
        for source, paths in zip(config.sources, files, strict=True)
    ]
    return json.dumps({"options": config.identity(), "sources": described}, sort_keys=True)
