"""Building a corpus of reactivity profiles: tables, RDAT and JSON -> shuffled, verifiable shards.

    scan      files -> normalised profiles in hash-range buckets on disk            data/reactivity_scan.py
    resolve   one profile per sequence and channel; one sample per sequence         data/reactivity_resolve.py
    cluster   where asked for                                                       data/clusters.py
    split     folds of the clean samples, or of clusters                            data/reactivity_split.py
    assemble  in the order of keys, both splits                                     data/reactivity_assemble.py
    publish   rename the finished directory into place                              data/publish.py

What `data.corpus` promises holds here too: the corpus depends on the config and on which profiles there are, not on the
order of files or rows, the number of buckets, or a restart. A killed build starts again from the files. Memory is that
of one bucket, and some 60 bytes per sequence.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import Buckets, bucket_count
from data.clusters import find_clusters, write_clustering
from data.corpus import silent
from data.errors import DataError
from data.hash_order import number_sequences
from data.manifest import CLUSTERING, read_manifest
from data.mmseqs import find_program
from data.publish import is_finished, mark_finished, partial_directory, publish
from data.reactivity_assemble import assemble, regroup
from data.reactivity_config import ReactivityConfig, check, files_of, identity_key
from data.reactivity_resolve import resolve
from data.reactivity_scan import ROW, scan
from data.reactivity_split import choose
from data.records import Tally
from data.scan import Progress

_RATIO = 4  # text of a compressed table, to size buckets; a wrong guess costs memory, not correctness
_COMPRESSED = (".gz", ".parquet", ".zip")


def prepare_reactivity(
    config: ReactivityConfig, progress: Progress = silent, buckets: int | None = None
) -> dict[str, Any]:
    """Builds the corpus at ``config.output_path`` and returns its manifest.

    ``buckets`` (a power of two) bounds memory and changes no byte of the result. A killed build may be started again.
    Raises DataError for any input a user can mend; then, nothing is left behind.
    """
    check(config.name, config)
    if config.clusters.method == "mmseqs":
        find_program(config.mmseqs)
    files = [files_of(source) for source in config.sources]
    output = config.output_path
    with partial_directory(output, identity_key(config, files), config.overwrite) as partial:
        built = partial / "built"
        if not is_finished(built):
            shutil.rmtree(built, ignore_errors=True)
            _build(config, files, partial, built, buckets, progress)
            mark_finished(built)
        for path in partial.iterdir():
            if path.is_dir() and path != built:
                shutil.rmtree(path)
        manifest = read_manifest(built)
        publish(built, output)
    return manifest


def _build(
    config: ReactivityConfig,
    files: list[list[Path]],
    partial: Path,
    built: Path,
    buckets: int | None,
    progress: Progress,
) -> None:
    folders = [partial / name for name in ("buckets", "resolved", "groups", "ordered", "built")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    spill, resolved_folder, groups, ordered, _ = folders
    size = sum(p.stat().st_size * (_RATIO if p.suffix in _COMPRESSED else 1) for paths in files for p in paths)
    count = buckets or bucket_count(size)
    tallies, libraries, every = scan(config, files, spill, count, progress)
    spilled = Buckets(spill, count, 1, ROW)
    resolved = resolve(config, spilled, [t.tally for t in tallies], every, resolved_folder, progress)
    shutil.rmtree(spill)

    if not resolved.count:
        total = Tally.sum(found.tally for found in tallies)
        examples = {reason: f", the first {where}" for reason, (_, where) in total.first_dropped.items()}
        why = "; ".join(
            f"{n:,} {reason.replace('_', ' ')}{examples.get(reason, '')}" for reason, n in total.dropped.most_common()
        )
        raise DataError(
            f"{config.name}: no sequence is left after filtering (records dropped: {why or 'none'}); check the "
            "channels, the sources and their `experiments` (which channel an experiment is of), lengths and "
            "drop_datasets."
        )
    uses_mmseqs = config.clusters.method == "mmseqs"
    sequences = number_sequences(
        resolved.buckets, groups, uses_mmseqs, lambda done: progress("numbering sequences", done, count)
    )
    names, rename = sorted_libraries(libraries)
    first, clusters = find_clusters(config, sequences)  # type: ignore[arg-type]  # its keys are the same
    if config.clusters.method != "none":
        write_clustering(built / CLUSTERING, sequences, first)
        clusters["found"] = int(np.count_nonzero(first == np.arange(resolved.count)))
    table = resolved.table()
    held_out = choose(config, np.array(sequences.lo), np.array(first), table["snr"], rename[table["library"]])
    regroup(config, resolved, sequences, first, held_out, ordered, progress)
    assemble(config, tallies, resolved, ordered, clusters, names, rename, built, progress)


def sorted_libraries(libraries: list[str]) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """(libraries in the order of their names, their place there by number)."""
    names = sorted(libraries)
    rename = np.array([names.index(name) for name in libraries] or [0], dtype=np.uint8)
    return names, rename
