"""OpenVaccine JSON in both published forms, plain and zipped."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.formats.openvaccine import read_openvaccine

ROWS = [
    {
        "index": i,
        "id": f"id_{i}",
        "sequence": "GGAAAC",
        "signal_to_noise": 6.5 + i,
        "SN_filter": 1,
        "seq_length": 6,
        "seq_scored": 4,
        "reactivity": [0.1, 0.2, None, 0.4],
        "reactivity_error": [0.01, 0.02, 0.03, 0.04],
        "deg_Mg_pH10": [1, 2, 3, 4],
        "deg_error_Mg_pH10": [5, 6, 7, 8],
    }
    for i in range(2)
]


@pytest.mark.parametrize("form", ["lines", "columns", "zip"])
def test_both_forms(tmp_path: Path, form: str) -> None:
    text = "\n".join(json.dumps(row) for row in ROWS) + "\n"
    if form != "lines":
        text = json.dumps({key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]})
    path = tmp_path / "train.json"
    path.write_text(text)
    if form == "zip":
        path = tmp_path / "train.json.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.json.zip", text)  # as the published archive names its member
    found = list(read_openvaccine(path))
    assert [(r.name, r.experiment) for r in found] == [
        (f"id_{i}", target) for i in range(2) for target in ("reactivity", "deg_Mg_pH10")
    ]
    np.testing.assert_array_equal(found[0].values, np.float32([0.1, 0.2, np.nan, 0.4]))
    np.testing.assert_array_equal(found[3].errors, np.float32([5, 6, 7, 8]))
    assert (found[2].signal_to_noise, found[2].letters, found[2].record) == (7.5, b"GGAAAC", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: is not JSON"),
        ("[1, 2]", "neither lines of objects nor"),
        ('{"sequence": {"0": "A"}, "id": {"1": "x"}}', "record 1: the column 'id' has no row '0'"),
        ('{"sequence": "AC"}\n', "record 1: has no `id`"),
        ('{"sequence": "AC", "id": "a", "reactivity": "x"}\n', "record 1: reactivity is no list of numbers"),
        ('{"sequence": "AC", "id": "a"}\n{"sequ', "line 2: is not JSON"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        list(read_openvaccine(path))
    assert str(error.value).startswith(str(path))


def test_no_zip(tmp_path: Path) -> None:
    (tmp_path / "bad.json.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_openvaccine(tmp_path / "bad.json.zip"))
