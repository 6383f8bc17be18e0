"""Checks that the configurations of all kinds of corpora share; each raises a DataError that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.errors import DataError
from data.rna_types import TYPES


class Checks:
    """Of one configuration, which ``where`` names: its file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, key: str, value: object, expected: str) -> NoReturn:
        raise DataError(f"{self.where}: {key} is {value!r}, expected {expected}.")

    def one_of(self, keys: Iterable[tuple[str, object, Sequence[str]]]) -> None:
        """Of each (key, value, allowed values)."""
        for key, value, allowed in keys:
            if value not in allowed:
                self.refuse(key, value, "one of " + ", ".join(allowed))

    def at_least(self, config: Any, least: dict[str, int]) -> None:
        """Of each key its least value."""
        for key, value in least.items():
            if getattr(config, key) < value:
                self.refuse(key, getattr(config, key), f"at least {value}")

    def limit(self, config: Any, most: str, least: str, none: str = "no limit") -> None:
        """``most`` is 0, which is no limit, or not below ``least``; both are keys."""
        value, bound = getattr(config, most), getattr(config, least)
        if value and value < bound:
            self.refuse(most, value, f"0 ({none}) or at least {least} ({bound})")

    def fractions(self, section: str, config: Any, keys: Sequence[str]) -> None:
        for key in keys:
            if not 0 < getattr(config, key) <= 1:
                self.refuse(f"{section}.{key}", getattr(config, key), "a fraction above 0 and up to 1")

    def validation_fraction(self, value: float) -> None:
        if not 0 <= value < 1:
            self.refuse("validation_fraction", value, "a fraction from 0 to below 1")

    def name(self, name: str) -> None:
        if not name or name.startswith(".") or "/" in name:
            self.refuse("name", name, "a plain name without slashes")

    def file(self, key: str, path: str) -> None:
        """If one is given, it is there."""
        if path and not Path(path).is_file():
            raise DataError(f"{self.where}: {key}: {path} does not exist; mend the path.")

    def clusters(self, clusters: Any) -> None:
        if (clusters.method == "table") != bool(clusters.table):
            raise DataError(
                f"{self.where}: clusters.table is the clustering of clusters.method=table: give both, or neither."
            )
        if clusters.table and not Path(clusters.table).exists():
            raise DataError(f"{self.where}: clusters.table: {clusters.table} does not exist; mend the path.")
        self.fractions("clusters", clusters, ("identity", "coverage"))

    def sources(self, sources: Sequence[Any]) -> None:
        """There are some, each with a name of its own and, if it has a type at all, a type of RNA."""
        if not sources:
            raise DataError(f"{self.where}: sources is empty; list at least one entry with `name` and `path`.")
        names = [source.name for source in sources]
        for i, source in enumerate(sources):
            if names.index(source.name) != i:
                self.refuse(f"sources[{i}].name", source.name, "a name that no other source has")
            given = getattr(source, "type", None)
            if given is not None and given not in TYPES:
                near = difflib.get_close_matches(given, TYPES, n=1, cutoff=0.0)[0]
                raise DataError(f"{self.where}: sources[{i}].type {given!r} is no RNA type; did you mean {near!r}?")
