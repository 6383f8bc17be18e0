"""Multiple sequence alignments of any supported format, one after the other, as they stand in a file.

    stockholm   any number of alignments in a file, interleaved or not                   data/formats/stockholm.py
    a3m, a2m    one alignment; capitals and `-` are its columns, lower case and `.` are insertions
    fasta       one alignment; every column counts, lower case is nothing special, gaps are `-` `.` `_` `~`

Stockholm is recognised by its first line, the others by the end of the file's name. Letters are not looked at here, nor
columns chosen: that is `data.alignment_columns`. Memory is that of one alignment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.formats.fasta import read_fasta
from data.formats.raw_alignment import RawAlignment
from data.formats.stockholm import HEADER, read_stockholm
from data.formats.text import read_pieces
from data.source_files import unzipped

OnRaw = Callable[[bytes], object]


@dataclass(frozen=True)
class Format:
    """``suffixes`` of file names; ``anchored``: capitals and `-` are the columns, everything else was inserted."""

    suffixes: tuple[str, ...]
    anchored: bool


FORMATS = {
    "stockholm": Format((".sto", ".stk", ".stockholm", ".sth", ".seed"), False),
    "a3m": Format((".a3m",), True),
    "a2m": Format((".a2m", ".a2m_msa2"), True),  # the second is what RNA-MSM's pipeline writes
    "fasta": Format((".afa", ".afasta", ".fa", ".fasta", ".fas", ".fna", ".mfa"), False),
}
SUFFIXES = tuple(suffix for known in FORMATS.values() for suffix in known.suffixes)
_RECOGNISED = max(len(HEADER), 16)  # bytes that tell a format
_BLANKS = b" \t\v\f\r\n"


def read_alignments(path: Path, kind: str = "auto", on_raw: OnRaw | None = None) -> Iterator[RawAlignment]:
    """The alignments of a file, plain or gzip. ``kind`` is a key of FORMATS or "auto".

    ``on_raw`` receives every raw byte string as it is read. Raises DataError for a file that cannot be read as that.
    """
    kind = recognise(path) if kind == "auto" else kind
    if kind == "stockholm":
        yield from read_stockholm(path, on_raw)
        return
    alignment = RawAlignment(path, 1, FORMATS[kind].anchored)
    for records in read_fasta(path, on_raw=on_raw):
        alignment.names += [header.split(None, 1)[0] if header.strip() else b"" for header in records.headers]
        alignment.rows += [body.translate(None, _BLANKS) for body in records.bodies]
    yield alignment


def recognise(path: Path) -> str:
    """The format of a file: a key of FORMATS. Raises DataError where neither content nor name tells it."""
    start = b""
    with contextlib.closing(read_pieces(path, 1 << 12)) as pieces:
        for piece in pieces:
            start = (start + piece).lstrip()
            if len(start) >= _RECOGNISED:
                break
    if start.startswith(HEADER):
        return "stockholm"
    foreign = next((name for name in ("CLUSTAL", "MUSCLE", "#NEXUS") if start.upper().startswith(name.encode())), None)
    if foreign is not None:
        raise DataError(
            f"{path}: is a {foreign.strip('#')} file, which is not read; convert it, for instance with "
            "`esl-reformat stockholm` or Biopython."
        )
    name = unzipped(path.name).lower()
    for kind, known in FORMATS.items():
        if name.endswith(known.suffixes) and kind != "stockholm":
            return kind
    raise DataError(
        f"{path}: is no Stockholm file, and its name does not tell its format; rename it to end with one of "
        f"{', '.join(SUFFIXES)}, or set the source's `format` ({', '.join(FORMATS)})."
    )
