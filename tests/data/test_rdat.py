"""RDAT: the dialects that RMDB holds, read by spec 3.5 of RibonanzaNet."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.formats.rdat import read_rdat

LIBRARY = """RDAT_VERSION\t0.34
NAME\tLIB
SEQUENCE\tXXXXXXXX
STRUCTURE\t........
OFFSET\t0
SEQPOS\tX2\tX3\tX4\tX7
COMMENT\tvalues\tfrom somewhere

ANNOTATION\tmodifier:DMS\ttemperature:24C

ANNOTATION_DATA:1     \tsequence:GGACGUAA\tsignal_to_noise:medium:2.5\treads:120
ANNOTATION_DATA:2     \tsequence:ACGUC\tmodifier:2A3\tsignal_to_noise:N/A:0.000
ANNOTATION_DATA:3     \tsignal_to_noise:weak:0.4

REACTIVITY:1     \t 0.5\tnan\t-1.25\t2
REACTIVITY:2     \t 1\t2\t3\t4
REACTIVITY:3     \t 1\t2\t3\t4
REACTIVITY_ERROR:1     \t 0.1\t0.2\t0.3\t0.4
REACTIVITY_ERROR:2     \t 0.1\t-0.2\t0.3\t0.4
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_library_with_sequences_and_modifiers_per_row(tmp_path: Path) -> None:
    first, second, third = read_rdat(write(tmp_path / "a.rdat", LIBRARY))
    nan = np.nan
    assert (first.letters, first.experiment, first.signal_to_noise, first.reads) == (b"GGACGUAA", "DMS", 2.5, 120)
    np.testing.assert_array_equal(first.values, np.float32([nan, 0.5, nan, -1.25, nan, nan, 2, nan]))
    np.testing.assert_array_equal(first.errors, np.float32([nan, 0.1, 0.2, 0.3, nan, nan, 0.4, nan]))
    assert (first.line, first.problem, first.past_end) == (15, "", 0)
    assert (second.letters, second.experiment, second.past_end) == (b"ACGUC", "2A3", 1)  # SEQPOS 7 is past its end
    np.testing.assert_array_equal(second.values, np.float32([nan, 1, 2, 3, nan]))
    assert np.isnan(second.signal_to_noise)
    assert third.problem == "no_sequence"  # only X
    assert len({first.name, second.name, third.name}) == 3


def test_old_version_one_construct_negative_offset(tmp_path: Path) -> None:
    text = """VERSION: 0.21
NAME\told
SEQUENCE\tGGAAU
OFFSET\t-3
SEQPOS\t-2 -1 0 1 2
ANNOTATION modifier:1M7
AREA_PEAK:1 1 2 3 4 5
AREA_PEAK_ERROR:1 .1 .2 .3 .4 .5
"""
    (record,) = read_rdat(write(tmp_path / "old.rdat", text))
    assert (record.letters, record.experiment) == (b"GGAAU", "1M7")
    np.testing.assert_array_equal(record.values, np.float32([1, 2, 3, 4, 5]))  # -2 - (-3) - 1 = 0
    np.testing.assert_array_equal(record.errors, np.float32([0.1, 0.2, 0.3, 0.4, 0.5]))


def test_letters_in_seqpos_and_sequence_per_index(tmp_path: Path) -> None:
    text = (
        "RDAT_VERSION\t0.33\nNAME\tx\nSEQUENCE\tXXXX\nSEQUENCE:1\tACGU\nOFFSET\t-10\nSEQPOS\tA-9\tG-7\n"
        "ANNOTATION\tmodifier:DMS\nREACTIVITY:1\t7\t8\n"
    )
    (record,) = read_rdat(write(tmp_path / "x.rdat", text))
    assert record.letters == b"ACGU"
    np.testing.assert_array_equal(record.values, np.float32([7, np.nan, 8, np.nan]))
    assert len(record.errors) == 0


def test_several_constructs_and_renamed_keys(tmp_path: Path) -> None:
    one = "NAME\t{}\nSEQUENCE\t{}\nSEQPOS\t1\t2\nANNOTATION\tmodifier:DMS\nDATA_ANNOTATION:1\tsignal_to_noise:good:9\n"
    text = "RDAT_VERSION\t0.4\n" + "".join(
        one.format(name, letters) + f"DATA:1\t{value}\t2\n" for name, letters, value in (("a", "AC", 1), ("b", "GU", 5))
    )
    first, second = read_rdat(write(tmp_path / "two.rdat", text))
    assert (first.letters, second.letters) == (b"AC", b"GU")
    assert (first.values[0], second.values[0], second.signal_to_noise) == (1, 5, 9)


def test_ligation_fragments_are_no_profiles(tmp_path: Path) -> None:
    text = (
        "RDAT_VERSION\t0.33\nNAME\tm\nSEQUENCE\tACGUACGU\nOFFSET\t0\nSEQPOS\t1\t2\t3\t4\t5\t6\n"
        "ANNOTATION_DATA:1\tsequence:AC\nANNOTATION_DATA:2\tsequence:ACGUA\n"
        "REACTIVITY:1\t1\t2\t3\t4\t5\t6\nREACTIVITY:2\t1\t2\t3\t4\t5\t6\n"
    )
    first, second = read_rdat(write(tmp_path / "m.rdat", text))
    assert (first.problem, second.problem) == ("other_molecule", "no_experiment")
    assert len(first.values) == len(second.values) == 0


def test_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.rdat.gz").write_bytes(gzip.compress(LIBRARY.encode()))
    assert len(list(read_rdat(tmp_path / "a.rdat.gz"))) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (LIBRARY, "", "empty"),
        ("RDAT_VERSION\t0.34\n", "", "line 1: an RDAT file starts with RDAT_VERSION"),
        ("X4\tX7", "X4\tseven", "line 6: 'seven' is no position"),
        ("OFFSET\t0", "OFFSET\tzero", "line 5: OFFSET is 'zero'"),
        ("-1.25\t2\n", "-1.25\n", "line 15: row 1 has 3 values for 4 positions"),
        ("0.3\t0.4\nREACTIVITY_ERROR:2", "0.3\nREACTIVITY_ERROR:2", "row 1 has 3 errors for 4 positions"),
        ("\tnan\t", "\tmany\t", "line 15: .*'many'"),
        ("SEQPOS\tX2\tX3\tX4\tX7\n", "", "no SEQPOS says where"),
        (LIBRARY[LIBRARY.index("REACTIVITY:1") :], "", "no line REACTIVITY"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LIBRARY
    path = write(tmp_path / "bad.rdat", LIBRARY.replace(old, new))
    with pytest.raises(DataError, match=message) as error:
        list(read_rdat(path))
    assert str(error.value).startswith(str(path))
