"""Structures found by sequence, from dot-bracket files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.index import Corpus
from data.mixture import Mixture
from data.structures import StructureTable, WithStructures


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def test_structures_are_found_by_sequence_in_any_spelling(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn.gz"
    path.write_bytes(
        gzip.compress(b">a\r\ngggaaaccc\r\n(((...))) (-1.20)\r\n\n>b\nTTTT\n....\n>again\nGGGAAACCC\n.........\n")
    )
    table = StructureTable.read(path)
    assert table.count == 2
    assert table.of(letters("GGGAAACCC")) == b"(((...)))"
    assert table.of(letters("UUUU")) == b"...."
    assert table.of(letters("UUU")) is None


def test_gaps_leave_with_their_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn"
    path.write_text(">a\nGG.AA-CC\n(((..)))\n")
    # Columns 2 and 5 are gaps and pair with each other: nothing else changes.
    assert StructureTable.read(path).of(letters("GGAACC")) == b"((..))"
    path.write_text(">a\nGG.AACCC\n(((..)))\n")
    assert StructureTable.read(path).of(letters("GGAACCC")) == b"((...))"


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, other, third = (tmp_path / name for name in "abc")
    one.write_text(">a\nGAC\n(.)\n>b\nGG\n..\n")
    other.write_text(">x\nGG\n..\n>y\nGAC\n(.)\n")
    third.write_text(">a\nGAC\n...\n>b\nGG\n..\n")
    prints = [StructureTable.read(path).fingerprint for path in (one, other, third)]
    assert prints[0] == prints[1] != prints[2]


def test_a_mixture_gives_structures_and_counts_them_as_its_data(synthetic_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(synthetic_corpus)
    known = corpus.letters([3])[0].tobytes().decode()
    structure = f"({'.' * (len(known) - 2)})"
    (tmp_path / "a.dbn").write_text(f">known\n{known}\n{structure}\n")
    table = StructureTable.read(tmp_path / "a.dbn")
    plain, mixture = (Mixture({"only": corpus}, [1], 3, 32, structures) for structures in (None, table))
    assert not plain.has_structures
    assert plain.fingerprint == corpus.fingerprint != mixture.fingerprint
    ids = np.array([4, 3])
    assert mixture.structures(ids) == WithStructures(corpus, table).structures(ids) == [None, structure.encode()]
    assert np.array_equal(mixture.types(ids), corpus.types(ids))
    assert mixture.type_names == corpus.type_names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (">a\nGAC\n(.)\n>b\nGAC\n", "line 5: the last record is not complete"),
        (">a\nGAC\n(..)\n", r"line 3 \(>a\): 3 letters, but a structure of 4"),
        (">a\nGAC\n(..\n", r"line 3 \(>a\): '\(' in column 1 is never closed"),
        ("GAC\n(.)\n>a\n", "line 3: three lines above should be `>name`"),
        ("\n\n", "holds no structure"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.dbn"
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        StructureTable.read(path)


def test_real_pseudoknots(shared_data: Path) -> None:
    table = StructureTable.read(shared_data / "sequences" / "pseudobase_short.dbn")
    assert table.count == 339  # distinct sequences of its 350 records
    assert table.of(letters("AAAAAACUAAUAGAGGGGGGACUUAGCGCCCCCCAAACCGUAACCCC")) == (
        b"..............[[[[[[.....(((]]]]]]....)))......"
    )
