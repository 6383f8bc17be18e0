"""Folds: sizes as scikit-learn's StratifiedKFold makes them, whole clusters, nothing in two folds."""

from __future__ import annotations

import numpy as np
import pytest

from data.reactivity_split import balanced_folds, stratified_folds


def sklearn_allocation(strata: np.ndarray, folds: int) -> np.ndarray:
    """[folds, strata] as scikit-learn 1.3 computes it (`_make_test_folds`): every folds-th of the sorted strata."""
    ordered = np.sort(strata)
    return np.array([np.bincount(ordered[i::folds], minlength=strata.max() + 1) for i in range(folds)])


@pytest.mark.parametrize(("count", "folds", "libraries"), [(1000, 6, 7), (17, 6, 3), (997, 5, 1), (40, 7, 20)])
def test_fold_sizes(count: int, folds: int, libraries: int) -> None:
    generator = np.random.default_rng(count)
    strata = generator.integers(0, libraries, count)
    strata[0] = libraries - 1
    found = stratified_folds(strata, generator.integers(0, 2**63, count).astype(np.uint64), folds)
    counted = np.array([np.bincount(strata[found == fold], minlength=libraries) for fold in range(folds)])
    np.testing.assert_array_equal(counted, sklearn_allocation(strata, folds))


def test_the_published_fold() -> None:
    """167,671 clean sequences, fold 0 of 6: 27,946 (spec RibonanzaNet 5)."""
    keys = np.random.default_rng(0).integers(0, 2**63, 167_671).astype(np.uint64)
    found = stratified_folds(keys % np.uint64(20), keys, 6)
    assert np.count_nonzero(found == 0) == 27_946


def test_members_follow_keys_and_not_places() -> None:
    generator = np.random.default_rng(1)
    strata, keys = generator.integers(0, 3, 500), generator.permutation(500).astype(np.uint64)
    found, order = stratified_folds(strata, keys, 4), generator.permutation(500)
    np.testing.assert_array_equal(stratified_folds(strata[order], keys[order], 4), found[order])
    other = stratified_folds(strata, keys[::-1].copy(), 4)
    assert np.count_nonzero(found != other) > 200


def test_balanced_folds() -> None:
    generator = np.random.default_rng(2)
    sizes = np.concatenate([[400], generator.integers(1, 20, 300)])
    found = balanced_folds(sizes, generator.integers(0, 2**63, 301).astype(np.uint64), 6)
    loads = np.bincount(found, weights=sizes, minlength=6)
    assert loads.max() - loads.min() <= 20
    assert found[0] == 5  # a giant cluster goes to the last fold, and fold 0 stays an ordinary one
