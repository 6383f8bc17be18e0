"""A thousand random flips and truncations over every file of a corpus: none is silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.errors import DataError
from data.index import Corpus
from data.manifest import read_manifest
from data.prepare_config import ClusterConfig
from data.verify import verify
from tests.data.clustered import families_of, write_families, write_table
from tests.data.corpora import config

TRIALS = 1000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources with duplicates, clusters and both splits, so that every kind of file is there."""
    folder = tmp_path_factory.mktemp("damage")
    families = families_of(40, 4)
    fasta = write_families(folder / "a.fa", families)
    more = write_families(folder / "b.fa", families[:10], "again{family}-{member}")
    chosen = config(folder / "corpus", fasta, more, validation_fraction=0.2)
    chosen.clusters = ClusterConfig("table", table=str(write_table(folder / "t.tsv", families)))
    prepare(chosen)
    return folder / "corpus"


def read_all(path: Path) -> None:
    """What training reads."""
    for split in ("train", "validation"):
        corpus = Corpus.open(path, split)
        corpus.letters(np.arange(corpus.count))


def damage(path: Path, generator: np.random.Generator) -> str:
    """Flips one bit of a byte, or cuts the file."""
    raw = bytearray(path.read_bytes())
    at = int(generator.integers(len(raw)))
    if generator.random() < 0.8:
        raw[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(raw)
        return f"{path.name}: byte {at} flipped"
    path.write_bytes(raw[:at])
    return f"{path.name}: cut to {at} bytes"


@pytest.mark.slow
def test_a_thousand_damages(corpus: Path, tmp_path: Path) -> None:
    manifest = read_manifest(corpus)
    trained_on = {"manifest.json", *manifest["files"], *(shard["name"] for shard in manifest["shards"])}
    names = sorted(path.name for path in corpus.iterdir())
    assert set(names) == trained_on | set(manifest["sidecars"])
    assert len(names) >= 9
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    generator = np.random.default_rng(11)
    for trial in range(TRIALS):
        name = names[trial % len(names)]
        what = damage(copy / name, generator)
        found = verify(copy).problems
        assert found, what
        assert name in " ".join(found), what
        if name in trained_on:
            with pytest.raises(DataError, match=name):
                read_all(copy)
        else:
            read_all(copy)  # side tables are not needed, and do no harm
        shutil.copyfile(corpus / name, copy / name)
    assert verify(copy).intact
    read_all(copy)
