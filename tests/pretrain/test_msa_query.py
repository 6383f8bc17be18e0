"""The objective of alignments with a random query: columns, rows, cost (specs: rnamsm 3.4)."""

import numpy as np

from data.msa_alphabet import RNAMSM
from data.msa_sampling import Limits, draw_query, outside_blocks
from pretrain.objectives.msa import MSA
from pretrain.objectives.msa_config import MSAConfig
from tests.pretrain.drawn_alignments import Drawn, keys

GAP = ord("-")


def test_a_random_query_decides_the_columns():
    """Spec 3.4: a random row is the query, its gap columns are dropped, before window and rows are drawn."""
    alignment, objective = Drawn(30, 50, gaps=0.4), MSA(MSAConfig(query="random", masked_fraction=1.0))
    seen = set()
    for i in range(40):
        batch = objective.collate([alignment], keys(40)[i : i + 1])
        query, rows, width = batch.target_row[0], batch.tokens.shape[1], batch.tokens.shape[2]
        own = np.flatnonzero(alignment.letters[query] != GAP)
        assert rows == 30
        assert sorted(set(batch.target_row.tolist())) == list(range(30))
        assert width == 1 + len(own)
        assert (batch.target_nucleotide.reshape(rows, width - 1) == own).all()
        assert (batch.target_row.reshape(rows, width - 1) == batch.target_row[:: width - 1, None]).all()
        expected = RNAMSM.lookup[alignment.letters[batch.target_row, batch.target_nucleotide]]
        assert (batch.targets.numpy() == expected).all()
        seen.add(int(query))
    assert len(seen) > 15
    draws = np.bincount([draw_query(10, int(key)) for key in keys(5000)], minlength=10)
    assert (abs(draws / 5000 - 0.1) <= 4 * np.sqrt(0.09 / 5000)).all()
    assert [len(rows) for rows in alignment.read[-2:]] == [1, 30]  # no other row is read


def test_a_random_query_fills_the_tokens_and_never_exceeds_the_planned_cost():
    """The narrower the query, the more rows there are; the window is of the query's own columns."""

    class Corpus:
        depths, lengths = np.array([3000]), np.array([1500])

    objective, alignment = (
        MSA(MSAConfig(query="random", max_columns=200, max_tokens=4096, masked_fraction=1.0)),
        Drawn(3000, 1500, gaps=0.9),
    )
    cost = objective.costs(Corpus, np.array([0]))[0]
    shapes = set()
    for i in range(20):
        batch = objective.collate([alignment], keys(20)[i : i + 1])
        _, rows, width = batch.tokens.shape
        assert width == 1 + min(199, np.count_nonzero(alignment.letters[batch.target_row[0]] != GAP))
        assert rows == 4096 // width
        assert batch.tokens.numel() <= cost == 4096
        assert batch.tokens.numel() <= objective.token_lengths(np.array([1500]))[0]
        shapes.add(width)
    assert len(shapes) > 3
    wide = objective.collate([Drawn(5, 1500, gaps=0.0)], keys(1))
    assert wide.tokens.shape == (1, 5, 200)
    # The most that a sample may have: depth x (columns + 1), or max_tokens.
    limits = Limits(200, 1024, 4096)
    for depth, columns in [(3, 9), (30, 300), (5000, 10), (40, 150), (21, 199)]:
        every = [np.prod(limits.shape(depth, narrower)) for narrower in range(1, columns + 1)]
        assert max(every) <= limits.most_tokens(depth, columns) <= max(depth, 1) * 200


def test_rows_without_letters_in_the_columns_of_a_random_query_are_left_out():
    alignment = Drawn(3, 6)
    alignment.letters = np.frombuffer(b"ACG---" + b"---GGU" + b"A---CC", np.uint8).reshape(3, 6)
    objective, found = MSA(MSAConfig(query="random", masked_fraction=1.0)), {}
    for i in range(30):
        batch = objective.collate([alignment], keys(30)[i : i + 1])
        found[int(batch.target_row[0])] = sorted(set(batch.target_row.tolist()))
    assert found == {0: [0, 2], 1: [1, 2], 2: [0, 1, 2]}


def test_block_deletion_spares_a_random_query():
    assert all(7 not in outside_blocks(10, 3, 0.3, int(key), query=7) for key in keys(50))
    assert any(0 in outside_blocks(10, 3, 0.3, int(key), query=7) for key in keys(50))
    objective = MSA(MSAConfig(query="random", deleted_blocks=5, masked_fraction=1.0))
    for i in range(20):
        rows = objective.collate([Drawn(40, 20, gaps=0.0)], keys(20)[i : i + 1]).target_row
        assert len(np.unique(rows)) < 40
        assert (rows == rows[0]).sum() == 20
