"""An alignment as it stands in a file: what the readers of all formats return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RawAlignment:
    """``number`` of the alignment in its file, from 1; ``anchored``: capitals and `-` are the columns of every row.

    ``names`` and ``rows`` in the order of the file; names may repeat. ``features``: Stockholm's `#=GF` lines by their
    two letters (the first of each); ``marks``: its `#=GC` lines (`RF`, `SS_cons`), one character per column.
    """

    path: Path
    number: int
    anchored: bool
    names: list[bytes] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    features: dict[str, bytes] = field(default_factory=dict)
    marks: dict[str, bytes] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The alignment for a message: its file, its number and its name."""
        name = self.text("AC") or self.text("ID")
        return f"{self.path}, alignment {self.number}" + f" ({name})" * bool(name)

    def text(self, feature: str) -> str:
        """A feature as text, "" where there is none."""
        return decoded(self.features.get(feature, b""))


def decoded(text: bytes) -> str:
    """Author and sequence names are of any encoding: UTF-8 where it is that, else Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
