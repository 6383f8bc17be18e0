"""Letters to ids: the released vocabularies (specs: rinalmo 2.1, aido_rna 2, rnaernie 2)."""

from __future__ import annotations

import numpy as np
import pytest

from data.alphabet import AIDO_RNA, IUPAC, RINALMO, RNAERNIE, RNAERNIE_28, RNAERNIE_IUPAC, RNAERNIE_TYPES, Alphabet
from data.rna_types import TYPES
from data.tokenizer import is_special, made_of, widths

RELEASED = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ACGTIRYKMSWBDHVN-"]


def test_the_check_row_of_the_specification():
    assert RINALMO.encode_row("ACGUTNnx-").tolist() == [0, 5, 6, 7, 8, 8, 20, 20, 3, 21, 2]


def test_the_22_ids_are_the_released_ones():
    assert list(RINALMO.tokens) == RELEASED
    assert len(RINALMO) == 22
    assert [RINALMO.ids[token] for token in RELEASED] == list(range(22))


def test_every_one_of_256_codes_maps_as_plain_python_would():
    for code in range(256):
        letter = chr(code).upper().replace("U", "T") if code < 128 else "?"
        expected = RELEASED.index(letter) if letter in RELEASED else 3
        assert RINALMO.lookup[code] == expected, chr(code)


def test_no_letter_of_a_prepared_corpus_is_unknown():
    assert 3 not in RINALMO.encode(IUPAC + "I")


def test_text_bytes_and_arrays_encode_alike():
    text = "acguTNRYxé"
    from_text = RINALMO.encode(text)
    assert np.array_equal(from_text, RINALMO.encode(text.encode("ascii", "replace")))
    assert np.array_equal(from_text, RINALMO.encode(np.frombuffer(text.encode("ascii", "replace"), np.uint8)))
    assert from_text[-1] == 3


def test_a_vocabulary_that_spells_u_reads_t_as_well():
    spelled_u = Alphabet("u", ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", *"ACGU"))
    assert spelled_u.encode("TtUuN").tolist() == [8, 8, 8, 8, 3]
    assert spelled_u.encode_row("A").tolist() == [1, 5, 2]


def test_letter_id_knows_both_spellings_and_refuses_an_unknown_letter():
    assert RINALMO.letter_id("U") == RINALMO.letter_id("T") == 8
    with pytest.raises(KeyError, match="rinalmo has no letter 'X'"):
        RINALMO.letter_id("X")


# AIDO.RNA: the check rows of specification 2.2, with its default where GenBio's tokenizer changes lengths.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ACGT", [2, 5, 7, 6, 8, 3]),
        ("ACGU", [2, 5, 7, 6, 8, 3]),  # GenBio's gives 9, a row that was presumably never trained
        ("acgt", [2, 5, 7, 6, 8, 3]),
        ("ACRYG", [2, 5, 7, 10, 10, 6, 3]),  # one token per letter
        ("NNX-", [2, 10, 10, 10, 10, 3]),
    ],
)
def test_aido_rna_reads_dna_and_keeps_lengths(text, ids):
    assert AIDO_RNA.encode_row(text).tolist() == ids


def test_aido_rna_never_selects_or_inserts_a_token_that_no_sequence_gives():
    assert np.flatnonzero(made_of(AIDO_RNA)).tolist() == [5, 6, 7, 8, 10]  # N stays eligible, U and [UNK] are not
    assert np.flatnonzero(made_of(AIDO_RNA, "ACGU")).tolist() == [5, 6, 7, 8]
    assert widths(AIDO_RNA).tolist() == [0] * 5 + [1] * 6 + [0] * 5


def test_rnaernie_has_multimolecules_ids_and_types_at_22_more_than_the_original():
    assert [RNAERNIE.ids[t] for t in ("<pad>", "<cls>", "<mask>", "A", "U", "N", "?", "[IND]")] == [
        0,
        1,
        4,
        6,
        9,
        10,
        27,
        28,
    ]
    original = {"RNaseMRPRNA": 7, "lncRNA": 15, "miRNA": 16, "rRNA": 23, "scaRNA": 27, "tRNA": 31, "vaultRNA": 34}
    assert {name: RNAERNIE.ids[f"[{name}]"] - 22 for name in original} == original
    assert (len(RNAERNIE_TYPES), len(RNAERNIE), len(RNAERNIE_28)) == (28, 57, 28)
    assert all(is_special(token) for token in RNAERNIE.tokens[28:])


def test_every_type_of_rnaernie_is_an_rna_type_that_corpora_know():
    assert set(RNAERNIE_TYPES) <= {name.replace("_", "") for name in TYPES}


def test_rnaernie_reads_ambiguity_codes_as_unknown_unless_asked():
    assert RNAERNIE.encode("ACGUtNRI").tolist() == [6, 7, 8, 9, 9, 3, 3, 3]
    assert RNAERNIE_IUPAC.encode("ACGUtNRI").tolist() == [6, 7, 8, 9, 9, 10, 11, 21]
