"""Which sequences belong together: for every distinct sequence, the first member of its cluster in hash order.

MMseqs2's clusters depend on the order of its input, and a little on chance: where two sequences match on both strands
alike, it breaks the tie at random (version 14: 2 % of 290 k real sequences changed clusters between two runs). So a
clustering is an artefact. Whether from MMseqs2 or from a table, it is kept in the corpus as `clustering.npy`: the hash
of every distinct sequence and the number of its cluster's first member. So it can be given again (`clusters.table` =
that corpus), and the same partition gives the same corpus wherever it came from: what a table calls a cluster, or its
representative, does not matter. A sequence without a cluster is an error unless the config asks for singletons.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import mmseqs
from data.cluster_table import labels_from_table
from data.errors import DataError
from data.hash_order import CHUNK, HashOrder
from data.manifest import CLUSTERING, file_sha256, read_manifest
from data.prepare_config import PrepareConfig
from data.publish import sync_file
from data.row_spill import RowSpill

# One distinct sequence of a clustering, sorted by hash.
CLUSTERED = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("first", "<u4")])  # first: number of its cluster's first member
_NONE = np.uint32((1 << 32) - 1)
_SINGLETON = np.uint64(1 << 63)  # labels from here on are sequence numbers

U32 = npt.NDArray[np.uint32]


def find_clusters(config: PrepareConfig, sequences: HashOrder) -> tuple[U32, dict[str, Any]]:
    """(mapped uint32 [count] first member of each sequence's cluster, what the manifest tells). Raises DataError."""
    clusters = config.clusters
    if clusters.method == "none":
        first = sequences.new("first", np.uint32)
        for part in sequences.chunks():
            first[part] = np.arange(part.start, part.stop)
        return first, {}
    told: dict[str, Any] = {"method": clusters.method}
    if clusters.method == "mmseqs":
        told |= {"program": f"mmseqs {mmseqs.version(config.mmseqs)}", "arguments": linclust_arguments(config)}
        first = _first_members(sequences, _run_linclust(config, sequences))
    else:
        path = Path(clusters.table)
        labels = sequences.new("labels", np.uint64)
        if path.is_dir() or path.name == CLUSTERING:
            stored = _stored_clustering(path)
            told["table"] = {"name": CLUSTERING, "sha256": file_sha256(stored)}
            _labels_from_clustering(stored, sequences, labels)
        else:
            told["table"] = {"name": path.name, "sha256": file_sha256(path)}
            labels_from_table(path, sequences, labels)
        told["missing"] = _settle_missing(config, sequences, labels)
        first = _first_of_labels(sequences, labels)
    return first, told


def write_clustering(path: Path, sequences: HashOrder, first: U32) -> None:
    """The stored form of a clustering: CLUSTERED [count]."""
    table = np.lib.format.open_memmap(path, mode="w+", dtype=CLUSTERED, shape=(sequences.count,), version=(1, 0))
    hi, lo = sequences.hi, sequences.lo
    for part in sequences.chunks():
        table["hi"][part], table["lo"][part], table["first"][part] = hi[part], lo[part], first[part]
    table.flush()
    sync_file(path)


def linclust_arguments(config: PrepareConfig) -> list[str]:
    """What decides the clusters, apart from the sequences and their order."""
    clusters = config.clusters
    return ["--min-seq-id", f"{clusters.identity:g}", "-c", f"{clusters.coverage:g}", *clusters.options]


def _run_linclust(config: PrepareConfig, sequences: HashOrder) -> U32:
    """uint32 [count] number of each sequence's representative."""
    folder = Path(tempfile.mkdtemp(prefix="linclust-", dir=sequences.folder))
    arguments: list[str | Path] = [sequences.fasta, folder / "out", folder / "tmp", *linclust_arguments(config)]
    arguments += ["--threads", str(config.thread_count), "--dbtype", "2"]
    mmseqs.run(config.mmseqs, ["easy-linclust", *arguments], folder / "log")
    representative = sequences.new("representative", np.uint32, int(_NONE))
    lines = 0
    for table in mmseqs.numbers(folder / "out_cluster.tsv", 2):
        representative[table[:, 1].astype(np.int64)] = table[:, 0].astype(np.uint32)
        lines += len(table)
    lacking = sum(int(np.count_nonzero(representative[part] == _NONE)) for part in sequences.chunks())
    if lacking or lines != sequences.count:
        raise DataError(
            f"mmseqs easy-linclust returned {lines} lines for {sequences.count} sequences and left out {lacking}; "
            "check clusters.options (for example --max-seq-len)."
        )
    shutil.rmtree(folder, ignore_errors=True)
    return representative


def _first_members(sequences: HashOrder, representative: U32) -> U32:
    """The smallest member of each sequence's cluster, from the representative of each."""
    smallest = sequences.new("smallest", np.uint32, int(_NONE))
    for part in sequences.chunks():
        np.minimum.at(smallest, representative[part], np.arange(part.start, part.stop, dtype=np.uint32))
    first = sequences.new("first", np.uint32)
    for part in sequences.chunks():
        first[part] = smallest[representative[part]]
    return first


def _first_of_labels(sequences: HashOrder, labels: npt.NDArray[np.uint64]) -> U32:
    """The same, from any 64-bit label of each sequence's cluster: sorted by label, in parts."""
    spill = RowSpill(sequences.folder / "by-label", np.dtype([("label", "<u8"), ("number", "<u4")]), sequences.count)
    for part in sequences.chunks():
        rows = np.empty(part.stop - part.start, dtype=spill.dtype)
        rows["label"], rows["number"] = labels[part], np.arange(part.start, part.stop)
        spill.add(rows["label"], rows)
    first = sequences.new("first", np.uint32)
    for rows in spill.parts():
        rows = rows[np.lexsort((rows["number"], rows["label"]))]
        starts = np.concatenate([[True], rows["label"][1:] != rows["label"][:-1]])
        first[rows["number"]] = rows["number"][starts][np.cumsum(starts) - 1]
    return first


def _stored_clustering(path: Path) -> Path:
    """The clustering.npy of a corpus, checked against the corpus's manifest."""
    folder = path if path.is_dir() else path.parent
    expected = read_manifest(folder).get("sidecars", {}).get(CLUSTERING)
    if expected is None:
        raise DataError(f"{folder}: this corpus was made without clusters; give one that has a {CLUSTERING}.")
    stored = folder / CLUSTERING
    if not stored.is_file() or file_sha256(stored) != expected["sha256"]:
        raise DataError(f"{stored}: is missing or does not match its hash in the manifest; copy the corpus again.")
    return stored


def _labels_from_clustering(stored: Path, sequences: HashOrder, labels: npt.NDArray[np.uint64]) -> None:
    """Looks every sequence up by its hash; both sides are sorted, so this is one walk through the two."""
    table = np.load(stored, mmap_mode="r", allow_pickle=False)
    hi, lo = sequences.hi, sequences.lo
    for start in range(0, len(table), CHUNK):
        known = np.array(table[start : start + CHUNK])
        a, b = np.searchsorted(hi, known["hi"][[0, -1]])
        b = int(np.searchsorted(hi, known["hi"][-1], side="right"))
        at = np.searchsorted(known["hi"], hi[a:b])
        for _ in range(2):  # two sequences in 2**64 may share half a hash
            near = np.minimum(at, len(known) - 1)
            same = (known["hi"][near] == hi[a:b]) & (known["lo"][near] == lo[a:b])
            labels[a:b][same] = known["first"][near][same].astype(np.uint64) + np.uint64(1)
            at = at + 1


def _settle_missing(config: PrepareConfig, sequences: HashOrder, labels: npt.NDArray[np.uint64]) -> int:
    """Gives sequences without a label one of their own, or refuses; how many there were."""
    missing, example = 0, -1
    for part in sequences.chunks():
        lacking = np.flatnonzero(labels[part] == 0)
        if lacking.size and example < 0:
            example = part.start + int(lacking[0])
        missing += len(lacking)
        labels[part.start + lacking] = (part.start + lacking).astype(np.uint64) | _SINGLETON
    if missing and config.clusters.missing == "error":
        raise DataError(
            f"{config.clusters.table}: names no cluster for {missing} of {sequences.count} sequences, the first is "
            f"{sequences.name_of(example) or 'one without a name'}; complete the table, or set "
            "clusters.missing=singleton to give each a cluster of its own."
        )
    return missing
