"""What an alignment is called, and lists of families: those to leave out, those to hold out, and clans.

A family's id is its Stockholm accession (`#=GF AC`), else its name (`#=GF ID`), else the name of its file; characters
other than letters, digits, `_`, `-` and `+` become `_`, since the id also names the members of a shard. Lists may give
an id or a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from data.errors import DataError
from data.formats.alignment import SUFFIXES
from data.formats.raw_alignment import RawAlignment, decoded
from data.formats.text import read_lines
from data.source_files import unzipped

_LONGEST = 80  # characters: a name in a USTAR header has 100
_OTHER = re.compile(r"[^A-Za-z0-9_+\-]")

Found = TypeVar("Found")


def family_of(raw: RawAlignment) -> str:
    """The id. Raises DataError where it is too long to name a member of a shard."""
    name = raw.text("AC") or raw.text("ID")
    if not name:
        stem = unzipped(raw.path.name)
        suffix = next((suffix for suffix in SUFFIXES if stem.lower().endswith(suffix)), raw.path.suffix)
        name = stem[: len(stem) - len(suffix)] if suffix and len(stem) > len(suffix) else stem
        name += f"-{raw.number}" * (raw.number > 1)
    if len(name) > _LONGEST:
        raise DataError(f"{raw.where}: its name has {len(name)} characters, at most {_LONGEST} work; shorten it.")
    return plain(name)


def plain(name: str) -> str:
    return _OTHER.sub("_", name)


def read_families(path: str) -> dict[str, int]:
    """Ids or names (the first word of each line, `#` starts a comment), each with its line. DataError for none."""
    listed: dict[str, int] = {}
    for number, line in _lines(path):
        if words := line.split("#")[0].split():
            listed.setdefault(plain(words[0]), number)
    if not listed:
        raise DataError(f"{path}: lists no family; write one per line, as RF00001.")
    return listed


def read_clans(path: str) -> dict[str, str]:
    """Member (id or name) -> clan, from lines of a clan and then its members: Rfam.clanin, or clan_membership.txt."""
    clans: dict[str, str] = {}
    for number, line in _lines(path):
        clan, *members = line.split("#")[0].split() or [""]
        if clan and not members:
            raise DataError(f"{path}, line {number}: expected a clan and its families but found {line[:40]!r}.")
        for member in map(plain, members):
            if clans.setdefault(member, clan) != clan:
                raise DataError(
                    f"{path}, line {number}: {member} is in clan {clan} and in {clans[member]}; a family has one clan."
                )
    if not clans:
        raise DataError(f"{path}: lists no clan; write a clan and its families on each line, as in Rfam.clanin.")
    return clans


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, plain or gzip."""
    yield from enumerate((decoded(line) for lines in read_lines(Path(path)) for line in lines), 1)


def by_family(listed: dict[str, Found], family: str, name: str) -> Found | None:
    """What a list says of a family, by its id or else its name."""
    return listed.get(family, listed.get(plain(name)))
