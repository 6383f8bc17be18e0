"""Shards as files: what others read from them, and that every byte of a corpus is covered by a hash."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data.errors import DataError
from data.index import Corpus, read_block_table
from data.manifest import fingerprint, read_manifest, sealed
from data.shards import BLOCK_LETTERS, BLOCK_SEQUENCES, ShardWriter, npy, span_hashes
from data.verify import verify
from tests.data.corpora import content, small_corpus


def written(folder: Path, letters: list[bytes], calls: list[int], shard_bytes: int = 1 << 20):
    """The shards of ``letters``, added in calls that end at ``calls``."""
    folder.mkdir()
    writer = ShardWriter(folder, "train", shard_bytes)
    for start, stop in zip([0, *calls], [*calls, len(letters)], strict=True):
        names = [b"n%d" % i for i in range(start, stop)]
        writer.add(letters[start:stop], names, np.arange(start, stop).astype(np.uint8) % 30)
    return writer.close()


def test_calls_of_add_change_no_byte(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    letters = [b"ACGU" * int(n) for n in generator.integers(1, 2000, 1500)]
    letters[700] = b"A" * (3 << 20)  # longer than a block and than a shard
    one = written(tmp_path / "one", letters, [])
    many = written(tmp_path / "many", letters, sorted(generator.integers(0, 1500, 40).tolist()))
    assert content(tmp_path / "one") == content(tmp_path / "many")
    assert [shard.sha256 for shard in one] == [shard.sha256 for shard in many]
    assert sum(shard.sequences for shard in one) == 1500
    for shard in one:
        assert shard.bytes <= 1 << 20 or len(shard.blocks) == 1
        assert (shard.blocks["sequences"] <= BLOCK_SEQUENCES).all()
    sizes = [np.load(io.BytesIO(member)).size for member in members(tmp_path / "one", ".tok.npy")]
    assert all(size <= BLOCK_LETTERS for size in sizes if size != 3 << 20)
    # Greedy: a block that is not full could not have taken the next sequence.
    counts = np.concatenate([shard.blocks["sequences"] for shard in one]).astype(int)
    ends = np.cumsum(counts)
    for size, count, end in zip(sizes[:-1], counts[:-1], ends[:-1], strict=True):
        assert count == BLOCK_SEQUENCES or size + len(letters[end]) > BLOCK_LETTERS


def members(folder: Path, suffix: str) -> list[bytes]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(member).read() for member in tar if member.name.endswith(suffix)]
    return found


def test_members_are_plain_ustar(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    with tarfile.open(corpus / "train-000000.tar") as tar:
        headers = tar.getmembers()
    parts = ("id", "off", "tok", "type")
    assert [header.name for header in headers] == [f"000000-00000.{part}.npy" for part in parts]
    assert {header.mtime for header in headers} == {0}
    row = read_block_table(corpus)[0]
    for header, part in zip(headers, parts, strict=True):
        assert int(row[part]) % 64 == 0
        assert int(row[part]) > header.offset_data
    assert (corpus / "train-000000.tar").read_bytes()[257:263] == b"ustar\0"


def npy_only(key: str, value: bytes):
    return np.load(io.BytesIO(value), allow_pickle=False) if key.endswith(".npy") else None


def test_plain_webdataset_reads_the_same_sequences(tmp_path: Path) -> None:
    path = small_corpus(tmp_path, 3000)
    corpus = Corpus.open(path)
    urls = [str(path / shard["name"]) for shard in corpus.manifest["shards"] if shard["split"] == "train"]
    found, names, types = [], [], []
    for block in webdataset.WebDataset(urls, shardshuffle=False).decode(npy_only):
        off = block["off.npy"]
        found += [block["tok.npy"][a:b].tobytes() for a, b in itertools.pairwise(off)]
        names += [name.decode() for name in block["id.npy"]]
        types += block["type.npy"].tolist()
    ids = np.arange(corpus.count)
    assert found == [view.tobytes() for view in corpus.letters(ids)]
    assert names == corpus.accessions(ids)
    assert types == corpus.types(ids).tolist()


def test_spans_partition_every_shard(tmp_path: Path) -> None:
    path = small_corpus(tmp_path, 40_000)
    table = read_block_table(path)
    shards = read_manifest(path)["shards"]
    assert len(shards) > 3
    for number, shard in enumerate(shards):
        own = table[table["shard"] == number]
        assert int(own["span_end"][-1]) == shard["bytes"]
        assert (np.diff(own["span_end"].astype(np.int64)) > 0).all()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("intact"), 1500)


def read_all(path: Path, split: str) -> None:
    corpus = Corpus.open(path, split)
    corpus.letters(np.arange(corpus.count))


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))  # also turns letters into their other case


@pytest.mark.parametrize(
    "name", ["train-000000.tar", "validation-000000.tar", "index.npz", "lengths.npy", "manifest.json"]
)
def test_every_flipped_byte_is_found(intact: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "copy"
    shutil.copytree(intact, path)
    size = (path / name).stat().st_size
    places = {0, 1, 130, 257, 520, 700, size - 1, size - 600, size // 2}
    places |= set(np.random.default_rng(0).integers(0, size, 12).tolist())
    split = name.split("-")[0] if name.endswith(".tar") else "train"
    for at in sorted(places):
        flip(path / name, at)
        assert not verify(path).intact, at
        with pytest.raises(DataError, match=name):
            read_all(path, split)
        flip(path / name, at)
    assert verify(path).intact


@pytest.mark.parametrize("name", ["train-000000.tar", "index.npz", "lengths.npy", "manifest.json"])
def test_missing_and_cut_files(intact: Path, tmp_path: Path, name: str) -> None:
    for damage in ("missing", "cut", "longer", "empty"):
        path = tmp_path / damage
        shutil.copytree(intact, path)
        whole = (path / name).read_bytes()
        if damage == "missing":
            (path / name).unlink()
        else:
            (path / name).write_bytes({"cut": whole[:-512], "longer": whole + b" ", "empty": b""}[damage])
        with pytest.raises(DataError, match=name):
            Corpus.open(path)
        assert not verify(path).intact


def resealed(path: Path, change) -> None:
    """Changes the manifest and gives it a right hash, as a faulty writer would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    (path / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["letters"].update(A=1), "letter counts"),
        (lambda m: m["splits"]["train"]["types"].update(rRNA=1), "RNA types of train"),
        (lambda m: m["splits"]["train"].update(nucleotides=1), "nucleotides of train"),
        (lambda m: m["sources"][0].update(records=1), "do not add up"),
        (lambda m: m["shards"][0].update(sha256="0" * 64), "fingerprint"),
        (lambda m: m.update(alphabet="ACG"), "outside the alphabet"),
        (lambda m: m.update(type_names=["unknown"]), "outside the vocabulary"),
        (lambda m: m.update(format_version=3), "format version 3"),
    ],
)
def test_verify_checks_content_and_not_only_hashes(intact: Path, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "copy"
    shutil.copytree(intact, path)
    resealed(path, change)
    assert message in " ".join(verify(path).problems)


def test_verify_sees_through_a_consistent_forgery(intact: Path, tmp_path: Path) -> None:
    """A shard with other letters, all hashes made right: only the counts and lengths can tell."""
    path = tmp_path / "copy"
    shutil.copytree(intact, path)
    table = read_block_table(path)
    shard = path / "train-000000.tar"
    flip_at = int(table["tok"][0])
    raw = bytearray(shard.read_bytes())
    raw[flip_at] = ord("Z")
    shard.write_bytes(raw)

    table["xxh3"][table["shard"] == 0] = span_hashes(memoryview(raw), table["span_end"][table["shard"] == 0])
    with open(path / "index.npz", "wb") as file:
        np.savez(file, **{name: table[name] for name in table.dtype.names})

    def change(manifest) -> None:
        manifest["shards"][0]["sha256"] = hashlib.sha256(raw).hexdigest()
        manifest["files"]["index.npz"]["sha256"] = hashlib.sha256((path / "index.npz").read_bytes()).hexdigest()
        manifest["fingerprint"] = fingerprint(manifest["shards"])

    resealed(path, change)
    problems = " ".join(verify(path).problems)
    assert "outside the alphabet ('Z')" in problems
    assert "letter counts" in problems


def test_a_foreign_file_is_reported(intact: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(intact, path)
    (path / "train-000009.tar").write_bytes(b"")
    assert "does not belong" in verify(path).problems[0]


def test_shards_are_what_webdatasets_own_writer_writes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    letters = [b"ACGU" * int(n) for n in generator.integers(1, 800, 3000)]
    starts = generator.random(3000) < 0.5
    writer = ShardWriter(tmp_path, "train", 1 << 20)
    writer.add(letters, [b"n%d" % i for i in range(3000)], np.zeros(3000, dtype=np.uint8), starts)
    shards = writer.close()
    assert len(shards) > 3
    for shard in shards:
        stream = io.BytesIO()
        options = {"encoder": False, "compress": False, "mtime": 0, "format": "USTAR_FORMAT"}
        theirs = webdataset.TarWriter(stream, user="root", group="root", **options)
        with tarfile.open(tmp_path / shard.name) as tar:
            blocks: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, _, part = member.name.partition(".")
                blocks.setdefault(key, {"__key__": key})[part] = tar.extractfile(member).read()
        for block in blocks.values():
            theirs.write(block)
        theirs.close()
        assert stream.getvalue() == (tmp_path / shard.name).read_bytes()


def test_npy_is_numpys(tmp_path: Path) -> None:
    for array in (np.arange(7, dtype="<u4"), np.array([b"a", b"bcd"]), np.empty(0, np.uint8), np.zeros(3, dtype=bool)):
        np.save(tmp_path / "x.npy", array)
        assert npy(array) == (tmp_path / "x.npy").read_bytes()


def test_npy_needs_no_pickle() -> None:
    with pytest.raises(ValueError):
        npy(np.array([object()]))
