"""Synthetic profiles in the form of train_data.csv: what they imitate, and that they are always the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.reactivity import ReactivityCorpus
from data.synthetic import SyntheticCorpus
from data.synthetic_reactivity import HEAD, TAIL, write_train_csv
from tests.data.reactivity_files import build

pytest.importorskip("pyarrow")


def rows_of(path: Path) -> list[dict[str, str]]:
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def numbers(row: dict[str, str], kind: str) -> np.ndarray:
    cells = [row[f"{kind}_{i:04d}"] for i in range(1, len(row["sequence"]) + 1)]
    return np.array([float(cell) if cell else np.nan for cell in cells])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_train_csv(SyntheticCorpus(7), tmp_path_factory.mktemp("synthetic") / "train_data.csv", 300)


def test_columns_and_rules_of_the_real_file(table: Path) -> None:
    rows = rows_of(table)
    names = list(rows[0])
    assert names[:8] == [
        "sequence_id",
        "sequence",
        "experiment_type",
        "dataset_name",
        "reads",
        "signal_to_noise",
        "SN_filter",
        "reactivity_0001",
    ]
    assert len(rows) == 2 * len({row["sequence"] for row in rows})
    assert [row["experiment_type"] for row in rows[:4]] == ["2A3_MaP", "DMS_MaP"] * 2
    for row in rows:
        letters = row["sequence"].encode()
        assert row["sequence_id"] == hashlib.md5(letters).hexdigest()[:12]
        assert letters.startswith(HEAD)
        assert letters.endswith(TAIL)
        values, errors = numbers(row, "reactivity"), numbers(row, "reactivity_error")
        np.testing.assert_array_equal(np.isnan(values), np.isnan(errors))
        assert np.isnan(values[:26]).all()
        assert np.isnan(values[-20:]).all()
        ratio = np.nanmean(values) / np.nanmean(errors)
        assert ratio == pytest.approx(float(row["signal_to_noise"]), rel=0.02, abs=0.02)
        assert row["SN_filter"] == str(int(float(row["signal_to_noise"]) > 1 and int(row["reads"]) > 100))
        if row["experiment_type"] == "DMS_MaP":
            measured = np.frombuffer(letters, dtype=np.uint8)[~np.isnan(values)]
            assert set(measured.tobytes()) <= set(b"AC")


def test_unpaired_nucleotides_react(table: Path, tmp_path: Path) -> None:
    corpus = SyntheticCorpus(7)
    structure = {s.letters.tobytes(): s.structure for s in corpus.stream(300)}
    free, paired = [], []
    for row in rows_of(table):
        if float(row["signal_to_noise"]) <= 1:
            continue
        inner = slice(26, len(row["sequence"]) - 20)
        values = numbers(row, "reactivity")[inner]
        dots = np.array([c == "." for c in structure[row["sequence"][inner].encode()]])
        known = ~np.isnan(values)
        free += values[dots & known].tolist()
        paired += values[~dots & known].tolist()
    assert np.mean(free) > 4 * np.mean(paired)
    assert np.quantile(free, 0.25) > np.quantile(paired, 0.5)


def test_the_three_classes_and_errors_of_their_own(table: Path, tmp_path: Path) -> None:
    manifest = build(tmp_path / "c", table)
    train = ReactivityCorpus.open(tmp_path / "c")
    counts = manifest["splits"]["train"]["classes"]
    assert all(counts[name] > 10 for name in ("clean", "dirty", "noisy"))
    assert manifest["errors"]["trusted"]
    train.require_errors()


def test_always_the_same_bytes(table: Path, tmp_path: Path) -> None:
    again = write_train_csv(SyntheticCorpus(7), tmp_path / "again.csv", 300)
    assert again.read_bytes() == table.read_bytes()
    assert write_train_csv(SyntheticCorpus(8), tmp_path / "other.csv", 300).read_bytes() != table.read_bytes()
    plain = rows_of(write_train_csv(SyntheticCorpus(7), tmp_path / "plain.csv", 5, ends=False))
    assert plain[0]["sequence"] == rows_of(table)[0]["sequence"][26:-20]
    assert plain[0]["reactivity_0001"] == rows_of(table)[0]["reactivity_0027"]
    assert hashlib.sha256(table.read_bytes()).hexdigest() == GOLDEN
    with pytest.raises(DataError, match="at least one sequence"):
        write_train_csv(SyntheticCorpus(7), tmp_path / "none.csv", 0)


GOLDEN = "3ffa9b11e79e4df17abbc4aa98ec1430604686c3aa7355461b2cbee98e418b57"
