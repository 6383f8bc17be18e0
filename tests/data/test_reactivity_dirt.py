"""Preparing profiles: dirt, defects, half precision, libraries, pseudo-labels with ids only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.reactivity import ReactivityCorpus
from data.reactivity_config import ReactivitySource, SplitConfig
from data.verify_reactivity import verify_reactivity
from tests.data.reactivity_files import as_array, build, changed, dropped, other, rows_of, samples, write_table

pytest.importorskip("pyarrow")


def test_a_profile_without_any_value_stays_as_noisy(tmp_path: Path) -> None:
    rows = rows_of(12)
    nothing = tuple(None for _ in rows[0].values)
    rows[0] = other(rows[0], snr=0.0, values=nothing)  # as in released files; its errors are left
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", rows))
    profile = samples(tmp_path / "c")[rows[0].sequence]
    assert np.isnan(profile.values[:, 0]).all()
    assert np.isnan(profile.errors[:, 0]).all()
    assert profile.signal_to_noise[0] == 0
    assert changed(manifest) == {"errors_without_value": len(rows[0].errors) - 10}


def test_identical_error_columns_are_reported(tmp_path: Path) -> None:
    rows = rows_of(20)
    good = build(tmp_path / "good", write_table(tmp_path / "good.csv", rows))
    assert good["errors"] == {"samples": 20, "pairs_compared": 20, "pairs_identical": 0, "trusted": True}
    ReactivityCorpus.open(tmp_path / "good").require_errors()
    wrong = [other(row, errors=rows[i | 1].errors) for i, row in enumerate(rows)]  # those of DMS in both
    bad = build(tmp_path / "bad", write_table(tmp_path / "bad.csv", wrong))
    assert bad["errors"] == {"samples": 20, "pairs_compared": 20, "pairs_identical": 20, "trusted": False}
    with pytest.raises(DataError, match="identical in 20 of 20 samples"):
        ReactivityCorpus.open(tmp_path / "bad").require_errors()


def test_half_precision(tmp_path: Path) -> None:
    rows = rows_of(12)
    large = other(
        rows[0],
        values=(65504.0, -43.125, 0.001, *rows[0].values[3:]),
        errors=(1000000.0, 0.5, 0.5, *rows[0].errors[3:]),
    )
    beyond = other(rows[2], values=(65600.0, *rows[2].values[1:]))
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", [large, rows[1], beyond, *rows[3:]]))
    found = samples(tmp_path / "c")
    profile = found[rows[0].sequence]
    np.testing.assert_array_equal(profile.values[:2, 0], [65504, -43.125])
    assert abs(profile.values[2, 0] / 1e-3 - 1) < 4.9e-4  # spec data 2
    assert profile.errors[0, 0] == 65504
    assert np.isnan(found[rows[2].sequence].values[:, 0]).all()
    assert dropped(manifest) == {"out_of_range": 1}
    assert manifest["sources"][0]["first_dropped"] == {"out_of_range": f"t.csv, line 4 ({rows[2].id})"}
    assert changed(manifest) == {"errors_too_large": 1}


def test_dirty_letters(tmp_path: Path) -> None:
    rows = rows_of(12)
    rows[0] = other(rows[0], sequence=rows[0].sequence.lower().replace("u", "t"))
    assert rows[0].id != rows[1].id  # the pair is found all the same, by its sequence
    rows[2] = other(rows[2], sequence="X" + rows[2].sequence[1:])
    rows[4] = other(rows[4], sequence=rows[4].sequence[:9] + "-" + rows[4].sequence[10:])
    rows[6] = other(rows[6], sequence="N" + rows[6].sequence[1:])
    rows[8] = other(rows[8], experiment="1M7")
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", rows))
    assert dropped(manifest) == {"other_letters": 1, "gaps_inside": 1, "other_experiment": 1}
    found = samples(tmp_path / "c")
    assert not np.isnan(found[rows[1].sequence].values).all(axis=0).any()
    assert np.isnan(found[rows[6].sequence].values[:, 1]).all()  # N is kept, so it is another sequence than its pair
    mapped = build(tmp_path / "m", sources=[ReactivitySource("s", str(tmp_path / "t.csv"), {"1M7": "2A3"})])
    assert "other_experiment" not in dropped(mapped)


def test_values_past_the_end_are_left_out(tmp_path: Path) -> None:
    rows = rows_of(12)
    rows[0] = other(rows[0], values=(*rows[0].values, 0.0, 0.0))  # zero-padded, as some pseudo-labels are
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", rows))
    assert changed(manifest) == {"values_past_the_end": 2}
    assert len(samples(tmp_path / "c")[rows[0].sequence].values) == len(rows[0].sequence)


def test_libraries_to_drop_and_to_keep(tmp_path: Path) -> None:
    names = ["PK50_Old_2A3", "PK50_AltChemMap_NovaSeq_2A3", "PK90_Twist_epPCR_2A3", "PK90_x_2A3", "SL5_2A3", "SL5_2A3"]
    rows = [other(row, dataset=names[i // 2].replace("2A3", row.experiment[:3])) for i, row in enumerate(rows_of(6))]
    keep = ["PK50_AltChemMap_NovaSeq", "PK90_Twist_epPCR"]
    table = str(write_table(tmp_path / "t.csv", rows))
    source = ReactivitySource("s", table, drop_datasets=["PK50", "PK90"], keep_datasets=keep)
    manifest = build(tmp_path / "c", sources=[source], split=SplitConfig(folds=0))
    assert dropped(manifest) == {"dataset": 4}
    assert manifest["type_names"] == ["PK50_AltChemMap_NovaSeq_NULL", "PK90_Twist_epPCR_NULL", "SL5_NULL"]


def test_pseudo_labels_with_ids_only(tmp_path: Path) -> None:
    rows = rows_of(12, blank=0)
    pseudo = tmp_path / "pl.csv"
    lines = ["sequence_id,experiment_type," + ",".join(f"reactivity_{i:04d}" for i in range(1, 71))]
    for row in [*rows, other(rows[0], sequence="A" * 50)]:  # the last one is in no table
        values = [*map(str, row.values), *["0"] * (70 - len(row.values))]
        lines.append(",".join([row.id, row.experiment[:3], *values]))
    pseudo.write_text("\n".join(lines) + "\n")
    table = tmp_path / "test_sequences.csv"
    known = "".join(f"0,1,{row.id},{row.sequence},0\n" for row in rows[::2])
    table.write_text("id_min,id_max,sequence_id,sequence,future\n" + known)
    source = ReactivitySource("pl", str(pseudo), sequences=str(table), signal_to_noise=10)
    manifest = build(tmp_path / "c", sources=[source], split=SplitConfig(folds=0))
    assert dropped(manifest) == {"no_sequence": 1}
    found = samples(tmp_path / "c")
    for row in rows:
        column = found[row.sequence].values[:, ["2A3", "DMS"].index(row.experiment[:3])]
        np.testing.assert_array_equal(column, as_array(row.values))
    assert all((profile.signal_to_noise == 10).all() for profile in found.values())
    with pytest.raises(DataError, match="no sample has an error"):
        ReactivityCorpus.open(tmp_path / "c").require_errors()
    with pytest.raises(DataError, match=r"pl\.csv: has no column sequence; set `sequences`"):
        build(tmp_path / "d", pseudo)


def test_pseudo_labels_in_parquet_of_two_widths(tmp_path: Path) -> None:
    """Spec 3.4: one file with sequences and few columns, one with ids only and more columns, `2A3` without `_MaP`."""
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    first, second = rows_of(6, blank=0), rows_of(6, seed=1, blank=0)
    write_table(tmp_path / "first.csv", first, width=70)
    text = write_table(tmp_path / "second.csv", second, width=90, id_name="id").read_text().replace("_MaP", "")
    (tmp_path / "second.csv").write_text(text)
    tables = [csv.read_csv(tmp_path / f"{name}.csv") for name in ("first", "second")]
    only_ids = [name for name in tables[1].column_names if name != "sequence" and "error" not in name]
    parquet.write_table(tables[0], tmp_path / "first.parquet")
    parquet.write_table(tables[1].select(only_ids), tmp_path / "second.parquet")
    known = "".join(f"{row.id},{row.sequence}\n" for row in second[::2])
    (tmp_path / "test_sequences.csv").write_text("sequence_id,sequence\n" + known)
    sources = [
        ReactivitySource("noisy", str(tmp_path / "first.parquet"), signal_to_noise=10),
        ReactivitySource(
            "test", str(tmp_path / "second.parquet"), sequences=str(tmp_path / "test_sequences.csv"), signal_to_noise=10
        ),
    ]
    manifest = build(tmp_path / "c", sources=sources, split=SplitConfig(folds=0))
    assert manifest["splits"]["train"]["classes"] == {"clean": 12, "dirty": 0, "noisy": 0}
    found = samples(tmp_path / "c")
    for row in (*first, *second):
        column = found[row.sequence].values[:, ["2A3", "DMS"].index(row.experiment[:3])]
        np.testing.assert_array_equal(column, as_array(row.values))


def test_too_many_libraries(tmp_path: Path) -> None:
    rows = [other(row, dataset=f"d{i}") for i, row in enumerate(rows_of(130))]
    with pytest.raises(DataError, match="source s0: there are more than 255 different dataset names"):
        build(tmp_path / "c", write_table(tmp_path / "t.csv", rows))


def test_sequences_without_profiles(tmp_path: Path) -> None:
    table = tmp_path / "test_sequences.csv"
    table.write_text("id_min,id_max,sequence_id,sequence,future\n0,3,abc,ACGU,0\n4,6,abd,GGA,1\n")
    manifest = build(tmp_path / "c", table, split=SplitConfig(folds=0))
    assert manifest["splits"]["train"]["classes"] == {"clean": 0, "dirty": 0, "noisy": 2}
    assert manifest["splits"]["train"]["profiles"] == {"2A3": 0, "DMS": 0}
    assert np.isnan(samples(tmp_path / "c")["ACGU"].values).all()
    assert verify_reactivity(tmp_path / "c").intact


def test_one_id_with_two_sequences_is_refused(tmp_path: Path) -> None:
    rows = rows_of(12)
    text = write_table(tmp_path / "t.csv", rows).read_text().replace(rows[8].id, rows[2].id)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv, record [34] and .*t\.csv, record (9|10): the same id") as error:
        build(tmp_path / "c", tmp_path / "t.csv")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*c*partial*"))
    assert not (tmp_path / "c").exists()


def test_nothing_left(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", rows_of(3))
    for options, message in (
        ({"min_length": 1000}, "no sequence is left"),
        ({"channels": ["1M7"]}, "no sequence is left"),
        ({"split": SplitConfig(fold=3)}, "split would be empty, 1 sequences of clean are too few for 6 folds"),
    ):
        with pytest.raises(DataError, match=message):
            build(tmp_path / "c", table, **options)
    noisy = write_table(tmp_path / "n.csv", [other(row, snr=0.1) for row in rows_of(3)])
    with pytest.raises(DataError, match="validation split would be empty, 0 sequences of clean"):
        build(tmp_path / "c", noisy)
