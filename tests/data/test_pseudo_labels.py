"""Pseudo-labels: the mean of models, sample for sample of the source, with its provenance."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.index import Corpus
from data.pseudo_labels import Letters, write_pseudo_labels
from data.reactivity import ReactivityCorpus
from data.reactivity_filter import SampleFilter
from data.verify_reactivity import verify_reactivity
from tests.data.corpora import content, small_corpus
from tests.data.reactivity_files import build, rows_of, write_table

pytest.importorskip("pyarrow")

CHANNELS = ["2A3", "DMS"]


def model(shift: float):
    def predict(letters: Letters) -> list[np.ndarray]:
        return [np.stack([x / 128 + shift, np.arange(len(x)) / 1024], axis=1) for x in letters]

    return predict


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pseudo")
    build(folder / "corpus", write_table(folder / "t.csv", rows_of(2400)), shard_megabytes=1)
    return folder / "corpus"


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_every_sample_of_a_corpus_of_profiles(source: Path, tmp_path: Path) -> None:
    models = {"a": model(0), "b": model(1)}
    manifest = write_pseudo_labels(source, tmp_path / "pl", CHANNELS, models, {"recipe": "x"}, weights=[3, 1])
    assert verify_reactivity(tmp_path / "pl").intact
    assert manifest["provenance"] == {
        "recipe": "x",
        "models": ["a", "b"],
        "weights": [0.75, 0.25],
        "source": {"name": "test", "fingerprint": ReactivityCorpus.open(source).fingerprint},
        "filter": None,
    }
    shards = sorted(path.name for path in source.glob("*.tar"))
    assert len(shards) > 2  # several per split
    assert shards == sorted(path.name for path in (tmp_path / "pl").glob("*.tar"))
    for name in shards:
        assert members(source / name) == members(tmp_path / "pl" / name)
    for split in ("train", "validation"):
        old, new = ReactivityCorpus.open(source, split), ReactivityCorpus.open(tmp_path / "pl", split)
        ids = np.arange(old.count)
        assert old.accessions(ids) == new.accessions(ids)
        np.testing.assert_array_equal(old.types(ids), new.types(ids))
        np.testing.assert_array_equal(old.block_counts, new.block_counts)
        for profile in new.profiles(ids):
            expected = np.stack([profile.letters / 128 + 0.25, np.arange(len(profile.letters)) / 1024], axis=1)
            np.testing.assert_array_equal(profile.values, expected.astype(np.float16).astype(np.float32))
            assert (profile.signal_to_noise == 10).all()
            assert np.isnan(profile.errors).all()


def test_the_noisy_ones_only(source: Path, tmp_path: Path) -> None:
    chosen = SampleFilter.of("noisy")
    manifest = write_pseudo_labels(source, tmp_path / "pl", CHANNELS, {"a": model(0)}, {}, chosen=chosen)
    old = ReactivityCorpus.open(source).view(chosen)
    new = ReactivityCorpus.open(tmp_path / "pl")
    assert new.accessions(np.arange(800)) == old.accessions(np.arange(800))
    assert (new.count, manifest["splits"]["validation"]["sequences"]) == (800, 0)
    assert manifest["provenance"]["filter"] == chosen.key
    assert manifest["splits"]["train"]["classes"] == {"clean": 800, "dirty": 0, "noisy": 0}
    assert verify_reactivity(tmp_path / "pl").intact


def test_a_corpus_of_sequences(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, validation_fraction=0.1)
    write_pseudo_labels(corpus, tmp_path / "pl", CHANNELS, {"a": model(0)}, {})
    old, new = Corpus.open(corpus), ReactivityCorpus.open(tmp_path / "pl")
    ids = np.arange(old.count)
    assert [x.tobytes() for x in old.letters(ids)] == [x.tobytes() for x in new.letters(ids)]
    assert verify_reactivity(tmp_path / "pl").intact
    with pytest.raises(DataError, match="only a corpus of profiles can be filtered"):
        write_pseudo_labels(corpus, tmp_path / "p", CHANNELS, {"a": model(0)}, {}, chosen=SampleFilter.of("noisy"))


def test_same_predictions_same_bytes(source: Path, tmp_path: Path) -> None:
    for place in ("x", "y"):
        write_pseudo_labels(source, tmp_path / place / "pl", CHANNELS, {"a": model(0.5)}, {"k": 1})
    assert content(tmp_path / "x" / "pl") == content(tmp_path / "y" / "pl")


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda letters: [np.zeros((len(x), 1)) for x in letters], r"bad: its prediction for \w+ is \(\d+, 1\)"),
        (lambda letters: [], "bad: predicted 0 profiles"),
        (lambda letters: [np.full((len(x), 2), np.nan) for x in letters], "is not finite or beyond 65504"),
        (lambda letters: [np.full((len(x), 2), 1e5) for x in letters], "is not finite or beyond 65504"),
    ],
)
def test_bad_predictions(source: Path, tmp_path: Path, predict: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_pseudo_labels(source, tmp_path / "pl", CHANNELS, {"good": model(0), "bad": predict}, {})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_weights_and_models(source: Path, tmp_path: Path) -> None:
    for models, weights, message in (
        ({}, None, "at least one model"),
        ({"a": model(0)}, [1, 2], "expected 1 numbers"),
        ({"a": model(0)}, [0], "above 0"),
    ):
        with pytest.raises(DataError, match=message):
            write_pseudo_labels(source, tmp_path / "pl", CHANNELS, models, {}, weights=weights)
