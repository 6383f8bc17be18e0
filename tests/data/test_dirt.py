"""What real files hold: each kind of dirt is handled, and counted, or refused with file and record."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data.corpus import prepare
from data.errors import DataError
from tests.data.clustered import splits
from tests.data.corpora import config

A, B = "ACGUACGUACGUACGUAGGC", "GGGGCCCCAAAAUUUUACGU"
LONG = "ACGGU" * 20_000  # 100 kb

HANDLED = {
    "windows line ends": (f">a\r\n{A[:10]}\r\n{A[10:]}\r\n>b\r\n{B}\r\n", {"a": A, "b": B}, {}, {}),
    "lower case and T": (
        f">a\n{A.lower().replace('u', 't')}\n",
        {"a": A},
        {},
        {"lower_case_to_upper": 20, "t_to_u": 4},
    ),
    "duplicate ids": (f">a\n{A}\n>a\n{B}\n", {"a": B, "a ": A}, {}, {}),
    "blank lines": (f"\n\n>a\n\n{A}\n\n\n>b\n{B}\n\n", {"a": A, "b": B}, {}, {}),
    "X": (f">a\n{A}\n>x\n{A}X\n", {"a": A}, {"other_letters": "dirt.fa, record 2 (x)"}, {}),
    "P and O": (f">a\n{A}\n>p\n{B}P\n>o\n{B}O\n", {"a": A}, {"other_letters": "dirt.fa, record 2 (p)"}, {}),
    "inosine": (f">a\n{A}I\n", {"a": A + "I"}, {}, {}),
    "dots inside": (f">a\n{A[:5]}..{A[5:]}.\n", {"a": A}, {}, {"gaps_removed": 3}),
    "blanks inside": (f">a\n{A[:5]} \t{A[5:]}\n", {"a": A}, {}, {"blanks_removed": 2}),
    "one > among records": (f">a\n{A}\n>\n>b\n{B}\n", {"a": A, "b": B}, {"empty": "dirt.fa, record 2 (no name)"}, {}),
    "a header without a sequence at the end": (f">a\n{A}\n>b", {"a": A}, {"empty": "dirt.fa, record 2 (b)"}, {}),
    "100 kb": (f">a\n{A}\n>long\n{LONG}\n", {"a": A}, {"too_long": "dirt.fa, record 2 (long)"}, {}),
    "short": (f">a\n{A}\n>s\nACGU\n", {"a": A}, {"too_short": "dirt.fa, record 2 (s)"}, {}),
    "UTF-8 headers": (f">café\n{A}\n".encode(), {"café": A}, {}, {}),
    "latin-1 headers": (f">café\n{A}\n".encode("latin-1"), {"café": A}, {}, {}),
    "byte order mark": (f"\ufeff>a\n{A}\n".encode(), {"a": A}, {}, {}),
    "gzip": (gzip.compress(f">a\n{A}\n".encode(), mtime=0), {"a": A}, {}, {}),
    "a > inside a header": (f">a 5->3 from x\n{A}\n", {"a": A}, {}, {}),
    "a very long name": (f">{'n' * 400}\n{A}\n", {"n" * 255: A}, {}, {}),
}

REFUSED = {
    "> only": (">\n", "no sequence is left after filtering"),
    "0 bytes": ("", "empty (0 bytes)"),
    "only blank lines": ("\n\n", "only blank lines"),
    "FASTQ": (f"@read1\n{A}\n+\n{'I' * 20}\n", "line 1: starts with '@', so this looks like FASTQ"),
    "gzip inside gzip": (gzip.compress(gzip.compress(b">a\nACGU\n", mtime=0), mtime=0), "gzip inside gzip"),
    "cut gzip": (gzip.compress(f">a\n{LONG}\n".encode(), mtime=0)[:-9], "it was cut"),
    "protein": (">p\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG\n" * 20, "looks like a protein FASTA"),
    "text before the first record": (f"; comment\n>a\n{A}\n", "line 1: expected a FASTA header"),
    "Stockholm": (f"# STOCKHOLM 1.0\n\na {A}\n//\n", "line 1: expected a FASTA header"),
    "binary": (f">a\n{A}\n>b\nAC\0GU\n", "record 2: the sequence holds NUL bytes"),
    "old Macintosh line ends": (f">a\r{A}\r>b\r{B}\r", "lone carriage returns"),
}


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("kind", HANDLED)
def test_handled_and_counted(tmp_path: Path, kind: str) -> None:
    text, kept, dropped, changed = HANDLED[kind]
    fasta = written(tmp_path / "dirt.fa", text)
    manifest = prepare(config(tmp_path / "corpus", fasta, validation_fraction=0.0))
    found = splits(tmp_path / "corpus")["train"]
    assert sorted(letters for letters, _ in found) == sorted(kept.values())
    assert {name for _, name in found} == {name.strip() for name in kept}
    (source,) = manifest["sources"]
    assert source["first_dropped"] == dropped
    assert {reason for reason, count in source["dropped"].items() if count} == set(dropped)
    assert {kind: count for kind, count in source["changed"].items() if count} == changed


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_a_sentence(tmp_path: Path, kind: str) -> None:
    text, message = REFUSED[kind]
    fasta = written(tmp_path / "dirt.fa", text)
    with pytest.raises(DataError) as error:
        prepare(config(tmp_path / "out" / "corpus", fasta))
    assert message in str(error.value)
    assert "dirt.fa" in str(error.value) or kind == "> only"
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_hundred_kilobases_where_they_are_wanted(tmp_path: Path) -> None:
    other = LONG[::-1] + "A"
    fasta = written(
        tmp_path / "dirt.fa", f">a\n{LONG}\n>b\n" + "\n".join(other[i : i + 60] for i in range(0, 100_001, 60))
    )
    prepare(config(tmp_path / "corpus", fasta, max_length=0, validation_fraction=0.0), chunk_bytes=5000)
    assert {letters for letters, _ in splits(tmp_path / "corpus")["train"]} == {LONG, other}
