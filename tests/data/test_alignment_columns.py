"""Match columns, the query, letters, and the structure over what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.alignment_columns import ColumnRules, clean
from data.dot_bracket import partners, restricted
from data.errors import DataError
from data.formats.raw_alignment import RawAlignment
from data.synthetic import SyntheticCorpus
from data.synthetic_family import pair_table


def raw(*rows: str, **marks: str) -> RawAlignment:
    names = [b"row%d" % i for i in range(1, len(rows) + 1)]
    bodies = [row.encode() for row in rows]
    return RawAlignment(Path("a.sto"), 1, False, names, bodies, {}, {key: v.encode() for key, v in marks.items()})


def letters(alignment: RawAlignment, **rules: object) -> list[str]:
    return [row.tobytes().decode() for row in clean(alignment, ColumnRules(**rules)).letters]  # type: ignore[arg-type]


def test_letters() -> None:
    rows = ["ACGUTX", "acgutx", "RYKMSW", "BDHVNI", "-._~--", "ACGUUU"]
    found = clean(raw(*rows), ColumnRules("all", query="none"))
    assert [row.tobytes() for row in found.letters] == [b"ACGUUX", b"ACGUUX", b"XXXXXX", b"XXXXXX", b"ACGUUU"]
    assert found.changes["t_to_u"] == 2
    assert found.changes["ambiguity_to_x"] == 11
    assert found.changes["inosine_to_x"] == 1
    assert found.changes["rows_without_letters_removed"] == 1


def test_proteins_spelled_with_letters_of_nucleotides_are_refused() -> None:
    """More than half of the letters ambiguity codes; gaps do not count, and columns that are dropped do."""
    with pytest.raises(DataError, match=r"^a\.sto, alignment 1: 10 of its 14 letters are ambiguity codes \(DHKNRSV\)"):
        clean(raw("DkVHS-NR", "TAVHSC-A", "--------"), ColumnRules("all"))
    half = raw("ACGU----", "NNNN----")
    assert letters(half) == ["ACGU", "XXXX"]
    with pytest.raises(DataError, match="5 of its 9 letters"):
        clean(raw("ACGU----", "NNNNN---", RF="xxxx...."), ColumnRules())
    some = raw("ACGUNACGUACG", "ACGUNACNUACG", "NNNNNNCGUACG")
    assert clean(some, ColumnRules()).changes["ambiguity_to_x"] == 9


def test_columns() -> None:
    family = raw("A-gU-", "AC-U-", "-C-UC", "AC.UC", RF="xx..x")
    assert letters(family, query="none") == ["A--", "AC-", "-CC", "ACC"]
    assert letters(family, columns="gaps", query="none") == ["A-U-", "ACU-", "-CUC", "ACUC"]
    assert letters(family, columns="gaps", max_gaps=0.25, query="none") == ["A-U", "ACU", "-CU", "ACU"]
    assert letters(family, columns="all", query="none") == ["A-GU-", "AC-U-", "-C-UC", "AC-UC"]
    del family.marks["RF"]
    assert letters(family, query="none") == letters(family, columns="gaps", query="none")


def test_query() -> None:
    family = raw("--gU-", "AC-U-", "-C-UC", "AC.UC", RF="xx..x")
    # Row 1 has no letter in a match column, so row 2 is the first that can be the query.
    found = clean(family, ColumnRules())
    assert found.query == "row2"
    assert [row.tobytes() for row in found.letters] == [b"AC", b"-C", b"AC"]
    assert found.changes["inserted_letters_removed"] == 12 - 5
    seen = {clean(family, ColumnRules(query="random", seed=seed)).query for seed in range(40)}
    assert seen == {"row2", "row3", "row4"}
    for seed in range(10):
        assert b"-" not in clean(family, ColumnRules(query="random", seed=seed)).letters[0].tobytes()
    again = [clean(family, ColumnRules(query="random", seed=5)).query for _ in range(3)]
    assert len(set(again)) == 1


def test_nothing_left() -> None:
    assert clean(raw("AC", "CA", RF=".."), ColumnRules()).letters.shape == (0, 0)
    assert clean(raw("--", "--"), ColumnRules("all")).letters.size == 0


def test_partners() -> None:
    assert partners("<(..)>[A.]a").tolist() == [5, 4, -1, -1, 1, 0, 9, 10, -1, 6, 7]
    for broken in ("(.", ".)", "(.>", "A..", "b"):
        with pytest.raises(ValueError, match="column"):
            partners(broken)
    for family in SyntheticCorpus(3, "standard").families[:10]:
        assert np.array_equal(partners(family.structure), pair_table(family.structure))


def test_structure_keeps_only_whole_pairs() -> None:
    assert restricted("<<_,>>AA-aa", np.arange(11)) == "<<..>>AA.aa"
    assert restricted("<<_,>>AA-aa", np.array([0, 2, 3, 4, 5, 6, 7, 10])) == "<...>A.a"
    generator = np.random.default_rng(0)
    for family in SyntheticCorpus(3, "standard").families[:20]:
        kept = np.flatnonzero(generator.random(len(family.structure)) < 0.8)
        old, new = pair_table(family.structure), pair_table(restricted(family.structure, kept))
        place = {column: i for i, column in enumerate(kept.tolist())}
        assert new.tolist() == [place.get(partner, -1) for partner in old[kept].tolist()]


def test_structure_of_an_alignment() -> None:
    family = raw("GG-AACC", "GGAAACC", SS_cons="<<...>>", RF="xx.xxxx")
    assert clean(family, ColumnRules()).structure == "<<..>>"
    found = clean(raw("G--AACC", "GGAAACC", SS_cons="<<...>>", RF="xx.xxxx"), ColumnRules())
    assert (found.structure, found.letters.shape) == ("<...>", (2, 5))
    for broken in ("<<...>", "<<...>>>", "<<...>"):
        found = clean(raw("GG-AACC", "GGAAACC", SS_cons=broken.ljust(7, "<")), ColumnRules())
        assert found.structure is None
        assert found.changes["structures_unreadable"] == 1
    assert clean(raw("GGAACC", "GGAACC"), ColumnRules()).structure is None
