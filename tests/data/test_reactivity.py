"""Reading profiles: the attributes that training uses, views of stage sets, the order over them, clusters, staging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.index import Corpus
from data.order import Order
from data.prepare_config import ClusterConfig
from data.reactivity import ReactivityCorpus
from data.reactivity_config import SplitConfig
from data.reactivity_filter import CLASSES, STAGE_SETS, SampleFilter, classify
from data.staging import Staged
from tests.data.clustered import needs_mmseqs
from tests.data.corpora import small_corpus
from tests.data.reactivity_files import as_array, build, other, rows_of, write_table

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 sequences in two blocks or more."""
    folder = tmp_path_factory.mktemp("reactivity")
    build(folder / "corpus", write_table(folder / "t.csv", rows_of(1500)))
    return folder / "corpus"


def test_what_training_asks_of_a_corpus(corpus: Path) -> None:
    rows = {row.sequence: row for row in rows_of(1500)[::2]}
    opened = ReactivityCorpus.open(corpus, "train")
    assert opened.count == 1500 - 84  # a sixth of 500 clean ones, rounded up
    assert opened.block_counts.tolist() == [1024, opened.count - 1024]
    assert len(opened.lengths) == opened.count
    assert opened.clusters is None
    assert opened.channels == ["2A3", "DMS"]
    assert opened.signal_to_noise.shape == (opened.count, 2)
    ids = np.array([5, 1300, 5])
    profiles = opened.profiles(ids)
    assert [p.letters.tobytes() for p in profiles] == [x.tobytes() for x in opened.letters(ids)]
    for i, profile, name, kind in zip(ids, profiles, opened.accessions(ids), opened.types(ids), strict=True):
        row = rows[profile.letters.tobytes().decode()]
        assert name == row.id
        assert opened.type_names[kind] == row.dataset.replace("2A3", "NULL")
        assert opened.libraries[i] == kind
        assert opened.lengths[i] == len(row.sequence)
        np.testing.assert_array_equal(profile.values[:, 0], as_array(row.values))
        np.testing.assert_array_equal(profile.signal_to_noise, opened.signal_to_noise[i])
        assert (profile.values.dtype, profile.errors.dtype) == (np.float32, np.float32)
    for bad in (-1, opened.count):
        with pytest.raises(DataError, match=f"sequence {bad} is not in the train split"):
            opened.profiles([bad])


def test_changing_a_profile_changes_no_later_one(corpus: Path) -> None:
    """In the original a second access to an item sees its mask changed (spec 10)."""
    opened = ReactivityCorpus.open(corpus)
    first = opened.profiles([3])[0]
    kept = first.values.copy()
    first.values[:] = 0
    first.signal_to_noise[:] = 0
    again = opened.profiles([3])[0]
    np.testing.assert_array_equal(again.values, kept)
    assert np.isnan(again.values).any()
    assert again.signal_to_noise.all()


def test_classes_at_the_threshold() -> None:
    ratios = np.float32([[2, 2], [1, 2], [1.001, 1.001], [1, 1], [np.nan, 2], [np.nan, np.nan], [-1, 0.5], [2, 1]])
    names = [CLASSES[i] for i in classify(ratios)]
    assert names == ["clean", "dirty", "clean", "noisy", "dirty", "noisy", "noisy", "dirty"]


def test_views_of_the_stage_sets(corpus: Path) -> None:
    train, validation = ReactivityCorpus.open(corpus, "train"), ReactivityCorpus.open(corpus, "validation")
    assert {name: len(train.select(chosen)) for name, chosen in STAGE_SETS.items()} == {
        "true": 416 + 500,
        "noisy": 500,
        "all": 1416,
    }
    assert len(validation.select(SampleFilter(("clean",)))) == validation.count == 84
    view = train.view(SampleFilter.of("clean+dirty"))
    ids = train.select(STAGE_SETS["true"])
    assert (view.count, int(view.block_counts.sum())) == (916, 916)
    assert len(view.block_counts) == 2
    np.testing.assert_array_equal(view.lengths, train.lengths[ids])
    np.testing.assert_array_equal(view.signal_to_noise, train.signal_to_noise[ids])
    assert (view.signal_to_noise > 1).any(axis=1).all()
    chosen = np.array([0, 500, 915])
    np.testing.assert_array_equal(view.corpus_ids(chosen), ids[chosen])
    assert view.accessions(chosen) == train.accessions(ids[chosen])
    np.testing.assert_array_equal(view.types(chosen), train.types(ids[chosen]))
    for a, b in zip(view.profiles(chosen), train.profiles(ids[chosen]), strict=True):
        np.testing.assert_array_equal(a.values, b.values)
    with pytest.raises(DataError, match="sample 916 is not among the 916"):
        view.letters([916])


def test_fingerprints_tell_filters_apart(corpus: Path) -> None:
    train = ReactivityCorpus.open(corpus)
    same = train.view(SampleFilter(("dirty", "clean"))).fingerprint
    assert same == train.view(SampleFilter.of("clean + dirty")).fingerprint
    others = {train.view(chosen).fingerprint for chosen in (*STAGE_SETS.values(), SampleFilter(max_length=60))}
    assert same in others
    assert len(others | {train.fingerprint}) == 5


def test_filters(corpus: Path) -> None:
    train = ReactivityCorpus.open(corpus)
    names = np.array(train.type_names)[train.libraries]
    for chosen, expected in (
        (SampleFilter(drop_libraries=("LIB0",)), names == "LIB1_NULL"),
        (SampleFilter(max_length=60), train.lengths <= 60),
        (SampleFilter(min_length=60), train.lengths >= 60),
        (SampleFilter(min_signal_to_noise=0.5), train.signal_to_noise.max(axis=1) >= 0.5),
        (SampleFilter(("clean",), threshold=5), (train.signal_to_noise > 5).all(axis=1)),
    ):
        np.testing.assert_array_equal(train.select(chosen), np.flatnonzero(expected))
    with pytest.raises(DataError, match="takes none of the 1416"):
        train.view(SampleFilter(min_length=1000))
    for bad in ("clean+durty", ""):
        with pytest.raises(DataError, match="no class of profiles"):
            SampleFilter.of(bad)


def test_an_order_over_a_view_seeks_and_covers_it(corpus: Path) -> None:
    view = ReactivityCorpus.open(corpus).view(STAGE_SETS["true"])
    order = Order(view.block_counts, seed=4, global_batch=40)
    walked = np.concatenate([order.step(s)[1] for s in range(22)])
    assert len(np.unique(walked)) == 880
    again = Order(ReactivityCorpus.open(corpus).view(STAGE_SETS["true"]).block_counts, seed=4, global_batch=40)
    np.testing.assert_array_equal(again.step(17)[1], walked[17 * 40 : 18 * 40])
    assert sorted(order.positions(0, 916)[1].tolist()) == list(range(916))


def clustered(tmp_path: Path, **options: object) -> tuple[Path, dict[str, int]]:
    """40 clusters of 3 sequences; the corpus, and the cluster of each sequence."""
    rows = rows_of(120)
    lines, of = [], {}
    for i, row in enumerate(rows[::2]):
        of[row.sequence] = i % 40
        lines.append(f"c{i % 40}\t{row.id}\n")
    (tmp_path / "clusters.tsv").write_text("".join(lines))
    table = ClusterConfig("table", table=str(tmp_path / "clusters.tsv"))
    split = SplitConfig(by="cluster", folds=5)
    build(tmp_path / "c", write_table(tmp_path / "t.csv", rows), clusters=table, split=split, **options)
    return tmp_path / "c", of


def test_clusters_stay_together(tmp_path: Path) -> None:
    path, of = clustered(tmp_path)
    seen: dict[str, set[int]] = {}
    for split in ("train", "validation"):
        opened = ReactivityCorpus.open(path, split)
        letters = [x.tobytes().decode() for x in opened.letters(np.arange(opened.count))]
        assert opened.clusters is not None
        for start, stop in zip(opened.clusters[:-1], opened.clusters[1:], strict=True):
            assert len({of[sequence] for sequence in letters[start:stop]}) == 1
        seen[split] = {of[sequence] for sequence in letters}
        view = opened.view(SampleFilter.of("clean"))
        assert view.clusters is not None
        assert (view.clusters[0], view.clusters[-1]) == (0, view.count)
        own = [of[x.tobytes().decode()] for x in view.letters(np.arange(view.count))]
        assert [own[start] for start in view.clusters[:-1]] == list(dict.fromkeys(own))
    assert not seen["train"] & seen["validation"]
    assert len(seen["train"] | seen["validation"]) == 40
    validation = ReactivityCorpus.open(path, "validation")
    assert len(validation.select(SampleFilter.of("clean"))) == 8  # a fifth of 40


@needs_mmseqs
def test_clusters_by_mmseqs(tmp_path: Path) -> None:
    """30 families of 4, which differ in a letter each, so that 70 % identity joins them."""
    generator, rows = np.random.default_rng(0), []
    for row in rows_of(30, shortest=70)[::2]:
        for place in range(4):
            letters = row.sequence[: 10 * place] + str(generator.choice(list("ACGU"))) + row.sequence[10 * place + 1 :]
            rows += [other(row, sequence=letters, snr=5.0), other(row, sequence=letters, experiment="DMS_MaP", snr=5.0)]
    options = {"clusters": ClusterConfig("mmseqs"), "split": SplitConfig(by="cluster", folds=5)}
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", rows), **options)
    families = sum(manifest["splits"][split]["clusters"] for split in manifest["splits"])
    assert 30 <= families <= 40
    assert manifest["clusters"]["found"] == families
    train, validation = (ReactivityCorpus.open(tmp_path / "c", split) for split in ("train", "validation"))
    assert 0.15 < validation.count / (train.count + validation.count) < 0.25


def test_a_clustering_can_be_given_again(tmp_path: Path) -> None:
    path, _ = clustered(tmp_path)
    again = ClusterConfig("table", table=str(path))
    build(tmp_path / "d", tmp_path / "t.csv", clusters=again, split=SplitConfig(by="cluster", folds=5))
    one, two = ReactivityCorpus.open(path), ReactivityCorpus.open(tmp_path / "d")
    assert one.fingerprint == two.fingerprint


def test_kinds_are_told_apart(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a corpus of sequences, profiles were expected"):
        ReactivityCorpus.open(small_corpus(tmp_path))
    plain = Corpus.open(corpus, "train")  # its sequences can be read by themselves
    assert plain.letters([7])[0].tobytes() == ReactivityCorpus.open(corpus).profiles([7])[0].letters.tobytes()
    build(tmp_path / "whole", write_table(tmp_path / "t.csv", rows_of(6)), split=SplitConfig(folds=0))
    with pytest.raises(DataError, match=r"the validation split is empty; prepare the corpus with split\.folds"):
        ReactivityCorpus.open(tmp_path / "whole", "validation")


def test_read_while_it_is_staged(corpus: Path, tmp_path: Path) -> None:
    staged = Staged.open(corpus, tmp_path / "cache")
    try:
        copy = ReactivityCorpus.open(staged.path, "train", shards=staged.locate)
        view, direct = copy.view(STAGE_SETS["noisy"]), ReactivityCorpus.open(corpus).view(STAGE_SETS["noisy"])
        assert view.fingerprint == direct.fingerprint
        for a, b in zip(view.profiles([0, 499]), direct.profiles([0, 499]), strict=True):
            np.testing.assert_array_equal(a.values, b.values)
    finally:
        staged.close()


def test_shards_are_plain_webdataset(corpus: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    import io

    opened, at = ReactivityCorpus.open(corpus), 0
    for block in webdataset.WebDataset(str(corpus / "train-000000.tar"), shardshuffle=False):
        part = {k: np.load(io.BytesIO(block[f"{k}.npy"])) for k in ("tok", "off", "react", "err", "snr", "channels")}
        assert part["channels"].tolist() == [b"2A3", b"DMS"]
        assert (part["react"].dtype, part["err"].dtype, part["snr"].dtype) == (np.float16, np.float16, np.float32)
        profile = opened.profiles([at])[0]
        np.testing.assert_array_equal(part["react"][: part["off"][1]].astype(np.float32), profile.values)
        at += len(part["snr"])
    assert at == opened.count
