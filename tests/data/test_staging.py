"""Staging from a local server: the sequences of local disk whatever the network does, and one copy per node."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.errors import DataError
from data.index import Corpus
from data.loader import Moment, StepPlanner, prefetched
from data.manifest import fingerprint, read_manifest, sealed
from data.need import Need
from data.order import Order
from data.stage_cache import Cache
from data.staging import Staged, is_remote, stage
from data.transfer import Patience
from data.verify import verify
from tests.archive import Archive, serving
from tests.data.corpora import config

QUICK = Patience(tries=4, first_wait=0.01, longest_wait=0.05, timeout=2.0)
BATCH = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 sequences of 8,000 nucleotides in shards of about 1 MB: four of training, one of validation."""
    folder = tmp_path_factory.mktemp("staging")
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGU", np.uint8), (600, 8000))
    with open(folder / "s.fa", "wb") as file:
        file.writelines(b">s%d\n%s\n" % (i, row.tobytes()) for i, row in enumerate(letters))
    output = folder / "corpora" / "long"
    prepare(config(output, folder / "s.fa", shard_megabytes=1, validation_fraction=0.1))
    shards = [shard["name"] for shard in read_manifest(output)["shards"]]
    assert shards == [*(f"train-{i:06d}.tar" for i in range(5)), "validation-000000.tar"], shards
    return output


@pytest.fixture
def archive(corpus: Path) -> Iterator[Archive]:
    with serving(corpus.parent) as server:
        yield server


def staged(source: object, cache: Path, **options: object) -> Staged:
    return Staged.open(str(source), cache, **{"patience": QUICK, "timeout": 20.0, **options})


def order_of(corpus: Corpus) -> Order:
    return Order(corpus.block_counts, 3, BATCH)


class _AsTheyAre:
    """An objective whose micro-batches are the letters."""

    one_per_micro_batch = False

    def read(self, corpus: Corpus, ids: np.ndarray) -> list[np.ndarray]:
        return corpus.letters(ids)

    def costs(self, corpus: Corpus, ids: np.ndarray) -> np.ndarray:
        return corpus.lengths[ids].astype(np.int64) + 2

    def collate(self, samples: list[np.ndarray], keys: np.ndarray, moment: Moment) -> list[bytes]:
        return [letters.tobytes() for letters in samples]


def steps(corpus: Corpus, first: int = 0, stop: int = 40) -> list[list[bytes]]:
    """The letters that each step of the real loader hands to the objective."""
    planner = StepPlanner(corpus, order_of(corpus), _AsTheyAre(), 10**9)
    return [step.micro_batches[0] for step in prefetched(planner, first, stop)]


def follow(one: Staged, corpus: Corpus, first: int = 0, stop: int = 40) -> None:
    order = order_of(corpus)
    one.follow(lambda step: order.step(step)[1], first, stop)


def run(source: object, cache: Path, **options: object) -> list[list[bytes]]:
    with staged(source, cache, **options) as one:
        train = Corpus.open(one.path, "train", shards=one.locate)
        follow(one, train)
        found = steps(train)
        held_out = Corpus.open(one.path, "validation", shards=one.locate)
        return [*found, [x.tobytes() for x in held_out.letters(np.arange(held_out.count))]]


@pytest.fixture(scope="module")
def expected(corpus: Path) -> list[list[bytes]]:
    held_out = Corpus.open(corpus, "validation")
    return [*steps(Corpus.open(corpus)), [x.tobytes() for x in held_out.letters(np.arange(held_out.count))]]


def test_the_same_sequences_and_one_request_per_file(archive: Archive, corpus: Path, expected: list, tmp_path: Path):
    url = archive.url + "/long"
    assert run(url, tmp_path) == expected
    assert archive.counts() == {path.name: 1 for path in corpus.iterdir()}
    (there,) = tmp_path.glob("*/corpus")
    assert verify(there).intact
    assert there.parent.name.startswith(read_manifest(corpus)["fingerprint"][:32])
    archive.requests.clear()
    assert run(url + "/", tmp_path) == expected  # a later run asks for the manifest alone
    assert archive.counts() == {"manifest.json": 1}


def test_dropped_connections_and_a_shard_that_is_corrupt_once(archive: Archive, expected: list, tmp_path: Path):
    first = "/long/train-000000.tar"
    archive.faults = {
        first: ["drop:300000", "drop:1000", "status:503"],
        "/long/train-000001.tar": ["corrupt"],
        "/long/train-000002.tar": ["corrupt", "drop:100"],
        "/long/manifest.json": ["drop:50", "corrupt"],
        "/long/index.npz": ["corrupt"],
        "/long/lengths.npy": ["drop:0"],
    }
    assert run(archive.url + "/long", tmp_path) == expected
    assert not any(archive.faults.values())
    counts = archive.counts()
    assert (counts["train-000000.tar"], counts["train-000001.tar"], counts["train-000002.tar"]) == (4, 2, 3)
    assert (counts["manifest.json"], counts["index.npz"], counts["lengths.npy"]) == (3, 2, 2)
    ranges = [asked for path, asked in archive.requests if path == first]
    assert ranges == ["", "bytes=300000-", "bytes=301000-", "bytes=301000-"]


def test_a_shard_that_stays_wrong_stops_the_run_and_never_reaches_it(archive: Archive, tmp_path: Path):
    archive.faults["/long/train-000003.tar"] = ["corrupt"] * 50
    with pytest.raises(DataError, match=r"train-000003\.tar: does not match its published sha256"):
        run(archive.url + "/long", tmp_path)
    assert not list(tmp_path.glob("*/corpus/train-000003.tar"))
    archive.faults.clear()
    run(archive.url + "/long", tmp_path)


def rank(url: str, cache: Path, results: multiprocessing.Queue) -> None:
    results.put(run(url, cache))


def test_two_ranks_of_a_node_download_once(archive: Archive, corpus: Path, expected: list, tmp_path: Path):
    archive.delay = 0.05
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=rank, args=(archive.url + "/long", tmp_path, results)) for _ in range(2)]
    for process in ranks:
        process.start()
    found = [results.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(10)
        assert process.exitcode == 0
    assert found == [expected, expected]
    # The manifest twice only where the first rank was done before the second began.
    assert {**archive.counts(), "manifest.json": 1} == {path.name: 1 for path in corpus.iterdir()}


def test_a_process_that_was_killed_while_it_copied_is_replaced(archive: Archive, expected: list, tmp_path: Path):
    archive.faults = {"/long/train-000002.tar": ["drop:500000", "hang"]}
    killed = multiprocessing.get_context("fork").Process(target=run, args=(archive.url + "/long", tmp_path))
    killed.start()
    deadline = time.monotonic() + 20
    while archive.counts()["train-000002.tar"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    with staged(archive.url + "/long", tmp_path) as waiting:
        threading.Timer(0.2, killed.kill).start()
        waiting.locate("train-000002.tar")
        killed.join(10)
        assert [asked for path, asked in archive.requests if "000002" in path][-1] == "bytes=500000-"
    assert run(archive.url + "/long", tmp_path) == expected


def crowded(url: str, cache: Path, limit: int, results: multiprocessing.Queue) -> None:
    results.put(run(url, cache, limit=limit))


def test_ranks_that_share_a_cache_that_is_too_small_still_get_everything(
    archive: Archive, corpus: Path, expected: list, tmp_path: Path
):
    limit = sum(path.stat().st_size for path in corpus.iterdir()) - 500_000  # one shard must always be missing
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    for _ in range(2):
        context.Process(target=crowded, args=(archive.url + "/long", tmp_path, limit, results)).start()
    assert [results.get(timeout=60) for _ in range(2)] == [expected, expected]


def test_a_rank_that_waits_takes_over_from_one_that_ended(archive: Archive, expected: list, tmp_path: Path):
    with staged(archive.url + "/long", tmp_path) as first, staged(archive.url + "/long", tmp_path) as second:
        assert archive.counts() == {"manifest.json": 1, "index.npz": 1, "lengths.npy": 1}
        archive.delay = 0.3
        train = Corpus.open(first.path, "train", shards=second.locate)
        follow(first, train)
        follow(second, train)
        threading.Timer(0.2, first.close).start()
        assert steps(train) == expected[:-1]


def test_training_starts_when_the_shards_of_the_first_steps_are_there(archive: Archive, corpus: Path, tmp_path: Path):
    allowed = threading.Event()
    local = Corpus.open(corpus)
    need = order_of(local)
    shard_of = np.repeat(np.arange(len(local.block_counts)), local.block_counts)  # here a shard is one block
    first = list(dict.fromkeys(f"train-{shard_of[i]:06d}.tar" for i in need.step(7)[1]))
    assert 1 < len(first) <= 5
    rest = [f"train-{i:06d}.tar" for i in range(5) if f"train-{i:06d}.tar" not in first]
    archive.on_request = lambda path: path.rpartition("/")[2] in rest and allowed.wait(10)
    with staged(archive.url + "/long", tmp_path, parallel=1) as one:
        train = Corpus.open(one.path, "train", shards=one.locate)
        follow(one, train, first=7)
        deadline = time.monotonic() + 10
        while not all((one.path / name).exists() for name in first) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps(train, 7, 8) == steps(local, 7, 8)
        assert archive.order()[3 : 3 + len(first)] == first
        assert not any((one.path / name).exists() for name in rest)
        allowed.set()


def test_a_small_cache_evicts_what_is_needed_last(archive: Archive, corpus: Path, expected: list, tmp_path: Path):
    sizes = {shard["name"]: shard["bytes"] for shard in read_manifest(corpus)["shards"]}
    small = sum((corpus / name).stat().st_size for name in ("manifest.json", "index.npz", "lengths.npy"))
    limit = small + 4 * max(sizes.values())
    peak = 0

    def watch(_: str) -> None:
        nonlocal peak
        peak = max(peak, Cache(tmp_path).bytes())

    archive.on_request = watch
    turns = first_ids(corpus)
    with staged(archive.url + "/long", tmp_path, limit=limit, parallel=1) as one:
        one.follow(lambda step: np.array([turns[step % 5]]), 0, 40)
        train = Corpus.open(one.path, "train", shards=one.locate)
        for step in range(20):
            train.letters([turns[step % 5]])
            one.reached(step + 1)
        assert steps(train) == expected[:-1]
        assert sum(view is not None for view in train._bytes) <= 5
    assert peak <= limit
    assert max(archive.counts().values()) > 1


def test_the_order_of_need_looks_ahead_from_the_current_step():
    names = [f"shard{i}" for i in range(4)]
    need = Need(np.array([2, 4, 6, 8]), np.array([0, 1, 2, 3]), names, lambda step: np.array([2 * (step % 3)]), 20)
    assert need.upcoming(1) == {"shard1": 1, "shard2": 2, "shard0": 3}
    assert list(need.upcoming(1)) == ["shard1", "shard2", "shard0"]
    assert need.upcoming(19) == {"shard1": 19}
    assert need.upcoming(20) == {}


def first_ids(corpus: Path) -> list[int]:
    """The first sample of each training shard."""
    counts = Corpus.open(corpus).block_counts
    return [0, *np.cumsum(counts)[:-1].tolist()]


def test_an_unused_corpus_makes_room_and_a_used_one_does_not(archive: Archive, corpus: Path, tmp_path: Path):
    other = corpus.parent / "other"
    if not other.exists():
        prepare(config(other, corpus.parents[1] / "s.fa", shard_megabytes=1, validation_fraction=0.1, seed=9))
    whole = sum(path.stat().st_size for path in corpus.iterdir())
    limit = int(1.5 * whole)
    run(archive.url + "/long", tmp_path, limit=limit)
    assert len(Cache(tmp_path).names()) == 1
    with staged(archive.url + "/long", tmp_path, limit=limit) as used:
        run_other = run(archive.url + "/other", tmp_path, limit=limit)
        assert len(Cache(tmp_path).names()) == 2
        assert used.path.exists()
        assert Cache(tmp_path).bytes() <= limit
    assert run(archive.url + "/other", tmp_path, limit=limit) == run_other
    shutil.rmtree(other)


def test_limits_that_cannot_work_are_refused(archive: Archive, corpus: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"a cache of 0\.00 GB is too small"):
        staged(archive.url + "/long", tmp_path, limit=1000)
    sizes = [shard["bytes"] for shard in read_manifest(corpus)["shards"]]
    with staged(archive.url + "/long", tmp_path, limit=2 * max(sizes)) as one:
        train = Corpus.open(one.path, "train", shards=one.locate)
        with pytest.raises(DataError, match=r"one step reads \d shards, .* so every step would fetch them again"):
            one.follow(lambda step: np.arange(train.count), 0, 10)


def test_a_shared_file_system_and_fsspec_and_commands_are_sources_too(corpus: Path, expected: list, tmp_path: Path):
    import fsspec

    assert run(corpus, tmp_path / "a") == expected
    assert run(f"file://{corpus}", tmp_path / "b") == expected
    fsspec.filesystem("memory").put(str(corpus), "/bucket/long", recursive=True)
    assert run("memory://bucket/long", tmp_path / "c") == expected
    with pytest.raises(DataError, match="only happens when it is allowed explicitly"):
        run(f"pipe:cat {corpus}/{{}}", tmp_path / "d")
    assert run(f"pipe:cat {corpus}/{{}}", tmp_path / "d", allow_pipe=True) == expected
    with pytest.raises(DataError, match="ended with code 1"):
        run(f"pipe:cat {corpus}/none/{{}} 2>/dev/null", tmp_path / "e", allow_pipe=True)


def test_sources_that_are_not_there_are_one_sentence(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"manifest\.json: the server answers 404"):
        staged(archive.url + "/none", tmp_path)
    with pytest.raises(DataError, match="does not exist; make it with"):
        staged(tmp_path / "none", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(DataError, match="needs the package s3fs"):
        staged("s3://bucket/long", tmp_path)
    with pytest.raises(DataError, match="no file system that fsspec knows"):
        staged("nosuch://bucket/long", tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DataError, match="cannot be used as a cache"):
        staged(archive.url + "/long", file)
    with pytest.raises(DataError, match=r"set data\.cache to a folder there"):
        stage(archive.url + "/long", None)
    with pytest.raises(DataError, match=r"cache_gigabytes is 0, expected"):
        stage(archive.url + "/long", str(tmp_path), 0)
    assert stage("corpora/a", None) is None
    assert is_remote("s3://a/b")
    assert is_remote("pipe:x")
    assert not is_remote("corpora/a")


def test_a_manifest_cannot_name_files_outside_the_cache(corpus: Path, tmp_path: Path):
    evil = tmp_path / "evil"
    shutil.copytree(corpus, evil)
    manifest = json.loads((evil / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["shards"][0]["name"] = "../../../outside.tar"
    manifest["fingerprint"] = fingerprint(manifest["shards"])
    (evil / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(DataError, match="names other files than it was made with"):
        staged(evil, tmp_path / "cache")


def test_a_new_corpus_under_an_old_url_is_another_corpus(corpus: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(corpus, source)
    with staged(source, tmp_path / "cache") as one, staged(source, tmp_path / "cache") as same:
        assert one.path == same.path
        other = tmp_path / "source2"
        prepare(config(other, corpus.parents[1] / "s.fa", shard_megabytes=1, validation_fraction=0.1, seed=9))
        shutil.rmtree(source)
        other.rename(source)
        with staged(source, tmp_path / "cache") as late:  # a rank of the same run must not see something else
            assert late.path == one.path
    with staged(source, tmp_path / "cache") as new:
        assert new.path != one.path


def test_silence_ends_with_a_sentence(archive: Archive, tmp_path: Path):
    silent = threading.Event()
    with staged(archive.url + "/long", tmp_path, timeout=0.5) as one:
        archive.on_request = lambda path: silent.wait(5)
        began = time.monotonic()
        with pytest.raises(
            DataError, match=r"train-000001\.tar has not come, nothing was received for .*0 of 6 shards"
        ):
            one.locate("train-000001.tar")
        assert time.monotonic() - began < 3
        silent.set()
        with pytest.raises(DataError, match="there is no shard x"):
            one.locate("x")
