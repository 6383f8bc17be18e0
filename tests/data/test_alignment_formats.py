"""Readers of alignments: dialects, dirt, and real files against a reader that shares no code with ours."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from data.alignment_columns import ColumnRules, clean
from data.errors import DataError
from data.formats.alignment import read_alignments, recognise
from data.formats.raw_alignment import RawAlignment
from tests.data.alignments import Family, plain_clean, plain_stockholm, random_family, stockholm


def read(path: Path, text: str | bytes, kind: str = "auto") -> list[RawAlignment]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_alignments(path, kind))


def rows(alignment: RawAlignment) -> list[tuple[str, str]]:
    return [(n.decode(), r.decode()) for n, r in zip(alignment.names, alignment.rows, strict=True)]


@pytest.mark.parametrize("width", [0, 7, 39])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_stockholm_of_several_families(tmp_path: Path, width: int, ends: str) -> None:
    families = [random_family(n) for n in (1, 2, 3)]
    text = "\n\n".join(stockholm(family, width) for family in families).replace("\n", ends)
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), gzip.compress(text.encode())):
        found = read(tmp_path / "any.name", content)
        assert [rows(one) for one in found] == [family.rows for family in families]
        assert [one.text("AC") for one in found] == ["RF00001", "RF00002", "RF00003"]
        assert [one.marks["SS_cons"].decode() for one in found] == [f.marks["SS_cons"] for f in families]
        assert [one.number for one in found] == [1, 2, 3]


def test_repeated_names_are_rows_of_their_own(tmp_path: Path) -> None:
    family = Family([("a", "ACGUAC"), ("b", "AC--AC"), ("a", "ACGUAA"), ("a", "ACGUAC")], {}, {"RF": "xxxxxx"})
    for width in (0, 4):
        assert rows(read(tmp_path / "a.sto", stockholm(family, width))[0]) == family.rows


def test_rows_as_paragraphs_and_blocks_without_blank_lines(tmp_path: Path) -> None:
    paragraphs = "# STOCKHOLM 1.0\na ACGU\n\nb AC-U\n\nc ACGG\n//\n"
    assert rows(read(tmp_path / "a.sto", paragraphs)[0]) == [("a", "ACGU"), ("b", "AC-U"), ("c", "ACGG")]
    dense = "# STOCKHOLM 1.0\na AC\nb AG\n#=GC RF xx\na GU\n#=GR a SS ..\nb --\n#=GC RF x.\n//\n"
    found = read(tmp_path / "a.sto", dense)[0]
    assert rows(found) == [("a", "ACGU"), ("b", "AG--")]
    assert found.marks == {"RF": b"xxx."}
    early = "# STOCKHOLM 1.0\n#=GC RF xx\na AC\nb AG\n\n#=GC RF x.\na GU\nb --\n//\n"
    assert rows(read(tmp_path / "a.sto", early)[0]) == [("a", "ACGU"), ("b", "AG--")]


def test_headers_of_any_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8", "latin-1"):
        text = "# STOCKHOLM 1.0\n#=GF AU Åström Ü\n#=GF ID Händel\nnamé ACGU\n//\n".encode(encoding)
        found = read(tmp_path / "a.sto", text)[0]
        assert (found.text("AU"), found.text("ID")) == ("Åström Ü", "Händel")
        assert clean(found, ColumnRules()).query == "namé"


def test_a3m_a2m_and_gapped_fasta(tmp_path: Path) -> None:
    a3m = ">q one\nACGU\n>two\nA-gggUt\nX\n>three\nacACGTgu\n"
    found = clean(read(tmp_path / "a.a3m", a3m)[0], ColumnRules())
    assert [row.tobytes() for row in found.letters] == [b"ACGU", b"A-UX", b"ACGU"]
    assert found.changes["inserted_letters_removed"] == 4 + 4
    assert found.changes["t_to_u"] == 1
    assert found.query == "q"
    a2m = ">q\nA.CG..U\n>b\nAcCG.g-\n>c\n-.-N*.U\n"
    found = clean(read(tmp_path / "q_1.a2m_msa2", a2m)[0], ColumnRules())
    assert [row.tobytes() for row in found.letters] == [b"ACGU", b"ACG-", b"--XU"]
    fasta = ">q\nacg.t-\n>b\nA~G_UA\n"
    found = clean(read(tmp_path / "a.fa", fasta)[0], ColumnRules("all", query="none"))
    assert [row.tobytes() for row in found.letters] == [b"ACG-U-", b"A-G-UA"]


def test_recognise(tmp_path: Path) -> None:
    for name, expected in (("x.a3m", "a3m"), ("x.a2m.gz", "a2m"), ("x.a2m_msa2", "a2m"), ("X.AFA", "fasta")):
        (tmp_path / name).write_text(">a\nACGU\n")
        assert recognise(tmp_path / name) == expected
    (tmp_path / "odd.a3m").write_text("\n\n# STOCKHOLM 1.0\na ACGU\n//\n")
    assert recognise(tmp_path / "odd.a3m") == "stockholm"
    (tmp_path / "x.txt").write_text(">a\nACGU\n")
    with pytest.raises(DataError, match=r"x\.txt: is no Stockholm file"):
        recognise(tmp_path / "x.txt")
    assert [row.names for row in read_alignments(tmp_path / "x.txt", "a3m")] == [[b"a"]]


def read_and_clean(path: Path, text: str) -> None:
    for alignment in read(path, text, "stockholm"):
        clean(alignment, ColumnRules())


CUT_WITHIN = r"alignment 1 \(RF1\), from line 1 on: the next alignment begins in line 5, but no // ended this one"
GOOD = "# STOCKHOLM 1.0\n#=GF AC RF1\na ACGU\nb ACGU\n//\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD[:-3], r"alignment 1 \(RF1\), from line 1 on: the file ends without the //"),
        *(  # the end of an alignment is missing in the midst of a file: rows as wide, of the same names, and none
            (GOOD[:-3] + GOOD.replace("RF1", "RF2").replace("a ACGU\nb ACGU\n", rows), CUT_WITHIN)
            for rows in ("c ACGU\nd ACGG\n", "\na ACGU\nb ACGU\n", "")
        ),
        (GOOD + "c ACGU\n", r"line 6: expected '# STOCKHOLM 1\.0' but found 'c ACGU'"),
        (GOOD.replace("a ACGU\nb ACGU\n", ""), r"alignment 1 \(RF1\).* holds no row"),
        (GOOD.replace("b ACGU", "b"), r"line 4: expected a row name and its letters but found 'b'"),
        (GOOD.replace("b ACGU", "b ACGUU"), r"row 2 \(b\) has 5 columns, the first row \(a\) has 4"),
        (GOOD.replace("//", "\na ACGU\n//"), r"row a is in blocks 1 and 2, but the blocks do not list the same rows"),
        (GOOD.replace("b ACGU", "b AC7U"), r"row 2 \(b\) holds '7' in column 3, which is no letter"),
        (GOOD.replace("b ACGU", "b ACEU"), r"holds 'E' in column 3"),
        (GOOD.replace("//", "#=GC RF xxx\n//"), r"its RF line has 3 columns, its rows have 4"),
        ("", r"the file is empty"),
    ],
)
def test_dirt_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_and_clean(tmp_path / "dirt.sto", text)
    assert str(raised.value).startswith(str(tmp_path / "dirt.sto"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">a\nACGU\n>b\nACGUA\n", r"row 2 \(b\) has 5 columns once insertions are removed, the first row \(a\) has 4"),
        (">a\nACGU\n>b\nAC?U\n", r"row 2 \(b\) holds '\?' in column 3"),
        ("ACGU\n", r"expected a FASTA header"),
        (">a\nMKLEFPQ\n>b\nMKLEFPQ\n", r"protein"),
    ],
)
def test_dirt_in_a3m(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clean(read(tmp_path / "x.a3m", text)[0], ColumnRules())


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(stockholm(random_family(1, depth=200)).encode())
    with pytest.raises(DataError, match="ends too early"):
        read(tmp_path / "a.sto.gz", whole[: len(whole) // 2])


def unpacked(archive: Path, folder: Path) -> list[Path]:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted(path for path in folder.rglob("*") if path.suffix in (".sto", ".stk", ".a3m"))


def compare(path: Path, query: bool) -> tuple[int, int]:
    """Every alignment of a real Stockholm file, against the plain reader; (alignments, rows)."""
    total = count = 0
    rules = ColumnRules(query="first" if query else "none")
    for alignment, family in zip(read_alignments(path), plain_stockholm(path), strict=True):
        assert rows(alignment) == family.rows
        found = clean(alignment, rules)
        assert [row.tobytes().decode() for row in found.letters] == plain_clean(family, query)
        assert found.structure is not None
        assert len(found.structure) == found.letters.shape[1]
        count, total = count + 1, total + len(alignment.rows)
    return count, total


def test_viennarna_seeds(shared_data: Path) -> None:
    assert compare(shared_data / "alignments/viennarna_rfam_seed_selected.stk.gz", True) == (4, 712 + 61 + 100 + 208)


@pytest.mark.slow
def test_whole_rfam_seed(shared_data: Path) -> None:
    assert compare(shared_data / "alignments/Rfam14.2.seed.gz", True) == (3026, 72_262)


@pytest.mark.slow
def test_rfam_3d_with_repeated_names(shared_data: Path, tmp_path: Path) -> None:
    files = unpacked(shared_data / "alignments/rfam_3d_seed_alignments.tar.gz", tmp_path)
    counted = [compare(path, False) for path in files]
    assert [sum(column) for column in zip(*counted, strict=True)] == [129, 13_328]
    distinct = sum(len({name for name, _ in plain_stockholm(path)[0].rows}) for path in files)
    assert distinct == 13_293  # what a reader keyed by name would be left with


def test_infernal_dialects(shared_data: Path, tmp_path: Path) -> None:
    files = unpacked(shared_data / "alignments/infernal_sto.tar.gz", tmp_path)
    found = {path.name: list(read_alignments(path)) for path in files}
    shapes = {name: [(len(one.rows), len(one.rows[0])) for one in ones] for name, ones in found.items()}
    assert shapes["5S_rRNA.sto"] == [(712, 231)]
    assert shapes["tRNA1415G.sto"] == [(1415, 176)]
    assert shapes["rnaseP-eubact.sto"] == [(340, 1570)]
    assert [depth for depth, _ in shapes["3.4.12.rf.stk"]] == [100, 77, 21]
    assert sum(depth for ones in shapes.values() for depth, _ in ones) == 3358
    for path in files:
        for alignment, family in zip(found[path.name], plain_stockholm(path), strict=True):
            cleaned = clean(alignment, ColumnRules(query="none"))
            assert [row.tobytes().decode() for row in cleaned.letters] == plain_clean(family, False)


def test_real_a3m(shared_data: Path, tmp_path: Path) -> None:
    files = unpacked(shared_data / "alignments/rhofold_a3m.tar.gz", tmp_path)
    depths = {path.stem: clean(next(read_alignments(path)), ColumnRules()).letters.shape for path in files}
    assert len(depths) == 16
    assert depths["5lysA"][0] == 5335
    assert sum(depth for depth, _ in depths.values()) == 23_734
    mixed = clean(next(read_alignments(shared_data / "alignments/trrosettarna2_example.a3m")), ColumnRules())
    assert mixed.letters.shape == (19, 49)
    assert mixed.changes["t_to_u"] == 80
    assert set(mixed.letters.ravel().tolist()) <= set(b"ACGU-")
