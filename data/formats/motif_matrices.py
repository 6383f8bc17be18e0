"""Position matrices of motifs: ATtRACT's pwm.txt and MEME's text format, and their consensus in IUPAC codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.alphabet import NUCLEOTIDES
from data.errors import DataError

# What each letter stands for, alphabetically.
IUPAC_LETTERS = {
    **{letter: letter for letter in NUCLEOTIDES},
    **{"R": "AG", "Y": "CU", "S": "CG", "W": "AU", "K": "GU", "M": "AC"},
    **{"B": "CGU", "D": "AGU", "H": "ACU", "V": "ACG", "N": "ACGU"},
}
_CODE = {letters: code for code, letters in IUPAC_LETTERS.items()}
_MEME_ALPHABET = re.compile(r"ALPHABET\s*=\s*(\S+)")
_MEME_WIDTH = re.compile(r"w\s*=\s*(\d+)")


@dataclass(frozen=True)
class Matrix:
    name: str
    line: int  # where it begins in its file
    rows: tuple[tuple[float, ...], ...]  # per position the probabilities of A, C, G, U


def consensus(matrix: Matrix, threshold: float) -> str:
    """Per position the IUPAC code of the letters with at least ``threshold``; of the likeliest if none reaches it."""
    found = []
    for row in matrix.rows:
        letters = "".join(letter for letter, p in zip(NUCLEOTIDES, row, strict=True) if p >= min(threshold, max(row)))
        found.append(_CODE[letters])
    return "".join(found)


def read_pwm(path: Path, lines: list[str]) -> Iterator[Matrix]:
    """ATtRACT's pwm.txt. Raises DataError for rows that are no probabilities or not as many as the header says."""
    starts = [number for number, line in enumerate(lines) if line.startswith(">")]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        fields = lines[start][1:].split()
        rows = [number for number in range(start + 1, stop) if lines[number].strip()]
        if len(fields) != 2 or not fields[1].isdigit():
            raise DataError(
                f"{path}, line {start + 1}: expected `>matrix_id<TAB>length`, not {lines[start]!r}; correct the line."
            )
        if len(rows) != int(fields[1]):
            raise DataError(
                f"{path}, line {start + 1}: the matrix {fields[0]} has {len(rows)} rows, but its header says "
                f"{fields[1]}; get the file again."
            )
        yield Matrix(fields[0], start + 1, tuple(_row(path, number, lines[number]) for number in rows))


def read_meme(path: Path, lines: list[str]) -> Iterator[Matrix]:
    """MEME's minimal and full text format: what stands after each `letter-probability matrix:`."""
    alphabet = next((match[1] for line in lines if (match := _MEME_ALPHABET.search(line))), None)
    if alphabet not in ("ACGU", "ACGT"):
        raise DataError(f"{path}: the alphabet is {alphabet}, expected a line `ALPHABET= ACGU` or ACGT; correct it.")
    name = ""
    for number, line in enumerate(lines):
        if line.startswith("MOTIF"):
            name = " ".join(line.split()[1:2])
        elif line.startswith("letter-probability matrix"):
            width = _MEME_WIDTH.search(line)
            rows = []
            for place in range(number + 1, len(lines)):
                if not re.match(r"\s*[-+.\d]", lines[place]):
                    break
                rows.append(_row(path, place, lines[place]))
            if not rows or (width and len(rows) != int(width[1])):
                raise DataError(
                    f"{path}, line {number + 1}: the matrix of {name or 'a motif'} has {len(rows)} rows, expected "
                    f"{width[1] if width else 'at least 1'}; get the file again."
                )
            yield Matrix(name, number + 1, tuple(rows))


def _row(path: Path, number: int, line: str) -> tuple[float, ...]:
    try:
        row = tuple(float(field) for field in line.split())
    except ValueError:
        row = ()
    # One row of ATtRACT's M299_0.6 sums to 0.98.
    if len(row) != 4 or not all(0 <= p <= 1 for p in row) or abs(sum(row) - 1) > 0.05:
        raise DataError(
            f"{path}, line {number + 1}: expected four probabilities of A, C, G, U that sum to 1, not "
            f"{line.strip()!r}; correct the line."
        )
    return row
