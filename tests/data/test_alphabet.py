"""Letters to ids: the released RiNALMo vocabulary (specs: rinalmo 2.1)."""

from __future__ import annotations

import numpy as np
import pytest

from data.alphabet import IUPAC, RINALMO, Alphabet

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
