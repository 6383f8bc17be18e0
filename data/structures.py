"""Secondary structures of sequences, from a file in dot-bracket form: for objectives that mask paired nucleotides.

    >name
    GGGAAACCC
    (((...)))            what follows after a blank, such as an energy, is ignored

Such files come from structure databases and from prediction programs. A structure is found by its sequence, so the file
serves every corpus and its order does not matter. Kept in memory: 20 bytes per sequence and one per nucleotide.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.dot_bracket import partners, restricted
from data.errors import DataError
from data.formats.text import read_lines

_CANONICAL = bytes.maketrans(b"acgturykmswbdhvnixT", b"ACGUURYKMSWBDHVNIXU")
_GAPS = b".-"


class StructureTable:
    """``count`` structures; ``fingerprint``: 64 hex digits of what it holds, in any order of records.

    Where a sequence stands in the file several times, its first structure counts.
    """

    def __init__(self, structures: dict[bytes, bytes], fingerprint: str) -> None:
        self._structures, self.fingerprint = structures, fingerprint

    @classmethod
    def read(cls, path: Path) -> StructureTable:
        """Read a file, plain or gzip.

        Raises DataError naming file and line for a record of another form, lengths that differ, or brackets that do
        not pair.
        """
        structures: dict[bytes, bytes] = {}
        record: list[bytes] = []
        number = 0
        for lines in read_lines(path):
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                record.append(line.strip())
                if len(record) == 3:
                    letters, structure = _parse(record, f"{path}, line {number}")
                    structures.setdefault(_key(letters), structure)
                    record = []
        if record:
            raise DataError(f"{path}, line {number}: the last record is not complete; it must have three lines.")
        if not structures:
            raise DataError(f"{path}: holds no structure.")
        digest = hashlib.sha256(b"".join(key + value for key, value in sorted(structures.items()))).hexdigest()
        return cls(structures, digest)

    @property
    def count(self) -> int:
        return len(self._structures)

    def of(self, letters: npt.NDArray[np.uint8]) -> bytes | None:
        """The structure of a normalised sequence, one character per nucleotide; None if the file has none."""
        return self._structures.get(_key(letters.tobytes()))


class WithStructures:
    """A corpus (`data.index.Corpus`) that knows the structures of its sequences as well."""

    has_structures = True

    def __init__(self, corpus: Any, table: StructureTable) -> None:
        self._corpus, self._table = corpus, table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def structures(self, ids: npt.NDArray[np.int64]) -> list[bytes | None]:
        """Dot-bracket structure of each sample, None where there is none."""
        return [self._table.of(letters) for letters in self._corpus.letters(ids)]


def _parse(record: list[bytes], where: str) -> tuple[bytes, bytes]:
    """(letters, structure) of the three lines of a record, without gaps. ``where`` names the last of the lines."""
    name, letters, structure = record[0], record[1].translate(_CANONICAL), record[2].split()[0]
    shown = name[:60].decode("ascii", "replace")
    if not name.startswith(b">"):
        raise DataError(f"{where}: three lines above should be `>name`, but it is {shown!r}.")
    if len(letters) != len(structure):
        raise DataError(f"{where} ({shown}): {len(letters)} letters, but a structure of {len(structure)} characters.")
    text = structure.decode("latin-1")
    try:
        partners(text)
    except ValueError as error:
        raise DataError(f"{where} ({shown}): {error}.") from error
    kept = np.flatnonzero(~np.isin(np.frombuffer(letters, dtype=np.uint8), np.frombuffer(_GAPS, dtype=np.uint8)))
    if len(kept) < len(letters):
        letters, text = letters.translate(None, _GAPS), restricted(text, kept)
    return letters, text.encode("latin-1")


def _key(letters: bytes) -> bytes:
    return xxhash.xxh3_128_digest(letters)
