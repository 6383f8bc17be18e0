"""`data.verify` for what lies beside the shards: clusters, sources, duplicates, the clustering, exclusions.

Each check returns sentences about what is wrong. Hashes are checked first; a file that fails there is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.duplicates import SOURCES, load, names_name, table_name
from data.errors import DataError
from data.index import read_clusters
from data.manifest import CLUSTERING, CLUSTERS, EXCLUDED, MANIFEST, SPLITS, file_sha256


def check_tables(path: Path, manifest: dict[str, Any], starts: dict[str, list[npt.NDArray[np.bool_]]]) -> Iterator[str]:
    """Everything wrong with the files of ``manifest["sidecars"]`` and with clusters.npz.

    ``starts``: per split, what the shards say of each sequence: whether it starts a cluster.
    """
    damaged = list(check_hashes(path, manifest))
    yield from damaged
    yield from check_clusters(path, manifest, starts)
    if damaged or "sidecars" not in manifest:
        return
    if SOURCES in manifest["sidecars"]:
        yield from _check_sources(path, manifest)
    yield from _check_duplicates(path, manifest)
    if CLUSTERING in manifest["sidecars"]:
        yield from _check_clustering(path, manifest)
    if EXCLUDED in manifest["sidecars"]:
        lines = (path / EXCLUDED).read_bytes().count(b"\n") - 1
        if lines != sum(entry["sequences"] for entry in manifest["exclude"]):
            yield f"{path / EXCLUDED}: lists {lines} sequences, the manifest counts others."


def check_hashes(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, expected in manifest.get("sidecars", {}).items():
        if not (path / name).is_file():
            yield f"{path / name}: is missing."
        elif file_sha256(path / name) != expected["sha256"]:
            yield f"{path / name}: does not match its hash in the manifest, it was changed."


def check_clusters(
    path: Path, manifest: dict[str, Any], starts: dict[str, list[npt.NDArray[np.bool_]]]
) -> Iterator[str]:
    for split in SPLITS:
        try:
            pointers = read_clusters(path, manifest, split)
        except DataError as error:
            yield str(error)
            continue
        said = manifest["splits"][split].get("clusters")
        if (None if pointers is None else len(pointers) - 1) != said:
            yield f"{path / MANIFEST}: the clusters of {split} are not as many as the row pointers say."
        in_shards = np.flatnonzero(np.concatenate([*starts[split], np.empty(0, dtype=bool)]))
        if pointers is not None and not np.array_equal(in_shards, pointers[:-1]):
            yield f"{path / CLUSTERS}: the clusters of {split} start elsewhere than the shards say."


def _check_sources(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    sources = load(path / SOURCES)
    if len(sources) != sum(manifest["splits"][split]["sequences"] for split in SPLITS):
        yield f"{path / SOURCES}: names the source of {len(sources)} sequences, the manifest counts others."
        return
    start = 0
    for split in SPLITS:
        stop = start + manifest["splits"][split]["sequences"]
        said = [source["sequences"][split] for source in manifest["sources"]]
        if np.bincount(sources[start:stop], minlength=len(said)).tolist() != said:
            yield f"{path / SOURCES}: the sequences of {split} by source differ from the manifest."
        start = stop


def _check_duplicates(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    by_source = np.zeros(len(manifest["sources"]), dtype=np.int64)
    for split in SPLITS:
        file, said = path / table_name(split), manifest["splits"][split]
        if table_name(split) not in manifest["sidecars"]:
            if said["duplicates"]:
                yield f"{file}: is missing, the manifest says {said['duplicates']} duplicates."
            continue
        rows, names = load(file), load(path / names_name(split))
        if len(rows) != said["duplicates"]:
            yield f"{file}: holds {len(rows)} duplicates, the manifest says {said['duplicates']}."
        ends = np.concatenate([[0], rows["name_end"].astype(np.int64)])
        if (np.diff(ends) < 0).any() or ends[-1] != len(names):
            yield f"{file}: the accessions do not partition {names_name(split)}."
        sequence = rows["sequence"].astype(np.int64)
        if (np.diff(sequence) < 0).any() or sequence[-1] >= said["sequences"]:
            yield f"{file}: the sequences are not in order, or not in the split."
        if int(rows["source"].max()) >= len(by_source):
            yield f"{file}: names a source that the manifest lacks."
        else:
            by_source += np.bincount(rows["source"], minlength=len(by_source))
    for source, found in zip(manifest["sources"], by_source.tolist(), strict=True):
        told = source["dropped"]["duplicate"]
        if found > told or (found < told and not manifest["exclude"]):  # duplicates of excluded sequences are not kept
            yield f"{path / MANIFEST}: the duplicates of {source['name']} differ from the side tables."


def _check_clustering(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    file = path / CLUSTERING
    table = np.load(file, mmap_mode="r", allow_pickle=False)
    hi, lo, first = (np.ascontiguousarray(table[name]) for name in ("hi", "lo", "first"))
    if not ((hi[1:] > hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] > lo[:-1]))).all():
        yield f"{file}: is not sorted by hash."
    place = np.arange(len(table), dtype=np.uint32)
    if (first > place).any() or (first[first] != first).any():
        yield f"{file}: a cluster does not start with its first member."
    if np.count_nonzero(first == place) != manifest["clusters"]["found"]:
        yield f"{path / MANIFEST}: counts other clusters than {CLUSTERING} holds."
    excluded = sum(source["dropped"]["excluded"] for source in manifest["sources"])
    if len(table) != sum(manifest["splits"][split]["sequences"] for split in SPLITS) + excluded:
        yield f"{file}: holds {len(table)} sequences, the manifest counts others."
