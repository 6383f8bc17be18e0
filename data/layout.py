"""How the samples of a step are laid out over ranks and micro-batches: a pure function of lengths and machines.

The layout decides speed and memory and never the result: the loss of a step is a sum over samples, normalised once
over the whole global batch. Every rank computes the same layout from the lengths alone, and all ranks run the same
number of micro-batches (an empty one contributes zero), as collectives inside the backward pass require.
"""

from __future__ import annotations

import heapq
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from data.errors import DataError

I64: TypeAlias = npt.NDArray[np.int64]


def split_over_ranks(costs: npt.ArrayLike, ranks: int) -> list[I64]:
    """Indices per rank, longest first onto the least loaded rank (ties: the lower rank); each list by descending cost.

    costs: [n] of any unit. Ranks beyond the number of samples get nothing; whether that makes sense (validation) or is
    a mistake (training) is for the caller to say.
    """
    costs = np.asarray(costs)
    descending = np.argsort(-costs.astype(np.float64), kind="stable")
    chosen: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for i in descending.tolist():
        load, rank = heapq.heappop(loads)
        chosen[rank].append(i)
        heapq.heappush(loads, (load + float(costs[i]), rank))
    return [np.array(indices, dtype=np.int64) for indices in chosen]


def fill_micro_batches(lengths: npt.ArrayLike, budget: int, padded: bool = False) -> list[I64]:
    """Cut samples that are sorted by descending length into runs of at most ``budget`` tokens.

    lengths: [n] tokens per sample, descending, so that a run holds similar lengths and a padding kernel wastes little.
    ``padded``: each counts as the longest of its run, since memory is that of the padded batch, and a run ends before
    the first that costs less than half of the longest, since every one would be computed on as if it cost that.
    Returns positions into ``lengths`` per micro-batch. Raises DataError when one sample alone exceeds the budget.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.max()) > budget:
        raise DataError(
            f"one sequence of the step has {int(lengths.max())} tokens, more than "
            f"batch.tokens_per_micro_batch = {budget}; "
            "raise it or lower objective.max_tokens"
        )
    if padded:
        return _padded_runs(lengths, budget)
    ends = np.cumsum(lengths)
    runs, start, before = [], 0, 0
    while start < len(lengths):
        stop = int(np.searchsorted(ends, before + budget, side="right"))
        runs.append(np.arange(start, stop))
        before, start = int(ends[stop - 1]), stop
    return runs


def _padded_runs(lengths: I64, budget: int) -> list[I64]:
    runs, start = [], 0
    while start < len(lengths):
        longest = int(lengths[start])
        similar = int(np.searchsorted(-lengths, -longest / 2, side="right"))
        stop = min(similar, start + max(budget // max(longest, 1), 1))
        runs.append(np.arange(start, stop))
        start = stop
    return runs


def plan_step(
    lengths: npt.ArrayLike, ranks: int, tokens_per_micro_batch: int, alone: bool = False, padded: bool = False
) -> list[list[I64]]:
    """Micro-batches of every rank: ``plan[rank][micro_batch]`` holds indices into ``lengths``, longest first.

    lengths: [n] tokens per sample of the step. All ranks get the same number of micro-batches; the last ones of a rank
    may be empty arrays. ``alone``: one sample per micro-batch. ``padded`` and DataError as in
    ``fill_micro_batches``.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    plan = []
    for mine in split_over_ranks(lengths, ranks):
        runs = fill_micro_batches(lengths[mine], tokens_per_micro_batch, padded)
        if alone:
            runs = [np.array([i]) for i in range(len(mine))]
        plan.append([mine[run] for run in runs])
    most = max(len(micro_batches) for micro_batches in plan)
    nothing = np.empty(0, dtype=np.int64)
    for micro_batches in plan:
        micro_batches.extend([nothing] * (most - len(micro_batches)))
    return plan
