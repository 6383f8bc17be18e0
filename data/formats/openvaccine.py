"""Kaggle's OpenVaccine data: JSON, as lines of one object per sequence, or as one object of columns; also inside a zip.

Targets become experiments by name: `reactivity` (1M7), `deg_Mg_pH10`, `deg_pH10`, `deg_Mg_50C`, `deg_50C`, with errors
in `*_error` (`deg_error_Mg_pH10` for the degradation rates). A target covers the first `seq_scored` positions.
Memory: one line, or the whole of a column-oriented file (10 MB for the published one).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.profiles import F32, ProfileRecord
from data.source_files import is_named

SUFFIXES = (".json", ".json.zip")
TARGETS = {
    "reactivity": "reactivity_error",
    "deg_Mg_pH10": "deg_error_Mg_pH10",
    "deg_pH10": "deg_error_pH10",
    "deg_Mg_50C": "deg_error_Mg_50C",
    "deg_50C": "deg_error_50C",
}


def read_openvaccine(path: Path) -> Iterator[ProfileRecord]:
    """A record per sequence and target, in file order. Raises DataError naming file and record."""
    record = 0
    for row in _rows(path):
        record += 1
        name, letters = row.get("id"), row.get("sequence")
        if not isinstance(name, str) or not isinstance(letters, str):
            raise DataError(f"{path}, record {record}: has no `id` and `sequence`; is this a file of OpenVaccine?")
        targets = [target for target in TARGETS if target in row] or [""]
        for target in targets:
            values = _vector(path, record, row, target) if target else np.empty(0, dtype=np.float32)
            error = TARGETS.get(target, "")
            errors = _vector(path, record, row, error) if error in row else np.empty(0, dtype=np.float32)
            ratio = row.get("signal_to_noise")
            yield ProfileRecord(
                record=record,
                line=record,
                name=name,
                letters=letters.encode("ascii", "replace"),
                experiment=target,
                signal_to_noise=float(ratio) if isinstance(ratio, (int, float)) else float("nan"),
                values=values,
                errors=errors,
            )
    if not record:
        raise DataError(f"{path}: holds no record; download it again or remove it from the sources.")


def _vector(path: Path, record: int, row: dict[str, Any], key: str) -> F32:
    try:
        vector = np.array(row[key], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, record {record}: {key} is no list of numbers ({error}).") from error
    if vector.ndim != 1:
        raise DataError(f"{path}, record {record}: {key} is no list of numbers.")
    return vector


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as raw:
            if not is_named(path, (".zip",)):
                yield from _parsed(path, raw)
                return
            with zipfile.ZipFile(raw) as archive:
                members = [name for name in archive.namelist() if ".json" in name and "__MACOSX" not in name]
                if len(members) != 1:
                    raise DataError(f"{path}: expected one JSON file in the archive, found {len(members)}.")
                with archive.open(members[0]) as member:
                    yield from _parsed(path, member)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again or mend the path.") from error


def _parsed(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    """Lines of objects where the first line is a whole object with a sequence; otherwise one object of columns."""
    first = file.readline()
    row = _object(path, 1, first, quietly=True)
    if isinstance(row, dict) and isinstance(row.get("sequence"), str):
        yield row
        for number, line in enumerate(file, 2):
            if line.strip():
                following = _object(path, number, line)
                if not isinstance(following, dict):
                    raise DataError(f"{path}, line {number}: expected an object with a sequence.")
                yield following
        return
    columns = row if row is not None else _object(path, 1, first + file.read())
    if not isinstance(columns, dict) or not isinstance(columns.get("sequence"), dict):
        raise DataError(f"{path}: is neither lines of objects nor an object of columns with `sequence`.")
    for number, key in enumerate(columns["sequence"], 1):
        missing = [name for name, column in columns.items() if not isinstance(column, dict) or key not in column]
        if missing:
            raise DataError(f"{path}, record {number}: the column {missing[0]!r} has no row {key!r}.")
        yield {name: column[key] for name, column in columns.items()}


def _object(path: Path, number: int, text: bytes, quietly: bool = False) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if quietly:
            return None
        raise DataError(f"{path}, line {number}: is not JSON ({error}); download it again.") from error
