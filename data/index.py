"""Reading a corpus: any sequence by number, as a zero-copy view of the mapped shards.

`Corpus` is one split of a prepared directory. Opening checks the manifest, the index and the sizes of all shards;
the bytes of a block are checked against the index when the block is first touched (about 0.1 ms), and again when its
file was written to (`data.mapped_file`), so a damaged shard is an error and never a wrong nucleotide. No Python object
is kept per sequence or block: 40 M sequences cost the block table (about 3 MB) and what the page cache holds.

Sequences are numbered 0 .. count - 1 within the split, in the corpus's own order, which was shuffled when it was built.
One thread may read at a time. It does not sample (`data.order`) and does not encode (`data.alphabet`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.duplicates import DuplicateTable, Record
from data.errors import DataError
from data.manifest import CLUSTERS, INDEX, LENGTHS, SPLITS, file_sha256, fingerprint, read_manifest
from data.mapped_file import MappedFile, map_file
from data.shards import BLOCK

Ids = npt.NDArray[np.integer] | list[int]
_AGAIN = "copy the corpus again or prepare it again"


class Corpus:
    """One split of a corpus directory.

    ``count`` sequences; ``lengths`` uint32 [count] nucleotides, a slice of the mapped lengths.npy; ``block_counts``
    int64 [blocks] sequences per block in order; ``clusters`` [clusters + 1] row pointers, cluster c being the sequences
    clusters[c] .. clusters[c + 1] - 1 (None: the corpus has no clusters); ``type_names`` RNA type of each type id;
    ``fingerprint`` of the whole corpus; ``manifest`` as read.
    """

    path: Path
    manifest: dict[str, Any]
    fingerprint: str
    split: str
    count: int
    lengths: npt.NDArray[np.uint32]
    block_counts: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.integer] | None
    type_names: list[str]
    block_dtype: np.dtype[Any] = BLOCK  # of the block table; other kinds of corpora have more members

    @classmethod
    def open(cls, path: str | Path, split: str = "train", shards: Callable[[str], Path] | None = None) -> Corpus:
        """Raises DataError if the directory is no intact corpus (see the module) or has no such split.

        ``shards`` gives the path of a shard once it is there (`data.staging`); shards are then mapped when first read.
        """
        return cls(Path(path), split, shards)

    def __init__(self, path: Path, split: str, shards: Callable[[str], Path] | None = None) -> None:
        if split not in SPLITS:
            raise DataError(f"{path}: there is no split {split!r}; splits are {' and '.join(SPLITS)}.")
        self.path, self.split = path, split
        self.manifest = read_manifest(path)
        if self.manifest.get("kind") == "alignments":
            raise DataError(f"{path}: is a corpus of alignments, sequences were expected; use another corpus.")
        self.fingerprint = self.manifest["fingerprint"]
        self.type_names = self.manifest["type_names"]
        self._locate_shard = shards
        check_files(path, self.manifest, with_shards=shards is None)

        blocks = read_block_table(path, self.block_dtype)
        described = self.manifest["shards"]
        self._shards: list[str] = [shard["name"] for shard in described]
        own_shards = np.array([shard["split"] == split for shard in described], dtype=bool)
        previous_end = np.concatenate([[np.uint64(0)], blocks["span_end"][:-1]])
        starts_shard = np.concatenate([[True], blocks["shard"][1:] != blocks["shard"][:-1]])
        span_start = np.where(starts_shard, np.uint64(0), previous_end)

        own = own_shards[blocks["shard"]]
        self._blocks = blocks[own]
        self._span_start = span_start[own]
        self.block_counts = self._blocks["sequences"].astype(np.int64)
        self._block_end = np.cumsum(self.block_counts)
        self._block_start = self._block_end - self.block_counts
        self._checked = np.zeros(len(self._blocks), dtype=bool)
        self._off = self._blocks["off"].astype(np.int64) // 4
        self._tok = self._blocks["tok"].astype(np.int64)
        self._shard = self._blocks["shard"].astype(np.int64)

        lengths = np.load(path / LENGTHS, mmap_mode="r", allow_pickle=False)
        train = self.manifest["splits"]["train"]["sequences"]
        self.count = self.manifest["splits"][split]["sequences"]
        self.lengths = lengths[:train] if split == "train" else lengths[train:]
        if len(lengths) != sum(s["sequences"] for s in self.manifest["splits"].values()) or self.count != sum(
            self.block_counts
        ):
            raise DataError(f"{path}: manifest, index and lengths count different numbers of sequences; {_AGAIN}.")
        if not self.count:
            raise DataError(f"{path}: the {split} split is empty; prepare the corpus with validation_fraction above 0.")
        self.clusters = read_clusters(path, self.manifest, split)
        self._duplicates: DuplicateTable | None = None
        self._bytes: list[Any] = [None] * len(described)
        self._words: list[Any] = [None] * len(described)  # the same bytes as uint32, for the offset tables
        self._files: list[MappedFile | None] = [None] * len(described)
        self._closed = False
        if shards is None:
            for number in np.flatnonzero(own_shards).tolist():  # all now, so that replacing the corpus cannot mix two
                self._map(number, path / self._shards[number])

    def letters(self, ids: Ids) -> list[npt.NDArray[np.uint8]]:
        """ASCII letters of each sequence, uint8 [length], read-only views valid until `close`.

        Raises DataError for a number outside the split or a block that does not match its checksum.
        """
        block, local = self._locate(ids)
        at = (self._off[block] + local).tolist()
        found = []
        for shard, i, tok in zip(self._shard[block].tolist(), at, self._tok[block].tolist(), strict=True):
            words = self._words[shard]
            found.append(self._bytes[shard][tok + words[i] : tok + words[i + 1]])
        return found

    def types(self, ids: Ids) -> npt.NDArray[np.uint8]:
        """RNA type id of each sequence, uint8 [n]; `type_names` names them."""
        block, local = self._locate(ids)
        at = self._blocks["type"][block].astype(np.int64) + local
        pairs = zip(self._shard[block].tolist(), at.tolist(), strict=True)
        return np.array([self._bytes[shard][i] for shard, i in pairs], dtype=np.uint8)

    def accessions(self, ids: Ids) -> list[str]:
        """The name each sequence had in its source, of the first source that had it."""
        block, local = self._locate(ids)
        width = self._blocks["id_width"][block].astype(np.int64)
        at = self._blocks["id"][block].astype(np.int64) + local * width
        found = []
        for shard, i, w in zip(self._shard[block].tolist(), at.tolist(), width.tolist(), strict=True):
            found.append(_text(self._bytes[shard][i : i + w].tobytes().rstrip(b"\0")))
        return found

    def all_records(self, ids: Ids) -> list[list[Record]]:
        """Every record of the sources that has the sequence, for each: the one that was kept, then its duplicates.

        Raises DataError where the side tables are missing (version 1 of the format, or a copy made for training).
        """
        if self._duplicates is None:
            if "sidecars" not in self.manifest:
                raise DataError(f"{self.path}: was prepared before duplicates were kept; prepare it again.")
            self._duplicates = DuplicateTable(self.path, self.split, self.manifest["sidecars"])
        names = [source["name"] for source in self.manifest["sources"]]
        start = 0 if self.split == "train" else self.manifest["splits"]["train"]["sequences"]
        found = []
        for i, accession in zip(np.asarray(ids, dtype=np.int64).tolist(), self.accessions(ids), strict=True):
            records = [Record(accession, names[self._duplicates.source(start + i)], False)]
            records += [Record(_text(name), names[s], other) for name, s, other in self._duplicates.of(i)]
            found.append(records)
        return found

    def all_accessions(self, ids: Ids) -> list[list[str]]:
        """Every accession of each sequence: the one that was kept first, then those of its duplicates."""
        return [[record.accession for record in records] for records in self.all_records(ids)]

    def close(self) -> None:
        """Lets go of the mapped shards; views handed out keep theirs alive as long as they live."""
        self._bytes = [None] * len(self._shards)
        self._words = [None] * len(self._shards)
        self._files = [None] * len(self._shards)
        self._closed = True

    def _locate(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Block of each sequence and its number in it; checks blocks touched for the first time."""
        if self._closed:
            raise DataError(f"{self.path}: this reader was closed; open the corpus again.")
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
            bad = wanted[(wanted < 0) | (wanted >= self.count)][0]
            raise DataError(f"{self.path}: sequence {bad} is not in the {self.split} split, which has {self.count}.")
        block = np.searchsorted(self._block_end, wanted, side="right")
        if self._locate_shard is not None:
            self._map_staged(self._shard[block])
        for shard in np.unique(self._shard[block]).tolist():
            file = self._files[shard]
            if file is not None and file.changed():
                self._checked[self._shard == shard] = False
        if not self._checked[block].all():
            for b in np.unique(block[~self._checked[block]]).tolist():
                self._check_block(b)
        return block, wanted - self._block_start[block]

    def _check_block(self, b: int) -> None:
        row = self._blocks[b]
        shard = int(row["shard"])
        span = self._bytes[shard][int(self._span_start[b]) : int(row["span_end"])]
        if xxhash.xxh3_64_intdigest(span) != int(row["xxh3"]):
            number = b - int(np.searchsorted(self._shard, shard))
            raise DataError(
                f"{self.path / self._shards[shard]}: block {number} does not match its checksum, the file was damaged "
                f"or changed; {_AGAIN} (launch/prepare.py verify {self.path} checks the rest)."
            )
        self._checked[b] = True

    def _map_staged(self, wanted: npt.NDArray[np.int64]) -> None:
        """Maps shards that are not mapped yet, waiting for them; lets go of those that were evicted meanwhile."""
        needed = set(np.unique(wanted).tolist())
        missing = [shard for shard in needed if self._bytes[shard] is None]
        for shard in missing:
            assert self._locate_shard is not None
            self._map(shard, self._locate_shard(self._shards[shard]))
        for shard, name in enumerate(self._shards) if missing else ():
            if self._bytes[shard] is not None and shard not in needed and not (self.path / name).exists():
                self._bytes[shard] = self._words[shard] = self._files[shard] = None

    def _map(self, shard: int, path: Path) -> None:
        mapped = map_file(path)
        self._bytes[shard] = np.frombuffer(mapped, dtype=np.uint8)
        self._words[shard] = memoryview(mapped).cast("I")
        self._files[shard] = MappedFile(path, mapped)


def _text(name: bytes) -> str:
    """Headers may be of any encoding: UTF-8 where it is that, else Latin-1."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def read_clusters(path: Path, manifest: dict[str, Any], split: str) -> npt.NDArray[np.integer] | None:
    """Row pointers of one split, [clusters + 1], or None. Raises DataError if they do not partition the split."""
    if CLUSTERS not in manifest["files"]:
        return None
    try:
        with np.load(io.BytesIO((path / CLUSTERS).read_bytes()), allow_pickle=False) as arrays:
            pointers: npt.NDArray[np.integer] = arrays[split]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path / CLUSTERS}: cannot be read as row pointers ({error}); {_AGAIN}.") from error
    count = manifest["splits"][split]["sequences"]
    if pointers[0] != 0 or pointers[-1] != count or (count and (pointers[1:] <= pointers[:-1]).any()):
        raise DataError(f"{path / CLUSTERS}: the clusters do not partition the {split} split; {_AGAIN}.")
    return pointers


def read_block_table(path: Path, dtype: np.dtype[Any] = BLOCK) -> npt.NDArray[np.void]:
    """index.npz as BLOCK [blocks], or as another kind's ``dtype``. Raises DataError if it is not readable as that."""
    try:
        with np.load(io.BytesIO((path / INDEX).read_bytes()), allow_pickle=False) as arrays:
            table = np.empty(len(arrays["shard"]), dtype=dtype)
            for name in dtype.names or ():
                table[name] = arrays[name]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path / INDEX}: cannot be read as a block table ({error}); {_AGAIN}.") from error
    return table


def check_files(path: Path, manifest: dict[str, Any], with_shards: bool = True) -> None:
    """The cheap checks: hashes of what training reads besides shards, size of each shard. Raises DataError."""
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            raise DataError(f"{path / name}: is missing; {_AGAIN}.")
        if file_sha256(path / name) != expected["sha256"]:
            raise DataError(f"{path / name}: does not match its hash in the manifest, it was changed; {_AGAIN}.")
    for shard in manifest["shards"] if with_shards else ():
        try:
            size = (path / shard["name"]).stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{path / shard['name']}: is missing; {_AGAIN}.") from error
        if size != shard["bytes"]:
            raise DataError(
                f"{path / shard['name']}: has {size} bytes, the manifest says {shard['bytes']}; the copy is not "
                f"complete, {_AGAIN}."
            )
    if fingerprint(manifest["shards"]) != manifest["fingerprint"]:
        raise DataError(f"{path}: the fingerprint does not match the list of shards; {_AGAIN}.")
