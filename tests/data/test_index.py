"""The reader: right sequences, views and not copies, speed, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.index import Corpus
from data.rna_types import TYPES
from tests.data.corpora import random_sequences, small_corpus

COUNT = 24_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


def test_attributes(path: Path) -> None:
    train, validation = Corpus.open(path), Corpus.open(str(path), "validation")
    assert train.count + validation.count == COUNT
    assert validation.count == 1000
    assert train.fingerprint == validation.fingerprint == train.manifest["fingerprint"]
    assert train.type_names == list(TYPES)
    for corpus in (train, validation):
        assert corpus.lengths.dtype == np.uint32
        assert corpus.lengths.shape == (corpus.count,)
        assert corpus.block_counts.dtype == np.int64
        assert corpus.block_counts.sum() == corpus.count
        assert (corpus.block_counts[:-1] == 1024).all()
    assert len({shard["name"] for shard in train.manifest["shards"]}) >= 3


def test_any_order_of_ids_gives_the_right_sequences(path: Path) -> None:
    originals = random_sequences(COUNT, shortest=20)
    found = set()
    for split in ("train", "validation"):
        corpus = Corpus.open(path, split)
        ids = np.random.default_rng(1).permutation(corpus.count)
        letters, names, types = corpus.letters(ids), corpus.accessions(ids), corpus.types(ids)
        assert [len(view) for view in letters] == corpus.lengths[ids].tolist()
        assert set(types.tolist()) == {TYPES.index("rRNA")}
        for view, name in zip(letters, names, strict=True):
            assert view.tobytes().decode() == originals[int(name[1:])]
        found |= set(names)
    assert len(found) == COUNT


def test_lists_repeats_and_none(path: Path) -> None:
    corpus = Corpus.open(path)
    assert corpus.letters([]) == []
    assert corpus.accessions(np.empty(0, dtype=np.int64)) == []
    assert len(corpus.types([])) == 0
    a, b = corpus.letters([5, 5])
    assert np.array_equal(a, b)


def test_views_are_read_only_and_outlive_the_reader(path: Path) -> None:
    corpus = Corpus.open(path)
    view = corpus.letters([0])[0]
    before = view.tobytes()
    assert not view.flags.owndata
    with pytest.raises(ValueError):
        view[0] = 0
    corpus.close()
    assert view.tobytes() == before
    with pytest.raises(DataError, match="closed"):
        corpus.letters([0])


@pytest.mark.parametrize("ids", [[-1], [COUNT - 1000], [0, 10**9]])
def test_numbers_outside_the_split(path: Path, ids: list[int]) -> None:
    with pytest.raises(DataError, match="not in the train split"):
        Corpus.open(path).letters(ids)


def test_unknown_split_and_no_corpus(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'test'"):
        Corpus.open(path, "test")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        Corpus.open(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Corpus.open(tmp_path / "none")


def test_only_touched_blocks_are_checked(path: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(path)
    corpus.letters([0])
    assert corpus._checked.sum() == 1
    corpus.letters([1024, 3])
    assert corpus._checked.sum() == 2


def test_random_access_is_fast(path: Path) -> None:
    corpus = Corpus.open(path)
    ids = np.random.default_rng(0).integers(0, corpus.count, 20_000)
    corpus.letters(ids)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        corpus.letters(ids)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) / len(ids) < 5e-6  # about 0.6 us on an idle core; the rest is for busy machines
