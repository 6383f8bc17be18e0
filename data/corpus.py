"""Building a corpus: raw FASTA files -> shuffled, duplicate-free, verifiable shards. `prepare` is the whole of it.

    scan      files -> normalised records in hash-range buckets on disk              data/scan.py, data/buckets.py
    assemble  per bucket, in key order: drop duplicates, choose the split, write     data/assemble.py, data/shards.py
    publish   rename the finished directory into place                               data/publish.py

The order of the corpus is the sort of its sequences by a keyed hash of their letters, so it depends on the seed and on
which sequences there are, and on nothing else: not on the number of buckets, chunks, the order of a directory listing,
or a restart. Memory is that of one bucket. The sampling order of training is not decided here (`data.order`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from data.assemble import assemble
from data.buckets import BucketWriter, bucket_count
from data.formats.fasta import CHUNK_BYTES
from data.manifest import MANIFEST, read_manifest
from data.prepare_config import PrepareConfig, identity_key, source_files
from data.publish import partial_directory, publish, write_durably
from data.scan import Progress, SourceTally, scan

_SCANNED = "scanned.json"  # present: the buckets are complete
_GZIP_RATIO = 4  # of sequence files, to size buckets; a wrong guess costs memory, not correctness


def silent(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def prepare(
    config: PrepareConfig, progress: Progress = silent, buckets: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> dict[str, Any]:
    """Builds the corpus at ``config.output_path`` and returns its manifest.

    ``buckets`` (a power of two) and ``chunk_bytes`` bound memory and change no byte of the result. A killed build
    continues when called again with the same config and files. Raises DataError for any input a user can mend; then,
    nothing is left behind.
    """
    files = [source_files(source) for source in config.sources]
    output = config.output_path
    with partial_directory(output, identity_key(config, files), config.overwrite) as partial:
        built, spill = partial / "built", partial / "buckets"
        if not (built / MANIFEST).exists():
            tallies, count = _scanned(config, files, partial, buckets, chunk_bytes, progress)
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            assemble(config, tallies, spill, count, built, progress)
        shutil.rmtree(spill, ignore_errors=True)
        manifest = read_manifest(built)
        publish(built, output)
    return manifest


def _scanned(
    config: PrepareConfig,
    files: list[list[Path]],
    partial: Path,
    buckets: int | None,
    chunk_bytes: int,
    progress: Progress,
) -> tuple[list[SourceTally], int]:
    """Tallies and bucket count of the records in ``partial/buckets``: left complete by a killed build, or made now."""
    marker, spill = partial / _SCANNED, partial / "buckets"
    if marker.exists():
        done = json.loads(marker.read_text())
        return [SourceTally.from_json(tally) for tally in done["sources"]], done["buckets"]
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir()
    size = sum(p.stat().st_size * (_GZIP_RATIO if p.suffix == ".gz" else 1) for paths in files for p in paths)
    count = buckets or bucket_count(size)
    writer = BucketWriter(spill, count, config.seed)
    tallies = scan(config, files, writer, chunk_bytes, progress)
    writer.close()
    write_durably(marker, json.dumps({"buckets": count, "sources": [tally.as_json() for tally in tallies]}).encode())
    return tallies, count
