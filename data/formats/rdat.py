"""RDAT files of the RNA Mapping Database (RMDB), versions 0.2x to 0.34 and the renamed keys of 0.4 (spec 3.5).

A file holds a header (SEQUENCE, OFFSET, SEQPOS, ANNOTATION) and rows by index: ANNOTATION_DATA, REACTIVITY (once
AREA_PEAK), REACTIVITY_ERROR (AREA_PEAK_ERROR). A row may have a sequence and a modifier of its own, which override the
header's; a sequence of X only is no sequence. The value k of a row belongs to the nucleotide SEQPOS[k] - OFFSET - 1,
counted from 0; values outside the sequence are left out and counted.

A row is marked as a problem and not as a profile where its modifier is not told, where no sequence is known, or where
most positions are outside its sequence: MOHCA files list ligation fragments there and not the RNA that was probed.
Memory: the numbers of one file, about half of its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.formats.text import read_lines
from data.profiles import F32, ProfileRecord
from data.source_files import unzipped

SUFFIXES = (".rdat", ".rdat.gz")
_RDAT = re.compile(r"\.rdat$", re.IGNORECASE)
_KEY = re.compile(r"([A-Za-z_.]+)(?::\s*(\d+))?\s*:?(?=\s|$)\s*(.*)", re.DOTALL)
_POSITION = re.compile(r"[A-Za-z]?(-?\d+)")
_VALUES = ("REACTIVITY", "AREA_PEAK", "DATA")
_ERRORS = ("REACTIVITY_ERROR", "AREA_PEAK_ERROR", "DATA_ERROR")
_ROWS = ("ANNOTATION_DATA", "DATA_ANNOTATION")


@dataclass
class _Row:
    line: int = 0  # of the values
    annotations: list[str] = field(default_factory=list)
    sequence: str = ""
    values: F32 | None = None
    errors: F32 | None = None


@dataclass
class _Construct:
    name: str = ""
    sequence: str = ""
    offset: int = 0
    positions: npt.NDArray[np.int64] | None = None
    annotations: list[str] = field(default_factory=list)
    rows: dict[int, _Row] = field(default_factory=dict)


def read_rdat(path: Path) -> Iterator[ProfileRecord]:
    """Every row of values, in file order, of every construct. Raises DataError naming file and line."""
    record = 0
    for construct in _constructs(path):
        for index, row in construct.rows.items():
            if row.values is None:
                continue
            record += 1
            yield _profile(path, construct, index, row, record)
    if not record:
        raise DataError(f"{path}: holds no line REACTIVITY or AREA_PEAK, so it is no RDAT file with data.")


def _constructs(path: Path) -> Iterator[_Construct]:
    """A second NAME begins another construct."""
    construct = _Construct()
    for number, line in _lines(path):
        if not line.strip():
            continue
        match = _KEY.match(line)
        if match is None:
            raise DataError(f"{path}, line {number}: no key of an RDAT file: {line.strip()[:60]!r}.")
        key, index, rest = match[1].upper(), match[2], match[3].strip()
        if number == 1 or key in ("RDAT_VERSION", "VERSION"):
            if key not in ("RDAT_VERSION", "VERSION"):
                raise DataError(f"{path}, line 1: an RDAT file starts with RDAT_VERSION, found {line.strip()[:60]!r}.")
            continue
        if key == "NAME":
            if construct.rows:
                yield construct
                construct = _Construct()
            construct.name = rest
        elif index is not None and key in (*_ROWS, *_VALUES, *_ERRORS, "SEQUENCE"):
            _add_to_row(path, number, construct.rows.setdefault(int(index), _Row()), key, rest)
        elif key == "SEQUENCE":
            construct.sequence = rest
        elif key == "OFFSET":
            construct.offset = _integer(path, number, rest)
        elif key == "SEQPOS":
            construct.positions = _positions(path, number, rest)
        elif key == "ANNOTATION":
            construct.annotations += _tokens(rest)
    yield construct


def _add_to_row(path: Path, number: int, row: _Row, key: str, rest: str) -> None:
    if key in _ROWS:
        row.annotations += _tokens(rest)
    elif key == "SEQUENCE":
        row.sequence = rest
    elif key in _VALUES:
        row.values, row.line = _numbers(path, number, rest), number
    else:
        row.errors = _numbers(path, number, rest)


def _profile(path: Path, construct: _Construct, index: int, row: _Row, record: int) -> ProfileRecord:
    assert row.values is not None
    if construct.positions is None:
        raise DataError(f"{path}, line {row.line}: there are values but no SEQPOS says where; complete the file.")
    for what, numbers in (("values", row.values), ("errors", row.errors)):
        if numbers is not None and len(numbers) != len(construct.positions):
            raise DataError(
                f"{path}, line {row.line}: row {index} has {len(numbers)} {what} for {len(construct.positions)} "
                "positions of SEQPOS; there must be one each."
            )
    own = _last(row.annotations, "sequence") or row.sequence
    letters = (own or construct.sequence).strip().rstrip(".-")
    found = ProfileRecord(
        record=record,
        line=row.line,
        name=f"{_RDAT.sub('', unzipped(path.name))}-{construct.name or 'rdat'}-{index}",
        letters=letters.encode("ascii", "replace"),
        experiment=_last(row.annotations, "modifier") or _last(construct.annotations, "modifier"),
        signal_to_noise=_ratio(_last(row.annotations, "signal_to_noise")),
        reads=_float(_last(row.annotations, "reads")),
    )
    if not set(letters.upper()) - {"X"}:
        found.problem = "no_sequence"
        return found
    at = construct.positions - construct.offset - 1
    inside = (at >= 0) & (at < len(letters))
    if np.count_nonzero(inside) * 2 < len(at):
        found.problem = "other_molecule"
        return found
    if not found.experiment:
        found.problem = "no_experiment"
        return found
    found.past_end = int(np.count_nonzero(~inside))
    found.values = np.full(len(letters), np.nan, dtype=np.float32)
    found.values[at[inside]] = row.values[inside]
    if row.errors is not None:
        found.errors = np.full(len(letters), np.nan, dtype=np.float32)
        found.errors[at[inside]] = row.errors[inside]
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    for lines in read_lines(path):
        for line in lines:
            number += 1
            yield number, line.decode("utf-8", "replace")


def _tokens(text: str) -> list[str]:
    return [token.strip() for token in (text.split("\t") if "\t" in text else text.split()) if token.strip()]


def _last(annotations: list[str], key: str) -> str:
    """What stands behind `key:` in the last such token."""
    found = [token[len(key) + 1 :].strip() for token in annotations if token.startswith(key + ":")]
    return found[-1] if found else ""


def _numbers(path: Path, number: int, text: str) -> F32:
    try:
        return np.array(text.split(), dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}; expected numbers or nan.") from error


def _positions(path: Path, number: int, text: str) -> npt.NDArray[np.int64]:
    """Bare integers, or a letter and an integer: `G-9`, `X27` (from version 0.32 on)."""
    found = []
    for token in text.split():
        match = _POSITION.fullmatch(token)
        if match is None:
            raise DataError(f"{path}, line {number}: {token!r} is no position of SEQPOS, such as 12, X27 or G-9.")
        found.append(int(match[1]))
    return np.array(found, dtype=np.int64)


def _integer(path: Path, number: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: OFFSET is {text[:40]!r}, expected a whole number.") from error


def _ratio(text: str) -> float:
    """`medium:2.5` -> 2.5: the number stands after the last colon. `N/A:...` tells nothing."""
    return float("nan") if text.startswith("N/A") else _float(text.rpartition(":")[2])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
