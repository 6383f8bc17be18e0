"""Which samples are the validation split: one fold of the clean ones, by sequence (stratified) or by cluster.

By sequence it is the original's split (spec RibonanzaNet 4): the samples of the chosen classes are dealt to folds so
that each library has its share in every fold. Fold sizes are exactly those of scikit-learn's StratifiedKFold, fold 0 of
167,671 being 27,946; which samples they are is decided by a keyed hash of each sequence instead of the order of rows.
By cluster, whole clusters are dealt out, the largest first onto the smallest fold, so no cluster is in both splits;
samples of other classes go with their cluster.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import numpy.typing as npt

from data.buckets import split_keys
from data.errors import DataError
from data.reactivity_config import ReactivityConfig
from data.reactivity_filter import CLASSES, classify

I64 = npt.NDArray[np.int64]


def choose(
    config: ReactivityConfig,
    lo: npt.NDArray[np.uint64],
    first: npt.NDArray[np.uint32],
    signal_to_noise: npt.NDArray[np.float32],
    libraries: npt.NDArray[np.integer],
) -> npt.NDArray[np.bool_]:
    """[n] whether each sample is in the validation split. Raises DataError if a split would be empty.

    Lower half of the hash, first member of the cluster, signal-to-noise [n, channels] and library of each sample.
    Libraries are numbered in the order of their names.
    """
    count, split = len(lo), config.split
    held_out = np.zeros(count, dtype=bool)
    if not split.folds:
        return held_out
    wanted = [CLASSES.index(name) for name in split.of]
    eligible = np.flatnonzero(np.isin(classify(signal_to_noise, config.threshold), wanted))
    keys = split_keys(np.ascontiguousarray(lo), config.seed)
    if split.by == "sequence":
        folds = stratified_folds(libraries[eligible], keys[eligible], split.folds)
        held_out[eligible[folds == split.fold]] = True
    else:
        sizes = np.bincount(first[eligible], minlength=count)
        units = np.flatnonzero(sizes)
        folds = balanced_folds(sizes[units], keys[units], split.folds)
        chosen = np.zeros(count, dtype=bool)
        chosen[units[folds == split.fold]] = True
        held_out = chosen[first]
    if not held_out.any():
        none = [name for name, ratios in zip(config.channels, signal_to_noise.T, strict=True) if np.isnan(ratios).all()]
        why = f" (no profile of {' and '.join(none)} has a signal-to-noise)" if none else ""
        raise DataError(
            f"{config.name}: the validation split would be empty, {len(eligible)} sequences of {', '.join(split.of)} "
            f"are too few for {split.folds} folds{why}; set split.folds=0 for no validation split, split.of to more, "
            "or channels to those that there are."
        )
    if held_out.all():
        raise DataError(f"{config.name}: the train split would be empty; raise split.folds.")
    return held_out


def stratified_folds(strata: npt.NDArray[np.integer], keys: npt.NDArray[np.uint64], folds: int) -> I64:
    """[n] fold of each sample. Fold i gets of each stratum as many as stand at places i, i + folds, ... of all samples

    sorted by stratum; inside a stratum the smallest keys go to fold 0, the next to fold 1.
    """
    order = np.lexsort((keys, strata))
    ordered = strata[order]
    result = np.empty(len(strata), dtype=np.int64)
    place = np.arange(len(strata)) % folds
    bounds = [0, *(1 + np.flatnonzero(ordered[1:] != ordered[:-1])).tolist(), len(ordered)]
    for start, stop in itertools.pairwise(bounds):
        result[order[start:stop]] = np.sort(place[start:stop])
    return result


def balanced_folds(sizes: I64, keys: npt.NDArray[np.uint64], folds: int) -> I64:
    """[n] fold of each unit: the largest first (equals by key) onto the fold that holds least, ties to the last one."""
    result = np.empty(len(sizes), dtype=np.int64)
    loads = [(0, -fold) for fold in range(folds)]
    heapq.heapify(loads)
    for unit in np.lexsort((keys, -sizes)).tolist():
        load, fold = heapq.heappop(loads)
        result[unit] = -fold
        heapq.heappush(loads, (load + int(sizes[unit]), fold))
    return result
