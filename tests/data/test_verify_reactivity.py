"""Damage to a corpus of profiles is never silent, neither for `verify` nor for training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.manifest import read_manifest, sealed
from data.prepare_config import ClusterConfig
from data.reactivity import ReactivityCorpus
from data.verify_reactivity import verify_reactivity
from tests.data.reactivity_files import build, rows_of, write_table
from tests.data.test_damage import damage

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With clusters and both splits, so that every kind of file is there."""
    folder = tmp_path_factory.mktemp("damage")
    rows = rows_of(60)
    (folder / "t.tsv").write_text("".join(f"c{i % 20}\t{row.id}\n" for i, row in enumerate(rows[::2])))
    table = write_table(folder / "t.csv", rows)
    build(folder / "corpus", table, clusters=ClusterConfig("table", table=str(folder / "t.tsv")))
    return folder / "corpus"


def read_all(path: Path) -> None:
    """What training reads."""
    for split in ("train", "validation"):
        opened = ReactivityCorpus.open(path, split)
        opened.profiles(np.arange(opened.count))


def damages(corpus: Path, copy: Path, trials: int) -> None:
    manifest = read_manifest(corpus)
    trained_on = {"manifest.json", *manifest["files"], *(shard["name"] for shard in manifest["shards"])}
    names = sorted(path.name for path in corpus.iterdir())
    assert set(names) == trained_on | set(manifest["sidecars"])
    assert {"signal_to_noise.npy", "libraries.npy", "clusters.npz", "clustering.npy"} <= set(names)
    shutil.copytree(corpus, copy)
    generator = np.random.default_rng(5)
    for trial in range(trials):
        name = names[trial % len(names)]
        what = damage(copy / name, generator)
        found = verify_reactivity(copy).problems
        assert found, what
        assert name in " ".join(found), what
        if name in trained_on:
            with pytest.raises(DataError, match=name):
                read_all(copy)
        shutil.copyfile(corpus / name, copy / name)
    assert verify_reactivity(copy).intact
    read_all(copy)


def test_damages(corpus: Path, tmp_path: Path) -> None:
    damages(corpus, tmp_path / "copy", 45)


@pytest.mark.slow
def test_many_damages(corpus: Path, tmp_path: Path) -> None:
    damages(corpus, tmp_path / "copy", 600)


def test_a_foreign_or_missing_file(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    (copy / "notes.txt").write_text("x")
    assert "does not belong" in verify_reactivity(copy).problems[0]
    (copy / "notes.txt").unlink()
    (copy / "libraries.npy").unlink()
    assert "libraries.npy: is missing" in verify_reactivity(copy).problems[0]


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("splits", "train", "classes", "clean"), 1, "classes of train differ"),
        (("splits", "train", "values", "DMS"), 1, "values of train differ"),
        (("splits", "validation", "profiles", "2A3"), 1, "profiles of validation differ"),
        (("letters", "A"), 1, "letter counts differ"),
        (("channels",), ["DMS", "2A3"], "channels are others"),
        (("sources", 0, "sequences", "train"), 1, "by source do not add up"),
    ],
)
def test_numbers_of_the_manifest_are_checked(
    corpus: Path, tmp_path: Path, where: tuple[str, ...], value: object, message: str
) -> None:
    """Even where the hashes agree: the manifest is sealed again with a wrong number."""
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    manifest = read_manifest(copy)
    manifest.pop("sha256")
    inner = manifest
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (copy / "manifest.json").write_bytes(sealed(manifest))
    assert message in " ".join(verify_reactivity(copy).problems)
