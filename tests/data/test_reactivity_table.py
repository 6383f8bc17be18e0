"""Tables of profiles: dialects of the released files, and one sentence for each kind of damage."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.formats.reactivity_table import read_table, table_columns
from tests.data.reactivity_files import rows_of, write_table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
csv = pytest.importorskip("pyarrow.csv")


@pytest.mark.parametrize("form", ["csv", "gz", "crlf", "bom", "id", "parquet"])
def test_every_dialect_reads_the_same(tmp_path: Path, form: str) -> None:
    rows = rows_of(20)
    path = write_table(
        tmp_path / "t.csv",
        rows,
        id_name="id" if form == "id" else "sequence_id",
        end="\r\n" if form == "crlf" else "\n",
    )
    if form == "gz":
        path = tmp_path / "t.csv.gz"
        path.write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    if form == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    if form == "parquet":
        pq.write_table(csv.read_csv(path), tmp_path / "t.parquet", row_group_size=7)
        path = tmp_path / "t.parquet"
    found = list(read_table(path, batch_rows=3))
    assert len(found) == 40
    for number, (record, row) in enumerate(zip(found, rows, strict=True), 1):
        assert (record.record, record.line, record.name) == (number, number + 1, row.id)
        assert record.letters == row.sequence.encode()
        assert (record.experiment, record.dataset, record.reads) == (row.experiment, row.dataset, 500)
        assert record.signal_to_noise == np.float32(row.snr)
        for numbers, cells in ((record.values, row.values), (record.errors, row.errors)):
            expected = np.array([np.nan if x is None else x for x in cells], dtype=np.float32)
            np.testing.assert_array_equal(numbers[: len(cells)], expected)
            assert np.isnan(numbers[len(cells) :]).all()
            assert len(numbers) == 80


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "reactivity_0002,experiment_type,odd,reactivity_0001,sequence,id,signal_to_noise\n"
        "2.5,DMS,x,-1.5,AC,a,3\n,2A3,,0.25,GG,b,\n"
    )
    first, second = read_table(path)
    assert (first.name, first.experiment, first.letters) == ("a", "DMS", b"AC")
    np.testing.assert_array_equal(first.values, np.float32([-1.5, 2.5]))
    np.testing.assert_array_equal(second.values, np.float32([0.25, np.nan]))
    assert np.isnan(second.signal_to_noise)
    assert len(first.errors) == 0


def test_pseudo_labels_have_neither_sequence_nor_errors(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("sequence_id,experiment_type,reactivity_0001,reactivity_0002\na,2A3,0.1,0.2\n")
    (record,) = read_table(path)
    assert record.letters is None
    np.testing.assert_array_equal(record.values, np.float32([0.1, 0.2]))


def test_sequences_without_profiles(tmp_path: Path) -> None:
    path = tmp_path / "test_sequences.csv"
    path.write_text("id_min,id_max,sequence_id,sequence,future\n0,3,abc,ACGU,0\n")
    (record,) = read_table(path)
    assert (record.name, record.letters, record.experiment, len(record.values)) == ("abc", b"ACGU", "", 0)


HEADER = "sequence_id,sequence,experiment_type,signal_to_noise,reactivity_0001,reactivity_0002\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (HEADER, "(has no rows|cannot be read)"),
        ("name,sequence\na,ACGU\n", "line 1: no column sequence_id or id; its first columns are name, sequence"),
        ("id,sequence,reactivity_0001\na,A,1\n", "line 1: there are reactivity columns but no experiment_type"),
        ("id,experiment_type\na,2A3\n", "line 1: neither reactivity_0001 nor sequence"),
        (HEADER.replace("_0002", "_0003") + "a,A,2A3,1,1,1\n", "line 1: the column reactivity_0002 is missing"),
        (HEADER.replace("_0002", "_0001") + "a,A,2A3,1,1,1\n", "line 1: the column 'reactivity_0001' occurs twice"),
        (HEADER.strip() + ",reactivity_error_0001\na,A,2A3,1,1,1,1\n", "2 reactivity columns and 1 reactivity_error"),
        (HEADER + "a,AC,2A3,1,1,1\nb,AC,2A3,1,x,1\n", "line 3: .*invalid value 'x'"),
        (HEADER + "a,AC,2A3,1,1,1\nb,AC,2A3,1\n", "line 3: Expected 6 columns, got 4"),
        (HEADER + "a,AC,2A3,1,1,1\n,AC,2A3,1,1,1\n", "line 3: the sequence_id is empty"),
        (HEADER + "a,AC,,1,1,1\n", r"line 2 \(a\): experiment_type is empty"),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        list(read_table(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    rows = rows_of(200)
    raw = gzip.compress(write_table(tmp_path / "t.csv", rows).read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "no.csv.gz").write_bytes(b"plain")
    (tmp_path / "no.parquet").write_bytes(b"plain text, and no parquet file at all")
    pq.write_table(csv.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-3000])
    for name in ("cut.csv.gz", "no.csv.gz", "no.parquet", "cut.parquet", "missing.csv"):
        with pytest.raises(DataError, match=name):
            list(read_table(tmp_path / name))
    words = pa.table({"id": ["a"], "sequence": ["AC"], "experiment_type": ["2A3"], "reactivity_0001": ["many"]})
    pq.write_table(words, tmp_path / "words.parquet")
    with pytest.raises(DataError, match="column reactivity_0001 does not hold numbers"):
        list(read_table(tmp_path / "words.parquet"))


def test_columns_of_the_real_header(tmp_path: Path) -> None:
    columns = table_columns(write_table(tmp_path / "t.csv", rows_of(1), width=206))
    assert (len(columns.values), columns.values[0], columns.values[-1]) == (206, "reactivity_0001", "reactivity_0206")
    assert columns.errors[-1] == "reactivity_error_0206"
    assert (columns.id, columns.reads, columns.signal_to_noise) == ("sequence_id", "reads", "signal_to_noise")
