"""Which columns and rows of an alignment a sample is made of: pure functions of sizes and a key.

The original's sizes, without two flaws of it (specs: rnamsm 3.3): a window that is cut always has full width, where the
original's may be one nucleotide wide; and rows are drawn without replacement unless asked for, where the original draws
162 of 300 rows so that only 77 % are distinct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data import randomness

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """Of one sample; columns and tokens count `<cls>`, of which each row has one."""

    columns: int
    rows: int
    tokens: int

    def shape(self, depth: npt.ArrayLike, columns: npt.ArrayLike) -> tuple[I64, I64]:
        """(rows, columns with `<cls>`) of the samples that alignments of these sizes give, elementwise."""
        width = np.minimum(np.asarray(columns, dtype=np.int64) + 1, self.columns)
        most = np.minimum(self.rows, self.tokens // width)
        return np.minimum(np.asarray(depth, dtype=np.int64), most), width

    def most_tokens(self, depth: npt.ArrayLike, columns: npt.ArrayLike) -> I64:
        """Tokens that samples of at most so many columns can have, elementwise; fewer columns leave room for rows."""
        width = np.minimum(np.asarray(columns, dtype=np.int64) + 1, self.columns)
        found: I64 = np.minimum(np.minimum(np.asarray(depth, dtype=np.int64), self.rows) * width, self.tokens)
        return found


def window_start(columns: int, width: int, key: int) -> int:
    """Where a window of ``width`` columns starts, all possible places being equally likely."""
    return int(randomness.below(randomness.bits(key, [0]), max(columns - width, 0) + 1)[0])


def draw_query(depth: int, key: int) -> int:
    """Which row is the query, all being equally likely."""
    return int(randomness.below(randomness.bits(key, [0]), depth)[0])


def draw_rows(
    depth: int, rows: int, key: int, candidates: I64 | None = None, with_replacement: bool = False, query: int = 0
) -> I64:
    """``rows`` rows of an alignment: the query first, then a uniform draw of the others, ascending.

    candidates: ascending rows to draw from instead of all but the query; all if there are no more than asked for.
    with_replacement: as the original, so rows may repeat.
    """
    others = np.delete(np.arange(depth), query) if candidates is None else candidates
    wanted = min(rows - 1, len(others))
    if with_replacement and wanted:
        chosen = randomness.below(randomness.bits(key, np.arange(wanted)), len(others))
    else:
        chosen = randomness.permutation(key, len(others))[:wanted]
    return np.concatenate([[query], np.sort(others[chosen])]).astype(np.int64)


def outside_blocks(depth: int, blocks: int, fraction: float, key: int, query: int = 0) -> I64:
    """Rows but the query that remain when ``blocks`` runs of ``fraction`` of the depth are deleted, wherever they lie.

    AlphaFold's block deletion: neighbours in an alignment are often relatives, so whole clades drop out.
    """
    size = int(fraction * depth)
    kept = np.ones(depth, dtype=bool)
    for start in randomness.below(randomness.bits(key, np.arange(blocks)), depth).tolist():
        kept[start : start + size] = False
    kept[query] = False
    return np.flatnonzero(kept)
