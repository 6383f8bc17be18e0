"""Random flips and truncations over every file of a corpus of alignments: none is silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.alignment_corpus import prepare_alignments
from data.alignments import AlignmentCorpus
from data.errors import DataError
from data.verify_alignments import verify_alignments
from tests.data.alignments import config, many_families, write_stockholm
from tests.data.test_damage import damage


def read_all(path: Path) -> None:
    """What training reads, and every other byte that a reader looks at."""
    for split in ("train", "validation"):
        corpus = AlignmentCorpus.open(path, split)
        for one in corpus.alignments(np.arange(corpus.count)):
            one.rows(np.arange(one.depth))
            assert one.described["depth"] == one.depth


def refusal(path: Path) -> str:
    """What training is told, "" if it reads everything."""
    try:
        read_all(path)
    except DataError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment-damage")
    source = write_stockholm(folder / "a.sto", many_families(60, columns=200))
    prepare_alignments(config(folder / "corpus", source, validation_fraction=0.2))
    return folder / "corpus"


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damage_is_silent(corpus: Path, tmp_path: Path, trials: int) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    names = sorted(path.name for path in corpus.iterdir())
    assert names == ["index.npz", "manifest.json", "train-000000.tar", "validation-000000.tar"]
    generator = np.random.default_rng(trials)
    refused = 0
    for trial in range(trials):
        name = names[trial % len(names)]
        what = damage(copy / name, generator)
        found = verify_alignments(copy).problems
        assert found, what
        assert name in " ".join(found), what
        told = refusal(copy)
        if told:
            assert name in told, what
            refused += 1
        else:  # a byte that no reader needs, in a page of which none needs any: the end of the archive
            assert name.endswith(".tar"), what
            assert "flipped" in what, what
        shutil.copyfile(corpus / name, copy / name)
    assert refused > 0.85 * trials
    assert verify_alignments(copy).intact
    read_all(copy)


def test_extra_file_and_lost_shard(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    (copy / "more.txt").write_text("?")
    assert verify_alignments(copy).problems == [f"{copy / 'more.txt'}: does not belong to the corpus."]
    (copy / "train-000000.tar").unlink()
    assert "is missing" in verify_alignments(copy).problems[0]
    with pytest.raises(DataError, match=r"train-000000\.tar: is missing"):
        AlignmentCorpus.open(copy)
