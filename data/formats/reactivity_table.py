"""Profiles in wide tables, CSV (plain or gzip) or parquet: one row per sequence and reagent, streamed in batches.

    sequence_id (or id), sequence, experiment_type, dataset_name, reads, signal_to_noise, SN_filter,
    reactivity_0001 .. reactivity_NNNN, reactivity_error_0001 .. reactivity_error_NNNN

This is Kaggle's train_data.csv, its parquet conversions, the per-library files they were made of, and files of
pseudo-labels, which lack errors and often `sequence` (spec RibonanzaNet 3.1, 3.3, 3.4). Columns are found by name, NNNN
is as wide as the file is, an empty cell (or NaN) is not measured. SN_filter is not read: it is wrong in released files
(3.2). A table without reactivity columns (test_sequences.csv) gives records without profiles.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.profiles import ProfileRecord
from data.source_files import is_gzip, is_named

SUFFIXES = (".csv", ".csv.gz", ".parquet")
_ID = ("sequence_id", "id")
_BLOCK_BYTES = 1 << 20  # pyarrow reads some 32 blocks ahead, so this is about 40 MB
_BATCH_ROWS = 2048
_NULLS = ["", "NA", "nan", "NaN", "NAN", "None", "null"]
_VALUE, _ERROR = re.compile(r"reactivity_(\d+)"), re.compile(r"reactivity_error_(\d+)")
_ROW = re.compile(r"Row #(\d+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class TableColumns:
    """Which column holds what; None or empty where the table has no such column."""

    id: str
    sequence: str | None
    experiment: str | None
    dataset: str | None
    reads: str | None
    signal_to_noise: str | None
    values: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        return [name for name in (self.id, self.sequence, self.experiment, self.dataset) if name]

    @property
    def numbers(self) -> list[str]:
        return [name for name in (self.reads, self.signal_to_noise, *self.values, *self.errors) if name]


def read_table(path: Path, batch_rows: int = _BATCH_ROWS) -> Iterator[ProfileRecord]:
    """Every row, in file order. Memory: a batch. Raises DataError naming the file and, where there is one, the line."""
    columns = table_columns(path)
    record = 0
    for batch in _batches(path, columns, batch_rows):
        texts = {name: batch.column(name).to_pylist() for name in columns.texts}
        values, errors = (_matrix(path, batch, names) for names in (columns.values, columns.errors))
        ratio, reads = (_column(path, batch, name) for name in (columns.signal_to_noise, columns.reads))
        experiments = texts[columns.experiment] if columns.experiment else [""] * batch.num_rows
        datasets = texts[columns.dataset] if columns.dataset else [""] * batch.num_rows
        for row in range(batch.num_rows):
            record += 1
            name, letters = texts[columns.id][row] or "", None
            if columns.sequence:
                letters = (texts[columns.sequence][row] or "").encode("ascii", "replace")
            if not name:
                raise DataError(f"{path}, line {record + 1}: the {columns.id} is empty; every row needs one.")
            if columns.values and not experiments[row]:
                raise DataError(f"{path}, line {record + 1} ({name}): experiment_type is empty; name the reagent.")
            if columns.values and letters is not None and len(letters.strip()) > len(columns.values):
                raise DataError(
                    f"{path}, line {record + 1} ({name}): the sequence has {len(letters.strip())} letters, but the "
                    f"table has only {len(columns.values)} reactivity columns; columns are missing, or the values are "
                    "those of other sequences."
                )
            yield ProfileRecord(
                record=record,
                line=record + 1,
                name=name,
                letters=letters,
                experiment=experiments[row] or "",
                dataset=datasets[row] or "",
                signal_to_noise=float(ratio[row]),
                reads=float(reads[row]),
                values=values[row],
                errors=errors[row],
            )
    if not record:
        raise DataError(f"{path}: the table has no rows; download it again or remove it from the sources.")


def table_columns(path: Path) -> TableColumns:
    """The columns of a table, found by name. Raises DataError for a header that is none, or lacks what is needed."""
    names = _header(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: the column {twice[0]!r} occurs twice; remove one.")
    found = next((name for name in _ID if name in names), None)
    if found is None:
        other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
        if other is not None:
            raise DataError(
                f"{path}, line 1: its columns seem to be separated by {other!r}, commas are wanted; save it as CSV."
            )
        shown = ", ".join(names[:6])
        raise DataError(f"{path}, line 1: no column sequence_id or id; its first columns are {shown}.")
    values, errors = _numbered(path, names, _VALUE), _numbered(path, names, _ERROR)
    if errors and len(errors) != len(values):
        raise DataError(
            f"{path}, line 1: {len(values)} reactivity columns and {len(errors)} reactivity_error columns; "
            "there must be as many of both, or no errors."
        )
    if values and "experiment_type" not in names:
        raise DataError(
            f"{path}, line 1: there are reactivity columns but no experiment_type, which names the reagent; add it."
        )
    if not values and "sequence" not in names:
        raise DataError(f"{path}, line 1: neither reactivity_0001 nor sequence is among the columns; check the file.")
    if not values and "experiment_type" in names:
        raise DataError(
            f"{path}, line 1: there is experiment_type but no column reactivity_0001; add the reactivity columns, or "
            "leave experiment_type out of a table of sequences alone."
        )

    def known(name: str) -> str | None:
        return name if name in names else None

    return TableColumns(
        found,
        known("sequence"),
        known("experiment_type"),
        known("dataset_name"),
        known("reads"),
        known("signal_to_noise"),
        values,
        errors,
    )


def _numbered(path: Path, names: list[str], pattern: re.Pattern[str]) -> tuple[str, ...]:
    """Columns of one kind in the order of their numbers, which must run from 1 without a gap."""
    numbers = {int(match[1]): name for name in names if (match := pattern.fullmatch(name))}
    for place, number in enumerate(sorted(numbers), 1):
        if place != number:
            missing = pattern.pattern.replace(r"(\d+)", f"{place:04d}")
            raise DataError(f"{path}, line 1: the column {missing} is missing; columns are numbered from 1 on.")
    return tuple(numbers[number] for number in sorted(numbers))


def _is_parquet(path: Path) -> bool:
    return is_named(path, (".parquet",))


def _pyarrow() -> Any:
    """Imported when a table is read: training reads shards and has no use for it."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading tables needs pyarrow ({error}); run `pip install pyarrow`.") from error
    return pyarrow


def _header(path: Path) -> list[str]:
    pa = _pyarrow()
    try:
        if _is_parquet(path):
            return list(pa.parquet.read_schema(path).names)
        with gzip.open(path, "rb") if is_gzip(path.name) else open(path, "rb") as file:
            first = file.readline(1 << 20)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({_told(error)}); download it again or mend the path.") from error
    if not first.strip():
        raise DataError(f"{path}: the file is empty or starts with a blank line; download it again.")
    text = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    return next(csv.reader([text]))


def _batches(path: Path, columns: TableColumns, rows: int) -> Iterator[Any]:
    pa, wanted = _pyarrow(), columns.texts + columns.numbers
    line = 1
    try:
        with contextlib.ExitStack() as stack:
            if _is_parquet(path):
                file = stack.enter_context(pa.parquet.ParquetFile(path))
                yield from file.iter_batches(batch_size=rows, columns=wanted, use_threads=False)
                return
            compression = "gzip" if is_gzip(path.name) else None
            stream = stack.enter_context(pa.input_stream(str(path), compression=compression))
            reader = stack.enter_context(
                pa.csv.open_csv(
                    stream,
                    # Not in threads: only then do errors name the row, and memory is that of one block.
                    read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
                    convert_options=pa.csv.ConvertOptions(
                        include_columns=wanted,
                        column_types={
                            **dict.fromkeys(columns.texts, pa.string()),
                            **dict.fromkeys(columns.numbers, pa.float32()),
                        },
                        null_values=_NULLS,
                        strings_can_be_null=False,
                    ),
                )
            )
            for batch in reader:
                for start in range(0, batch.num_rows, rows):
                    yield batch.slice(start, rows)
                line += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(_sentence(path, line, error)) from error
    except OSError as error:
        raise DataError(f"{path}: the file is damaged or was cut ({_told(error)}); download it again.") from error


def _matrix(path: Path, batch: Any, names: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """[rows, columns] float32, NaN for empty cells."""
    matrix = np.empty((batch.num_rows, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        matrix[:, place] = _column(path, batch, name)
    return matrix


def _column(path: Path, batch: Any, name: str | None) -> npt.NDArray[np.float32]:
    if name is None:
        return np.full(batch.num_rows, np.nan, dtype=np.float32)
    pa, column = _pyarrow(), batch.column(name)
    try:
        if not pa.types.is_float32(column.type):
            column = column.cast(pa.float32(), safe=False)
        found: npt.NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
        return found
    except pa.ArrowException as error:
        raise DataError(f"{path}: the column {name} does not hold numbers ({_told(error)}).") from error


def _sentence(path: Path, line: int, error: Exception) -> str:
    """pyarrow names the row of a CSV, the header being row 1: the line, where no cell holds a line end."""
    if match := _ROW.search(str(error)):
        return f"{path}, line {match[1]}: {_told(match[2])[:160]}; mend the line or download the file again."
    where = f"{path}, after line {line}" if not _is_parquet(path) else str(path)
    return f"{where}: cannot be read ({_told(error)[:160]}); download it again."


def _told(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")
