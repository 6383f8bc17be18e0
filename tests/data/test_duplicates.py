"""Duplicates keep all their accessions and sources; strands; which record of several decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.corpus import prepare
from data.duplicates import DUPLICATE, NpyStream, Record
from data.errors import DataError
from data.index import Corpus
from data.manifest import read_manifest, sealed
from data.normalise import complement
from data.verify import verify
from tests.data.corpora import config, random_sequences, write_fasta

PARTNERS = dict(zip("ACGURYKMSWBDHVNI", "UGCAYRMKSWVHDBNI", strict=True))


def reverse(sequence: str) -> str:
    return "".join(PARTNERS[letter] for letter in reversed(sequence))


@given(st.text("ACGURYKMSWBDHVNI", max_size=40))
def test_complement_letter_by_letter(sequence: str) -> None:
    assert complement(sequence.encode())[::-1].decode() == reverse(sequence)
    assert reverse(reverse(sequence)) == sequence


def everything(path: Path) -> dict[str, list[Record]]:
    found = {}
    for split in ("train", "validation"):
        corpus = Corpus.open(path, split)
        ids = np.random.default_rng(0).permutation(corpus.count)
        for letters, records in zip(corpus.letters(ids), corpus.all_records(ids), strict=True):
            found[letters.tobytes().decode()] = records
        assert corpus.all_accessions(ids[:3]) == [
            [r.accession for r in records] for records in corpus.all_records(ids[:3])
        ]
    return found


@pytest.mark.parametrize("buckets", [1, 8])
def test_every_record_is_kept_in_reading_order(tmp_path: Path, buckets: int) -> None:
    generator = np.random.default_rng(1)
    pool = random_sequences(80, shortest=20)
    expected: dict[str, list[Record]] = {}
    files = []
    for f in range(3):
        chosen = [pool[int(i)] for i in generator.integers(0, 80, 120)]
        for i, sequence in enumerate(chosen):
            expected.setdefault(sequence, []).append(Record(f"f{f}_{i}", f"source{f}", False))
        files.append(write_fasta(tmp_path / f"{f}.fa", chosen, names=f"f{f}_"))
    manifest = prepare(config(tmp_path / "corpus", *files, validation_fraction=0.2), buckets=buckets)
    assert everything(tmp_path / "corpus") == expected
    assert sum(split["duplicates"] for split in manifest["splits"].values()) == 360 - len(expected)
    for f, source in enumerate(manifest["sources"]):
        first = sum(records[0].source == f"source{f}" for records in expected.values())
        assert sum(source["sequences"].values()) == first
        assert source["dropped"]["duplicate"] == 120 - first
    assert verify(tmp_path / "corpus").problems == []


def test_reverse_complements_merge_only_when_asked(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    forward = ["".join(generator.choice(list("ACGURYN"), 40)) for _ in range(60)]
    fasta = [write_fasta(tmp_path / "a.fa", forward, names="a")]
    fasta.append(write_fasta(tmp_path / "b.fa", [reverse(s) for s in forward[:30]] + forward[30:40], names="b"))
    kept = prepare(config(tmp_path / "keep", *fasta, validation_fraction=0.1))
    assert sum(split["sequences"] for split in kept["splits"].values()) == 90
    merged = prepare(config(tmp_path / "merge", *fasta, validation_fraction=0.1, reverse_complement="merge"))
    assert sum(split["sequences"] for split in merged["splits"].values()) == 60
    found = everything(tmp_path / "merge")
    assert set(found) == set(forward)  # as the first record spells it
    for i, sequence in enumerate(forward):
        others = [Record(f"b{i}", "source1", i < 30)] if i < 40 else []
        assert found[sequence] == [Record(f"a{i}", "source0", False), *others]
    swapped = prepare(config(tmp_path / "swapped", *fasta[::-1], validation_fraction=0.1, reverse_complement="merge"))
    assert swapped["splits"]["train"]["sequences"] == merged["splits"]["train"]["sequences"]
    assert verify(tmp_path / "merge").intact


def test_palindromes_and_inosine(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">p\nACGUACGUACGUACGU\n>i\nACGUACGUACGIAAAA\n>q\nUUUUICGUACGUACGU\n")
    options = {"validation_fraction": 0.0, "reverse_complement": "merge"}
    prepare(config(tmp_path / "corpus", tmp_path / "x.fa", **options))
    records = Corpus.open(tmp_path / "corpus").all_records([0, 1])
    assert sorted([r.accession for r in found] for found in records) == [["i", "q"], ["p"]]


def test_a_duplicate_may_tell_the_type(tmp_path: Path) -> None:
    (sequence,) = random_sequences(1, shortest=50)
    (tmp_path / "x.fa").write_text(
        f">a\n{sequence}\n>b tRNA from 3 species\n{sequence}\n>c rRNA from 2 species\n{sequence}\n"
    )
    manifest = prepare(config(tmp_path / "corpus", tmp_path / "x.fa", validation_fraction=0.0))
    assert manifest["splits"]["train"]["types"] == {"tRNA": 1}
    assert Corpus.open(tmp_path / "corpus").all_accessions([0]) == [["a", "b", "c"]]


def test_names_of_any_encoding(tmp_path: Path) -> None:
    (sequence,) = random_sequences(1, shortest=50)
    text = b">caf\xc3\xa9\n%b\n>caf\xe9\n%b\n>\n%b\n" % ((sequence.encode(),) * 3)
    (tmp_path / "x.fa").write_bytes(text)
    prepare(config(tmp_path / "corpus", tmp_path / "x.fa", validation_fraction=0.0))
    assert Corpus.open(tmp_path / "corpus").all_accessions([0]) == [["café", "café", ""]]


def test_a_copy_without_side_tables_still_trains(tmp_path: Path) -> None:
    same = random_sequences(30, shortest=20)
    files = [write_fasta(tmp_path / f"{name}.fa", same, names=name) for name in "ab"]
    prepare(config(tmp_path / "corpus", *files))
    for name in ("sources.npy", "train.duplicates.npy"):
        (tmp_path / "corpus" / name).unlink()
    corpus = Corpus.open(tmp_path / "corpus")
    assert len(corpus.letters([0])) == 1
    with pytest.raises(DataError, match=r"(sources|duplicates)\.npy: cannot be read"):
        corpus.all_accessions([0])
    assert "is missing" in verify(tmp_path / "corpus").problems[0]


def test_a_corpus_of_version_1_is_read(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(60, shortest=20))
    prepare(config(tmp_path / "corpus", fasta))
    manifest = read_manifest(tmp_path / "corpus")
    del manifest["sha256"], manifest["sidecars"], manifest["clusters"], manifest["exclude"], manifest["split"]
    for split in manifest["splits"].values():
        del split["duplicates"]
    for source in manifest["sources"]:
        del source["first_dropped"], source["dropped"]["excluded"]
    manifest["format_version"] = 1
    (tmp_path / "corpus" / "manifest.json").write_bytes(sealed(manifest))
    corpus = Corpus.open(tmp_path / "corpus")
    assert (corpus.count, corpus.clusters) == (54, None)
    assert verify(tmp_path / "corpus").problems == []
    with pytest.raises(DataError, match="prepared before duplicates were kept"):
        corpus.all_accessions([0])


def test_streamed_npy_files_are_ordinary(tmp_path: Path) -> None:
    stream = NpyStream(tmp_path / "x.npy", DUPLICATE)
    rows = np.zeros(5, dtype=DUPLICATE)
    rows["sequence"] = range(5)
    stream.write(rows[:2])
    stream.write(rows[2:])
    stream.close()
    assert np.array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), rows)
    empty = NpyStream(tmp_path / "y.npy", np.uint8)
    empty.close()
    assert not (tmp_path / "y.npy").exists()
