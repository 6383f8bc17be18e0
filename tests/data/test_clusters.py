"""Clusters: found by MMseqs2 or given, kept together, kept whole by the split, given again."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.errors import DataError
from data.index import Corpus
from data.prepare_config import ClusterConfig
from data.shards import ShardWriter
from data.verify import verify
from tests.data.clustered import families_of, members, needs_mmseqs, splits, write_families, write_table
from tests.data.corpora import config, content, random_sequences, write_fasta

FAMILIES = families_of(60, 4)


def clustered(tmp_path: Path, name: str = "corpus", **options):
    """A corpus of FAMILIES by table; returns (directory, manifest)."""
    fasta = write_families(tmp_path / "families.fa", FAMILIES)
    table = options.pop("table", None) or write_table(tmp_path / "table.tsv", FAMILIES)
    missing = options.pop("missing", "error")
    chosen = config(tmp_path / name, fasta, **{"validation_fraction": 0.1, **options})
    chosen.clusters = ClusterConfig("table", table=str(table), missing=missing)
    return tmp_path / name, prepare(chosen)


def test_members_are_neighbours_and_no_split_shares_a_cluster(tmp_path: Path) -> None:
    path, manifest = clustered(tmp_path)
    found = {split: members(path, split) for split in ("train", "validation")}
    expected = {frozenset(f"f{f}m{m}" for m in range(4)) for f in range(60)}
    assert {frozenset(names) for names in found["train"] + found["validation"]} == expected
    assert [len(found[split]) for split in found] == [54, 6]
    assert manifest["splits"]["train"]["clusters"] == 54
    assert manifest["split"] == {"by": "cluster", "units": 60, "validation_units": 6}
    assert manifest["clusters"]["found"] == 60
    assert verify(path).problems == []


def test_the_order_of_clusters_is_keyed_and_not_that_of_the_table(tmp_path: Path) -> None:
    lines = write_table(tmp_path / "t.tsv", FAMILIES).read_text().splitlines()
    (tmp_path / "other.tsv").write_text("\n".join("X" + line for line in reversed(lines)) + "\r\n")
    (tmp_path / "z.tsv.gz").write_bytes(gzip.compress((tmp_path / "t.tsv").read_bytes()))
    first, _ = clustered(tmp_path, "one")
    second, _ = clustered(tmp_path, "two", table=tmp_path / "other.tsv")
    third, _ = clustered(tmp_path, "three", table=tmp_path / "z.tsv.gz")
    for path in (second, third):
        same = {name for name, text in content(first).items() if content(path)[name] == text}
        assert set(content(first)) - same == {"manifest.json"}  # it names the table
    other, _ = clustered(tmp_path, "four", seed=1)
    assert members(other) != members(first)


@pytest.mark.parametrize(("buckets", "chunk_bytes"), [(1, 1 << 20), (16, 300)])
def test_buckets_and_chunks_change_no_byte(tmp_path: Path, buckets: int, chunk_bytes: int) -> None:
    first, _ = clustered(tmp_path)
    chosen = config(tmp_path / "other", tmp_path / "families.fa", validation_fraction=0.1)
    chosen.clusters = ClusterConfig("table", table=str(tmp_path / "table.tsv"))
    prepare(chosen, buckets=buckets, chunk_bytes=chunk_bytes)
    assert content(tmp_path / "other") == content(first)


def test_a_clustering_is_given_again(tmp_path: Path) -> None:
    first, manifest = clustered(tmp_path)
    for name, table in (("again", first), ("file", first / "clustering.npy")):
        second, other = clustered(tmp_path, name, table=table)
        assert other["fingerprint"] == manifest["fingerprint"]
        assert content(second)["clusters.npz"] == content(first)["clusters.npz"]
        assert other["clusters"]["table"]["name"] == "clustering.npy"
    (first / "clustering.npy").write_bytes(b"x" + content(first)["clustering.npy"][1:])
    with pytest.raises(DataError, match=r"clustering\.npy: is missing or does not match"):
        clustered(tmp_path, "damaged", table=first)
    plain = tmp_path / "plain"
    prepare(config(plain, tmp_path / "families.fa"))
    with pytest.raises(DataError, match="made without clusters"):
        clustered(tmp_path, "none", table=plain)


def test_a_sequence_without_a_cluster_is_never_silent(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.tsv", FAMILIES[:-1])
    with pytest.raises(DataError, match=r"t\.tsv: names no cluster for 4 of 240 sequences, the first is f59m\d"):
        clustered(tmp_path, table=table)
    assert not (tmp_path / ".corpus.partial").exists()
    path, manifest = clustered(tmp_path, table=table, missing="singleton")
    assert manifest["clusters"]["missing"] == 4
    assert sorted(len(names) for names in members(path) + members(path, "validation")) == [1] * 4 + [4] * 59


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nonly one\n", "line 2: expected representative<TAB>member, found 'only one'"),
        ("a\tb\tc\n", "line 1: expected"),
        ("\tb\n", "line 1: expected"),
        ("a\tb\nc\td\ne\tb\n", "lines 1 and 3: the same member stands in two clusters"),
        ("", "the table is empty"),
        ("a\tb\na\tb\n", "names no cluster for 240"),
    ],
)
def test_bad_tables_are_sentences(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        clustered(tmp_path, table=tmp_path / "bad.tsv")
    assert "bad.tsv" in str(error.value)


def test_any_accession_of_a_sequence_finds_its_cluster(tmp_path: Path) -> None:
    a, b = random_sequences(2, shortest=100)
    (tmp_path / "x.fa").write_text(f">first\n{a}\n>second\n{a}\n>third\n{b}\n")
    (tmp_path / "t.tsv").write_text("r\tsecond\nr\tthird\n")
    chosen = config(tmp_path / "corpus", tmp_path / "x.fa", validation_fraction=0.0)
    chosen.clusters = ClusterConfig("table", table=str(tmp_path / "t.tsv"))
    prepare(chosen)
    assert [sorted(names) for names in members(tmp_path / "corpus")] == [["first", "third"]]


def test_split_by_sequence_may_divide_a_cluster(tmp_path: Path) -> None:
    path, manifest = clustered(tmp_path, split_by="sequence")
    assert manifest["splits"]["validation"]["sequences"] == 24
    clusters = [{name.split("m")[0] for names in members(path, split) for name in names} for split in splits(path)]
    assert clusters[0] & clusters[1]
    assert verify(path).intact


def test_units_that_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    families = [*families_of(1, 150, seed=3), *families_of(40, 2, seed=4)]
    fasta = write_families(tmp_path / "f.fa", families)
    chosen = config(tmp_path / "corpus", fasta, validation_fraction=0.1)
    chosen.clusters = ClusterConfig("table", table=str(write_table(tmp_path / "t.tsv", families)))
    manifest = prepare(chosen)
    assert manifest["splits"]["validation"]["sequences"] == 22  # 23 wanted, in pairs
    chosen.output, chosen.validation_fraction, chosen.validation_minimum = str(tmp_path / "none"), 0.004, 0
    with pytest.raises(DataError, match="the clusters may be too large to fit"):
        prepare(chosen)


def test_blocks_close_at_the_end_of_a_cluster(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 1 << 30)
    generator = np.random.default_rng(0)
    starts = generator.random(20_000) < 0.3
    starts[0] = True
    starts[5000:9000] = False  # a cluster larger than a block
    for part in np.array_split(np.arange(20_000), 7):
        letters = [b"ACGU" * 10] * len(part)
        writer.add(letters, [b"n"] * len(part), np.zeros(len(part), np.uint8), starts[part])
    (shard,) = writer.close()
    ends = np.cumsum(shard.blocks["sequences"].astype(int))
    inside = [end for end in ends[:-1] if not starts[end]]
    assert len(inside) >= 3
    assert all(5000 <= end < 9000 for end in inside)
    with tarfile.open(tmp_path / shard.name) as tar:
        stored = [
            np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar if member.name.endswith("cluster.npy")
        ]
    assert np.array_equal(np.concatenate(stored), starts)


def test_row_pointers_are_checked_when_a_corpus_is_opened(tmp_path: Path) -> None:
    path, _ = clustered(tmp_path)
    assert Corpus.open(path).clusters.dtype == np.uint32
    prepare(config(tmp_path / "plain", tmp_path / "families.fa"))
    assert Corpus.open(tmp_path / "plain").clusters is None
    raw = bytearray((path / "clusters.npz").read_bytes())
    raw[200] ^= 1
    (path / "clusters.npz").write_bytes(raw)
    with pytest.raises(DataError, match=r"clusters\.npz: does not match its hash"):
        Corpus.open(path)


def test_a_missing_program_is_a_sentence_before_any_work(tmp_path: Path) -> None:
    fasta = write_families(tmp_path / "f.fa", FAMILIES)
    chosen = config(tmp_path / "out" / "corpus", fasta, mmseqs="no-such-mmseqs")
    chosen.clusters = ClusterConfig("mmseqs")
    with pytest.raises(DataError, match=r"no program 'no-such-mmseqs': install it .*apt-get install mmseqs2"):
        prepare(chosen)
    assert not (tmp_path / "out").exists()


@needs_mmseqs
def test_mmseqs_finds_the_families_whatever_the_threads_and_files(tmp_path: Path) -> None:
    one = write_families(tmp_path / "one" / "a.fa", FAMILIES)
    (tmp_path / "two").mkdir()
    records = one.read_text().split(">")[1:]
    for i in range(3):
        (tmp_path / "two" / f"{2 - i}.fa").write_text("".join(">" + record for record in records[i::3]))
    manifests = []
    for folder, threads in (("one", 1), ("two", 3)):
        chosen = config(tmp_path / f"corpus-{folder}", tmp_path / folder, validation_fraction=0.1, threads=threads)
        chosen.clusters = ClusterConfig("mmseqs", options=["--kmer-per-seq", "80"])
        manifests.append(prepare(chosen))
    found = members(tmp_path / "corpus-one") + members(tmp_path / "corpus-one", "validation")
    assert {frozenset(names) for names in found} == {frozenset(f"f{f}m{m}" for m in range(4)) for f in range(60)}
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    told = manifests[0]["clusters"]
    assert told["arguments"] == ["--min-seq-id", "0.7", "-c", "0.8", "--kmer-per-seq", "80"]
    assert told["program"].startswith("mmseqs ")


@needs_mmseqs
def test_identity_and_coverage_reach_mmseqs(tmp_path: Path) -> None:
    fasta = write_families(tmp_path / "f.fa", FAMILIES)
    found = []
    for name, options in (("loose", {}), ("strict", {"identity": 0.99}), ("bad", {"options": ["--no-such-option"]})):
        chosen = config(tmp_path / name, fasta)
        chosen.clusters = ClusterConfig("mmseqs", **options)
        if name == "bad":
            with pytest.raises(DataError, match=r"failed with code \d+; its last words: .*no-such-option"):
                prepare(chosen)
            assert not (tmp_path / ".bad.partial").exists()
        else:
            found.append(prepare(chosen)["clusters"]["found"])
    assert found[0] < 100 < found[1]


def test_clusters_need_no_type_of_their_own_file(tmp_path: Path) -> None:
    """One source, no duplicates: no side tables but the clustering."""
    path, manifest = clustered(tmp_path)
    assert set(manifest["sidecars"]) == {"clustering.npy"}
    fasta = write_fasta(tmp_path / "b" / "b.fa", random_sequences(40, shortest=20))
    assert set(prepare(config(tmp_path / "two", fasta, tmp_path / "families.fa"))["sidecars"]) == {"sources.npy"}
    assert path.exists()
