"""Motif files of every format, and what is refused (specs: rnaernie 3.3; data README, traps 9)."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.formats.motif_matrices import IUPAC_LETTERS
from data.formats.motifs import read_motifs

HEADER = "Gene_name\tMutated\tOrganism\tMotif\tLen\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_plain_list_is_normalised_as_sequences_are_and_words_are_distinct(tmp_path):
    path = write(tmp_path / "list.txt", "# a comment\nacgt\nACGT  # z 3, count 7\n\n  GGTT\t\n")
    found = read_motifs([path])
    assert found.words == ["ACGU", "GGUU"]
    assert found.read == 3
    assert found.left_out == {"duplicate": 1}


def test_ambiguity_codes_stand_for_every_word(tmp_path):
    assert read_motifs([write(tmp_path / "a.txt", "YGCY\n")]).words == ["CGCC", "CGCU", "UGCC", "UGCU"]
    assert len(read_motifs([write(tmp_path / "b.txt", "UGUANAUA\n")]).words) == 4
    assert {code: set(letters) for code, letters in IUPAC_LETTERS.items() if len(letters) == 2} == {
        "R": {"A", "G"},
        "Y": {"C", "U"},
        "S": {"C", "G"},
        "W": {"A", "U"},
        "K": {"G", "U"},
        "M": {"A", "C"},
    }


def test_lengths_outside_the_limits_are_left_out_and_counted(tmp_path):
    found = read_motifs([write(tmp_path / "list.txt", "ACG\nACGU\nACGUA\nACGUAC\n")], min_len=4, max_len=5)
    assert found.words == ["ACGU", "ACGUA"]
    assert found.left_out == {"too_short": 1, "too_long": 1}


def test_of_a_table_rows_that_are_not_mutated_and_of_the_organism(tmp_path):
    rows = "a\tno\tHomo_sapiens\tACGU\t4\nb\tyes\tHomo_sapiens\tAAAA\t4\nc\tno\tMus_musculus\tGGGG\t4\n"
    path = tmp_path / "table.tsv.gz"
    path.write_bytes(gzip.compress((HEADER + rows).encode()))
    every, human = read_motifs([path]), read_motifs([path], organism="Homo_sapiens")
    assert (every.words, every.left_out) == (["ACGU", "GGGG"], {"mutated": 1})
    assert (human.words, human.left_out) == (["ACGU"], {"mutated": 1, "other_organism": 1})


PWM = ">M1\t2\n0.9\t0.1\t0\t0\n0.5\t0\t0.5\t0\n>M2\t1\n0.25\t0.25\t0.25\t0.25\n"
MEME = """MEME version 4

ALPHABET= {alphabet}

strands: +

Background letter frequencies
A 0.25 C 0.25 G 0.25 {last} 0.25

MOTIF M1 first
letter-probability matrix: alength= 4 w= 2 nsites= 20 E= 0
 0.90 0.10 0.00 0.00
 0.50 0.00 0.50 0.00
URL http://example.org

MOTIF M2
letter-probability matrix: alength= 4 w= 1
 0.00 0.00 0.00 1.00
"""


def test_matrices_become_the_words_of_their_likely_letters(tmp_path):
    path = write(tmp_path / "pwm.txt", PWM)
    assert read_motifs([path]).words == ["AA", "AG", "A", "C", "G", "U"]
    assert read_motifs([path], threshold=0.1).words == ["AA", "AG", "CA", "CG", "A", "C", "G", "U"]
    assert read_motifs([path], threshold=0.95, min_len=2).words == ["AA", "AG"]  # the likeliest, ties included


@pytest.mark.parametrize(("alphabet", "last"), [("ACGU", "U"), ("ACGT", "T")])
def test_meme(alphabet, last, tmp_path):
    assert read_motifs([write(tmp_path / "m.meme", MEME.format(alphabet=alphabet, last=last))]).words == [
        "AA",
        "AG",
        "U",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.txt", "ACGU\nACXG\n", r"letter\.txt, line 2: the motif 'ACXG' has 'X', expected A, C, G, U"),
        ("inosine.txt", "ACIG\n", r"line 1: the motif 'ACIG' has 'I'"),
        ("gap.txt", "AC-G\n", r"line 1: the motif 'AC-G' has '-'"),
        ("two words.txt", "ACGU GGG\n", r"line 1: the motif 'ACGU GGG' has ' '"),
        ("mixed.txt", "ACGU\n# T\nAAA\nACGT\n", r"mixed\.txt: spells uracil T in line 4 and U in line 1"),
        ("empty.txt", "", r"empty\.txt: the file is empty"),
        ("comments.txt", "# nothing\n\n", r"comments\.txt: holds no motif; check the file"),
        (
            "columns.tsv",
            "Gene_name\tMotif\nx\tACGU\n",
            r"line 1: the table has no column Mutated and no column Organism",
        ),
        ("fields.tsv", HEADER + "a\tno\n", r"fields\.tsv, line 2: has 2 fields, but the header has 5"),
        ("mutated.tsv", HEADER + "a\tmaybe\th\tACGU\t4\n", r"line 2: Mutated is 'maybe', expected yes or no"),
        ("empty motif.tsv", HEADER + "a\tno\th\t\t4\n", r"line 2: the motif is empty"),
        ("cap.txt", "ACGU\nNNNNNNN\n", r"cap\.txt, line 2: the motif NNNNNNN stands for 16,384 words, more than"),
        ("rows.pwm", ">M\t3\n1 0 0 0\n", r"rows\.pwm, line 1: the matrix M has 1 rows, but its header says 3"),
        ("header.pwm", ">M\n1 0 0 0\n", r"header\.pwm, line 1: expected `>matrix_id<TAB>length`"),
        ("sum.pwm", ">M\t1\n1 1 0 0\n", r"sum\.pwm, line 2: expected four probabilities"),
        ("text.pwm", ">M\t1\n1 0 0 x\n", r"text\.pwm, line 2: expected four probabilities"),
        ("cap.pwm", ">M\t7\n" + "0.25 0.25 0.25 0.25\n" * 7, r"cap\.pwm, line 1: the motif NNNNNNN stands for 16,384"),
        ("protein.meme", "MEME version 4\nALPHABET= ACDEFGH\n", r"protein\.meme: the alphabet is ACDEFGH, expected"),
        ("none.meme", "MEME version 4\n", r"none\.meme: the alphabet is None, expected a line"),
        ("width.meme", MEME.format(alphabet="ACGU", last="U").replace("w= 2", "w= 5"), "has 2 rows, expected 5"),
    ],
)
def test_refusals_name_file_and_line(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_motifs([write(tmp_path / name, content)])
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_binary_one_and_an_unknown_organism_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_motifs([tmp_path / "none.txt"])
    (tmp_path / "binary.txt").write_bytes(bytes(range(128, 160)))
    with pytest.raises(DataError, match="no text file of motifs"):
        read_motifs([tmp_path / "binary.txt"])
    table = write(tmp_path / "table.tsv", HEADER + "a\tno\tHomo_sapiens\tACGU\t4\n")
    with pytest.raises(DataError, match="holds no motif of the organism Homo_sapien;"):
        read_motifs([table], organism="Homo_sapien")


def test_a_motif_that_is_too_long_is_left_out_before_it_is_written_out(tmp_path):
    assert read_motifs([write(tmp_path / "long.txt", "ACGU\n" + "N" * 20 + "\n")], max_len=10).words == ["ACGU"]


# The real files


@pytest.fixture
def published(shared_data: Path, tmp_path: Path) -> Path:
    with tarfile.open(shared_data / "motifs/rnaernie_motifs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "motif"


def test_the_published_lists_have_the_words_that_the_specification_counts(published):
    database = [published / "ATtRACT.txt", published / "SpliceAid.txt"]
    assert [len(read_motifs([path]).words) for path in database] == [3232, 1805]
    both = read_motifs(database)
    assert (both.read, len(both.words), both.left_out["duplicate"]) == (7010, 4041, 2969)
    assert len(read_motifs(database, 4, 12).words) == 3282
    assert sum("U" not in word for word in both.words) == 742
    mined = read_motifs([published / "Statistics.txt"]).words
    assert np.bincount([len(word) for word in mined])[10:].tolist() == [2220, 2541, 2605, 2634]
    assert not any("T" in word for word in mined)


def test_the_attract_table_has_the_words_of_the_published_list(shared_data, published):
    table = read_motifs([shared_data / "motifs/attract_db.tsv.gz"])
    assert table.read + table.left_out["mutated"] == 4882
    assert table.left_out["mutated"] == 78
    assert set(table.words) <= set(read_motifs([published / "ATtRACT.txt"]).words)


def test_the_attract_matrices_are_read_with_the_defaults(shared_data):
    found = read_motifs([shared_data / "motifs/attract_pwm.txt.gz"])
    assert found.read == 1583
    best = set(read_motifs([shared_data / "motifs/attract_pwm.txt.gz"], threshold=1.0).words)
    table = set(read_motifs([shared_data / "motifs/attract_db.tsv.gz"]).words)
    assert len(best & table) / len(best) > 0.9  # the columns are A, C, G, U in this order


def test_the_cap_refuses_a_matrix_of_the_real_file(shared_data):
    with pytest.raises(DataError, match=r"line 1912: the motif DSVUBMVCWUCAYMCC stands for 2,592 words"):
        read_motifs([shared_data / "motifs/attract_pwm.txt.gz"], expansions=1024)
