"""Between scanning and writing, where sequences must be seen together: clusters, leaks and families.

Numbers the distinct sequences (`data.hash_order`), finds clusters, leaks and the split, and writes the records into new
buckets, ordered by the key of their cluster, so that the writing phase finds the members of a cluster side by side.
Clustering is done once: a build that is killed afterwards continues with its result.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import GROUPED_ROW, ROW, Buckets, BucketWriter, order_keys
from data.clusters import find_clusters, write_clustering
from data.hash_order import HashOrder, Numbered, number_sequences
from data.leaks import HIT, TABLE_HEADER, Leaks, find_leaks
from data.manifest import CLUSTERING, EXCLUDED
from data.prepare_config import PrepareConfig
from data.publish import write_durably
from data.scan import Progress
from data.split import choose, require_split

_CLUSTERED = "clustered.json"


def regroup(
    config: PrepareConfig, buckets: Buckets, folder: Path, spill: Path, progress: Progress
) -> tuple[Buckets, dict[str, Any]]:
    """(buckets of GROUPED_ROW in ``spill``, what the manifest tells); clustering and exclusions lie in ``folder``.

    ``told["validation"]`` is the size of that split, ``told["excluded_records"]`` counts by source.
    """
    folder.mkdir(exist_ok=True)
    uses_mmseqs = config.clusters.method == "mmseqs" or bool(config.exclude)

    def numbered(done: int) -> None:
        progress("removing duplicates", done, buckets.count)

    sequences = number_sequences(buckets, folder, uses_mmseqs, numbered)
    if not sequences.count:
        require_split(config, 0, 0)
    told: dict[str, Any] = {}
    first, told["clusters"] = _clustered(config, sequences, folder, progress)
    dropped = sequences.new("dropped", np.uint8)
    leaks = Leaks(np.empty(0, dtype=HIT), [], [])
    if config.exclude:
        progress("searching benchmarks", 0, 1)
        leaks = find_leaks(config, sequences)
        actions = np.array([entry.action == "drop" for entry in config.exclude])
        dropped[leaks.hits["number"][actions[leaks.hits["entry"]]]] = 1
        progress("searching benchmarks", 1, 1)
    told["exclude"] = leaks.told
    held_out, told["split"] = choose(config, sequences, first, dropped)
    told["validation"] = int(np.count_nonzero(held_out))
    told["sequences"] = sequences.count - int(np.count_nonzero(dropped))

    spill.mkdir()
    writer = BucketWriter(spill, buckets.count)
    excluded = np.zeros((2, len(config.sources)), dtype=np.int64)  # kept records of dropped sequences, their duplicates
    hi = sequences.hi
    with open(folder / EXCLUDED, "wb") as table:
        table.write(TABLE_HEADER)
        for b, found in enumerate(sequences.records()):
            _write_leaks(config, table, leaks, found)
            rows = found.bucket.rows[found.order]
            gone = dropped[found.number] > 0
            excluded[0] += np.bincount(rows["source"][gone & found.first], minlength=len(config.sources))
            excluded[1] += np.bincount(rows["source"][gone & ~found.first], minlength=len(config.sources))
            _hand_on(writer, config.seed, found, np.flatnonzero(~gone), hi, first, held_out)
            progress("grouping", b + 1, buckets.count)
    writer.flush()
    told["excluded_records"] = excluded.tolist()
    return Buckets(spill, buckets.count, 1, GROUPED_ROW), told


def _clustered(
    config: PrepareConfig, sequences: HashOrder, folder: Path, progress: Progress
) -> tuple[npt.NDArray[np.uint32], dict[str, Any]]:
    """First member of each sequence's cluster: found now, or by a build that was killed later."""
    if config.clusters.method == "none":
        return find_clusters(config, sequences)
    marker, stored = folder / _CLUSTERED, folder / CLUSTERING
    if not marker.exists():  # the partial directory belongs to one config and its files, so what is there fits
        progress("clustering", 0, 1)
        first, told = find_clusters(config, sequences)
        write_clustering(stored, sequences, first)
        write_durably(marker, json.dumps(told).encode())
        progress("clustering", 1, 1)
    table = np.load(stored, mmap_mode="r", allow_pickle=False)
    first = sequences.new("first", np.uint32)
    clusters = 0
    for part in sequences.chunks():
        first[part] = table["first"][part]
        clusters += int(np.count_nonzero(first[part] == np.arange(part.start, part.stop)))
    return first, {**json.loads(marker.read_text()), "found": clusters}


def _write_leaks(config: PrepareConfig, table: Any, leaks: Leaks, found: Numbered) -> None:
    if not len(leaks.hits) or not len(found.number):
        return
    low, high = np.searchsorted(leaks.hits["number"], [found.number[0], found.number[-1] + 1])
    hits = leaks.hits[low:high]
    firsts = found.order[found.first]
    names = found.bucket.names(firsts[hits["number"] - found.number[0]])
    table.writelines(leaks.line(hit, name, config) for hit, name in zip(hits, names, strict=True))


def _hand_on(
    writer: BucketWriter,
    seed: int,
    found: Numbered,
    chosen: npt.NDArray[np.int64],
    hi: npt.NDArray[np.uint64],
    first_of_cluster: npt.NDArray[np.uint32],
    held_out: npt.NDArray[np.uint8],
    piece: int = 4096,
) -> None:
    """Adds the chosen records to the new buckets, a few thousand at a time."""
    for start in range(0, len(chosen), piece):
        picks = chosen[start : start + piece]
        source_rows, number, is_first = found.order[picks], found.number[picks], found.first[picks]
        rows = np.zeros(len(picks), dtype=GROUPED_ROW)
        for name in ROW.names or ():
            rows[name] = found.bucket.rows[name][source_rows]
        rows["cluster"] = first_of_cluster[number]
        rows["cluster_hi"] = hi[rows["cluster"]]
        rows["held_out"] = held_out[number]
        rows["length"][~is_first] = 0
        letters = [b""] * len(picks)
        for i, sequence in zip(np.flatnonzero(is_first), found.bucket.letters(source_rows[is_first]), strict=True):
            letters[i] = sequence
        writer.add(order_keys(rows["cluster_hi"], seed), rows, letters, found.bucket.names(source_rows))


def clear(folder: Path) -> None:
    """Removes what a killed regrouping left, but not a finished clustering."""
    if not (folder / _CLUSTERED).exists():
        shutil.rmtree(folder, ignore_errors=True)
