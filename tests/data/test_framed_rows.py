"""Rows with `<cls>`, `<eos>` and a type, and how long sequences are cut (specs: rnaernie 2.4, 2.5, 3.1)."""

from __future__ import annotations

import numpy as np
import pytest

from data.alphabet import RNAERNIE
from data.framed_rows import FramedRowMaker
from tests.data.masking import keys

MIRNA, TRNA = RNAERNIE.ids["[miRNA]"], RNAERNIE.ids["[tRNA]"]


def arrays(*texts: str) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def test_rows_of_the_specification():
    rows = FramedRowMaker(RNAERNIE, 512, "first", 4).rows(
        arrays("ACGU", "AN", ""), keys(3), np.array([MIRNA, -1, TRNA])
    )
    assert MIRNA == 38
    assert rows.tokens.tolist() == [1, 6, 7, 8, 9, 28, 38, 2, 1, 6, 3, 2, 1, 28, TRNA, 2]
    assert rows.lengths.tolist() == [8, 4, 4]
    assert rows.positions.tolist() == [*range(8), *range(4), *range(4)]
    assert rows.sample.tolist() == [0] * 8 + [1] * 4 + [2] * 4
    assert rows.nucleotides.tolist() == [4, 2, 0]
    assert rows.letter_token.tolist() == [1, 2, 3, 4, 9, 10]
    assert rows.type_token.tolist() == [6, -1, 14]
    assert rows.nucleotide[rows.letter_token].tolist() == [0, 1, 2, 3, 0, 1]


def test_no_sequence_gives_one_empty_row():
    rows = FramedRowMaker(RNAERNIE, 512, "first", 4).rows([], keys(0), np.zeros(0, np.int64))
    assert (rows.tokens.tolist(), rows.lengths.tolist(), rows.nucleotides.tolist()) == ([1, 2], [2], [0])


@pytest.mark.parametrize(("frame", "read"), [(2, 510), (4, 508)])
def test_the_first_508_or_510_nucleotides_are_read(frame, read):
    maker = FramedRowMaker(RNAERNIE, 512, "first", frame)
    texts = ["".join(np.random.default_rng(0).choice(list("ACGU"), n)) for n in (507, 508, 510, 511, 3000)]
    rows = maker.rows(arrays(*texts), keys(5), np.full(5, -1))
    assert rows.nucleotides.tolist() == [min(len(text), read) for text in texts]
    assert rows.letters.tobytes().decode() == "".join(text[:read] for text in texts)
    planned = maker.planned_lengths(np.array([len(text) for text in texts]))
    assert planned.max() == 512
    assert (rows.lengths <= planned).all()
    if frame == 4:
        assert (maker.rows(arrays(*texts), keys(5), np.full(5, MIRNA)).lengths == planned).all()


def test_a_random_window_is_any_with_equal_chance_and_framed_whole():
    text = "".join(np.random.default_rng(1).choice(list("ACGU"), 60))
    rows = FramedRowMaker(RNAERNIE, 44, "random", 4).rows(arrays(text) * 4000, keys(4000), np.full(4000, MIRNA))
    assert set(rows.lengths.tolist()) == {44}
    counts = np.bincount(rows.starts, minlength=21)
    assert len(counts) == 21
    assert abs(((counts - 4000 / 21) ** 2 / (4000 / 21)).sum() - 20) < 4 * np.sqrt(40)
    table = rows.tokens.reshape(4000, 44)
    assert (table[:, [0, 41, 42, 43]] == [1, 28, 38, 2]).all()
    places = rows.nucleotide[rows.letter_token]
    assert rows.letters.tolist() == np.frombuffer(text.encode(), np.uint8)[places].tolist()
