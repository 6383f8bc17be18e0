"""Preparing: what ends up in a corpus, in which order, and that nothing else decides it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data import corpus as corpus_module
from data.corpus import prepare
from data.errors import DataError
from data.index import Corpus
from data.randomness import key, mix
from data.verify import verify
from tests.data.corpora import SHARED, config, content, random_sequences, reference, write_fasta


def sequences(path: Path, split: str = "train") -> list[tuple[str, str]]:
    corpus = Corpus.open(path, split)
    ids = np.arange(corpus.count)
    letters = [view.tobytes().decode() for view in corpus.letters(ids)]
    return list(zip(letters, corpus.accessions(ids), strict=True))


def messy(seed: int) -> list[str]:
    """Random sequences with duplicates, both cases, T, gaps, ambiguity letters and letters that do not belong."""
    generator = np.random.default_rng(seed)
    found = random_sequences(400, seed % 3)  # the same for seeds 0 and 3: duplicates across files
    for i in range(0, 400, 5):
        found[i] = found[i].lower()
        found[i + 1] = found[i + 1].replace("U", "T")
        found[i + 2] = found[i + 2][:4] + "-.N" + found[i + 2][4:]
        found[i + 3] = found[i + 3] + ("X" if generator.random() < 0.3 else "R")
    return found + [found[int(i)] for i in generator.integers(0, 400, 100)]


def test_equals_a_plain_dictionary(tmp_path: Path) -> None:
    files = [write_fasta(tmp_path / f"{i}.fa", messy(i), names=f"f{i}_") for i in (3, 0, 1)]
    manifest = prepare(config(tmp_path / "corpus", *files, min_length=16, max_length=100, validation_fraction=0.1))
    expected = reference(files, 16, 100)
    train, validation = sequences(tmp_path / "corpus"), sequences(tmp_path / "corpus", "validation")
    assert dict(train + validation) == expected
    assert len(train + validation) == len(expected)
    assert len(validation) == round(0.1 * len(expected))

    def digest(letters: str) -> tuple[int, int]:
        both = xxhash.xxh3_128_intdigest(letters.encode())
        return both >> 64, both & (1 << 64) - 1

    def keyed(word: int, name: str) -> int:
        return int(mix(np.array([word ^ key(0, name)], dtype=np.uint64))[0])

    for split in (train, validation):
        order = [keyed(digest(letters)[0], "order") for letters, _ in split]
        assert order == sorted(order)
    smallest = sorted(expected, key=lambda letters: keyed(digest(letters)[1], "split"))
    assert {letters for letters, _ in validation} == set(smallest[: len(validation)])
    for source in manifest["sources"]:
        assert source["records"] == 500
        assert sum(source["dropped"].values()) + sum(source["sequences"].values()) == 500
    assert sum(source["nucleotides"] for source in manifest["sources"]) == sum(map(len, expected))
    joined = "".join(expected)
    assert manifest["letters"] == {letter: joined.count(letter) for letter in sorted(set(joined))}
    assert verify(tmp_path / "corpus").problems == []


def test_the_bytes_depend_on_nothing_but_inputs_and_options(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for name in ("b", "a", "c"):
        write_fasta(folder / f"{name}.fa", messy(ord(name)), names=name)
    first = None
    for trial, (buckets, chunk_bytes) in enumerate([(1, 1 << 20), (64, 997), (8, 50)]):
        output = tmp_path / f"corpus{trial}"
        prepare(config(output, folder, min_length=1), buckets=buckets, chunk_bytes=chunk_bytes)
        if first is None:
            first = content(output)
        assert content(output) == first


def test_listing_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "many"
    for i in range(6):
        write_fasta(folder / f"{i}.fa", messy(i), names=f"f{i}_")
    prepare(config(tmp_path / "one", folder))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))
    prepare(config(tmp_path / "two", folder))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    prepare(config(tmp_path / "glob", folder / "*.fa"))
    assert content(tmp_path / "one") == content(tmp_path / "glob")


def test_first_source_keeps_a_duplicate(tmp_path: Path) -> None:
    same = random_sequences(30, shortest=20)
    a, b = (write_fasta(tmp_path / f"{name}.fa", same, names=name) for name in "ab")
    manifest = prepare(config(tmp_path / "ba", b, a, validation_fraction=0.0))
    assert all(name.startswith("b") for _, name in sequences(tmp_path / "ba"))
    assert manifest["sources"][1]["dropped"]["duplicate"] == 30


def test_another_seed_is_another_order_and_split(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(200, shortest=16))
    for seed in (0, 1):
        prepare(config(tmp_path / str(seed), fasta, seed=seed, validation_fraction=0.2))
    for split in ("train", "validation"):
        assert set(sequences(tmp_path / "0", split)) != set(sequences(tmp_path / "1", split))


def test_a_source_type_overrides_headers(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(50, shortest=16))
    chosen = config(tmp_path / "corpus", fasta)
    chosen.sources[0].type = "tRNA"
    assert prepare(chosen)["splits"]["train"]["types"] == {"tRNA": 45}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"ACGUACGU", "ACGNRACG", "ACIACGUA"}),
        ({"max_length": 0}, {"ACGUACGU", "ACGNRACG", "ACIACGUA", "A" * 9000}),
        ({"min_length": 3}, {"ACGUACGU", "ACGNRACG", "ACIACGUA", "ACG"}),
        ({"ambiguity": "drop"}, {"ACGUACGU", "ACIACGUA"}),
        ({"ambiguity": "N"}, {"ACGUACGU", "ACGNNACG", "ACIACGUA"}),
        ({"inosine": "drop"}, {"ACGUACGU", "ACGNRACG"}),
        ({"inosine": "N"}, {"ACGUACGU", "ACGNRACG", "ACNACGUA"}),
        ({"other_letters": "N"}, {"ACGUACGU", "ACGNRACG", "ACIACGUA", "ACGNACGU"}),
    ],
)
def test_every_filter_option(tmp_path: Path, options: dict[str, object], kept: set[str]) -> None:
    records = ["ACGUACGU", "acg-tac.gt", "ACGNRACG", "ACIACGUA", "ACGXACGU", "ACG", "A" * 9000]
    fasta = write_fasta(tmp_path / "x.fa", records)
    prepare(config(tmp_path / "corpus", fasta, **{"min_length": 4, "validation_fraction": 0.0, **options}))
    assert {letters for letters, _ in sequences(tmp_path / "corpus")} == kept


@pytest.mark.parametrize(
    ("fraction", "minimum", "validation"),
    [(0.1, 0, 20), (0.1, 5, 20), (0.001, 7, 7), (0.001, 1000, 20), (0.5, 1000, 100), (0.0, 50, 0)],
)
def test_size_of_the_validation_split(tmp_path: Path, fraction: float, minimum: int, validation: int) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(200, shortest=30))
    options = {"validation_fraction": fraction, "validation_minimum": minimum}
    manifest = prepare(config(tmp_path / "corpus", fasta, **options))
    assert manifest["splits"]["validation"]["sequences"] == validation
    assert manifest["splits"]["train"]["sequences"] == 200 - validation
    if not validation:
        with pytest.raises(DataError, match="validation split is empty"):
            Corpus.open(tmp_path / "corpus", "validation")


def test_empty_results_are_errors_and_leave_nothing(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in" / "x.fa", random_sequences(5, shortest=20))
    out = tmp_path / "out"
    for options, message in (
        ({}, "validation split would be empty"),
        ({"min_length": 500}, r"All 5 records were dropped: 5 too short \(the first: x\.fa, record 1"),
        ({"validation_fraction": 0.95}, "train split would be empty"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(config(out / "corpus", fasta, **options))
        assert list(out.iterdir()) == []


def test_a_kill_right_after_replacing_a_corpus_does_not_bring_the_old_one_back(tmp_path: Path) -> None:
    one = write_fasta(tmp_path / "1.fa", random_sequences(60, 1, shortest=16))
    two = write_fasta(tmp_path / "2.fa", random_sequences(60, 2, shortest=16))
    out = tmp_path / "corpus"
    prepare(config(out, two))
    expected = content(out)
    prepare(config(out, one, overwrite=True))
    child = os.fork()
    if child == 0:
        plain = corpus_module.publish
        corpus_module.publish = lambda *places: (plain(*places), os._exit(9))
        prepare(config(out, two, overwrite=True))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert content(out) == expected
    prepare(config(out, two, overwrite=True))
    assert content(out) == expected
    assert not (tmp_path / ".corpus.partial").exists()


def test_existing_output_and_overwrite(tmp_path: Path) -> None:
    one = write_fasta(tmp_path / "1.fa", random_sequences(60, 1, shortest=16))
    two = write_fasta(tmp_path / "2.fa", random_sequences(60, 2, shortest=16))
    out = tmp_path / "corpus"
    prepare(config(out, one))
    before = content(out)
    with pytest.raises(DataError, match="overwrite=true"):
        prepare(config(out, two))
    bad = tmp_path / "bad.fa"
    bad.write_text("nothing")
    with pytest.raises(DataError, match="FASTA header"):
        prepare(config(out, bad, overwrite=True))
    assert content(out) == before
    old = Corpus.open(out)
    prepare(config(out, two, overwrite=True))
    assert content(out) != before
    assert len(old.letters([0])[0]) == old.lengths[0]  # a run that reads the replaced corpus goes on
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.fa", "2.fa", "bad.fa", "corpus"]


def test_a_partial_build_of_another_config_is_not_used(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(100, shortest=16))

    class Killed(BaseException):
        pass

    def kill_when_scanned(phase: str, done: int, total: int) -> None:
        if phase == "writing shards":
            raise Killed

    with pytest.raises(Killed):
        prepare(config(tmp_path / "corpus", fasta, min_length=50), kill_when_scanned)
    assert (tmp_path / ".corpus.partial" / "scanned.json").exists()
    prepare(config(tmp_path / "corpus", fasta))
    prepare(config(tmp_path / "clean", fasta))
    assert content(tmp_path / "corpus") == content(tmp_path / "clean")

    with pytest.raises(Killed):  # the file changes between the two
        prepare(config(tmp_path / "second", fasta), kill_when_scanned)
    write_fasta(fasta, random_sequences(100, seed=9, shortest=16))
    prepare(config(tmp_path / "second", fasta))
    prepare(config(tmp_path / "third", fasta))
    assert content(tmp_path / "second") == content(tmp_path / "third")


def test_a_restart_reads_no_source_again(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(100, shortest=16))
    phases: list[str] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path / "corpus", fasta), interrupt)
    prepare(config(tmp_path / "corpus", fasta), lambda phase, done, total: phases.append(phase))
    assert set(phases) == {"removing duplicates", "writing shards"}


def test_two_builders_of_one_corpus(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(100, shortest=16))

    def second(phase: str, done: int, total: int) -> None:
        with pytest.raises(DataError, match="another prepare"):
            prepare(config(tmp_path / "corpus", fasta))

    prepare(config(tmp_path / "corpus", fasta), second)
    assert verify(tmp_path / "corpus").intact


@pytest.mark.parametrize("calls", [0, 1, 5, 10])
def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    fasta = write_fasta(tmp_path / "in" / "x.fa", random_sequences(100, shortest=16))
    real, left = os.fsync, [calls]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        prepare(config(tmp_path / "out" / "corpus", fasta))
    assert left[0] < 0
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared test data are not here")
def test_the_shared_corpus(tmp_path: Path) -> None:
    fasta = SHARED / "corpus" / "real_ncrna_distinct.fasta.gz"
    options = {"min_length": 15, "max_length": 0, "shard_megabytes": 16}
    manifest = prepare(config(tmp_path / "corpus", fasta, **options))
    assert sum(split["sequences"] for split in manifest["splits"].values()) == 189_675
    assert sum(split["nucleotides"] for split in manifest["splits"].values()) == 49_927_574
    special = {letter: n for letter, n in manifest["letters"].items() if letter not in "ACGU"}
    assert special == dict(zip("BDHKMNRSVWY", (29, 70, 81, 683, 635, 25_019, 1244, 787, 37, 507, 1209), strict=True))
    lengths = np.load(tmp_path / "corpus" / "lengths.npy")
    assert (lengths.min(), int(np.median(lengths)), lengths.max()) == (15, 100, 22_743)
    assert verify(tmp_path / "corpus").problems == []
    strict = prepare(config(tmp_path / "strict", fasta, **options, ambiguity="drop"))
    assert strict["sources"][0]["dropped"]["ambiguity"] == 4075
