"""Building a corpus: raw FASTA files -> shuffled, duplicate-free, verifiable shards. `prepare` is the whole of it.

    scan      files -> normalised records in hash-range buckets on disk              data/scan.py, data/buckets.py
    regroup   clusters, leaks, families: records -> buckets by cluster               data/regroup.py (where asked for)
    assemble  per bucket, in key order: drop duplicates, write both splits           data/assemble.py, data/shards.py
    publish   rename the finished directory into place                               data/publish.py

The order of the corpus is the sort of its clusters (of its sequences, where there are none) by a keyed hash, so it
depends on the seed and on which sequences and clusters there are, and on nothing else: not on the number of buckets,
chunks or processes, the order of a directory listing, or a restart. Memory is that of one bucket. The sampling order of
training is not decided here (`data.order`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from data.assemble import Plan, assemble, plan_by_key
from data.buckets import GROUPED_ROW, Buckets, bucket_count
from data.errors import DataError
from data.formats.text import CHUNK_BYTES
from data.manifest import CLUSTERING, EXCLUDED, read_manifest
from data.mmseqs import find_program
from data.prepare_config import PrepareConfig, check, files_of, identity_key
from data.publish import is_finished, mark_finished, partial_directory, publish, write_durably
from data.records import Tally
from data.regroup import clear, regroup
from data.scan import Progress, SourceTally, scan
from data.source_files import is_gzip

_SCANNED = "scanned.json"  # present: the buckets are complete
_REGROUPED = "regrouped.json"  # present: so are the buckets by cluster
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
    check(config.name, config)
    if config.clusters.method == "mmseqs" or config.exclude:
        find_program(config.mmseqs)  # missing: told now and not after an hour of reading
    files = [files_of(source) for source in config.sources]
    output = config.output_path
    with partial_directory(output, identity_key(config, files), config.overwrite) as partial:
        built = partial / "built"
        if not is_finished(built):
            tallies, spilled = _scanned(config, files, partial, buckets, chunk_bytes, progress)
            _require_records(config, tallies)
            if config.grouped:
                spilled, plan, told = _regrouped(config, spilled, partial, progress)
            else:
                records = sum(source.tally.records - sum(source.tally.dropped.values()) for source in tallies)
                plan, told = plan_by_key(config, records, spilled, progress), {}
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            for name in (CLUSTERING, EXCLUDED):
                if (partial / "groups" / name).exists() and (name != EXCLUDED or config.exclude):
                    shutil.copyfile(partial / "groups" / name, built / name)
            assemble(config, tallies, spilled, plan, told, built, progress)
            mark_finished(built)
        for marker in (_SCANNED, _REGROUPED):  # before what they vouch for
            (partial / marker).unlink(missing_ok=True)
        for folder in ("buckets", "groups", "regrouped"):
            shutil.rmtree(partial / folder, ignore_errors=True)
        manifest = read_manifest(built)
        publish(built, output)
    return manifest


def _require_records(config: PrepareConfig, tallies: list[SourceTally]) -> None:
    """Raises DataError where every record was dropped, with the reasons and the first record of each."""
    total = Tally.sum(source.tally for source in tallies)
    if total.records > sum(total.dropped.values()):
        return
    reasons = (
        f"{count:,} {reason.replace('_', ' ')} (the first: {total.first_dropped[reason][1]})"
        for reason, count in total.dropped.most_common()
    )
    raise DataError(
        f"{config.name}: no sequence is left after filtering. All {total.records:,} records were dropped: "
        f"{'; '.join(reasons)}. Change min_length={config.min_length}, max_length={config.max_length}, the letter "
        "policies (configs/data/example.yaml has them) or the sources."
    )


def _scanned(
    config: PrepareConfig,
    files: list[list[Path]],
    partial: Path,
    buckets: int | None,
    chunk_bytes: int,
    progress: Progress,
) -> tuple[list[SourceTally], Buckets]:
    """Tallies and buckets of the records in ``partial/buckets``: left complete by a killed build, or made now."""
    spill = partial / "buckets"
    done = _marked(partial / _SCANNED)
    if done is not None:
        return [SourceTally.from_json(t) for t in done["sources"]], Buckets(spill, done["buckets"], done["writers"])
    for folder in (spill, partial / "regrouped"):
        shutil.rmtree(folder, ignore_errors=True)
    (partial / _REGROUPED).unlink(missing_ok=True)
    spill.mkdir()
    size = sum(p.stat().st_size * (_GZIP_RATIO if is_gzip(p.name) else 1) for paths in files for p in paths)
    count = buckets or bucket_count(size)
    tallies, writers = scan(config, files, spill, count, chunk_bytes, progress)
    _mark(partial / _SCANNED, {"buckets": count, "writers": writers, "sources": [t.as_json() for t in tallies]})
    return tallies, Buckets(spill, count, writers)


def _regrouped(
    config: PrepareConfig, spilled: Buckets, partial: Path, progress: Progress
) -> tuple[Buckets, Plan, dict[str, Any]]:
    groups, spill = partial / "groups", partial / "regrouped"
    done = _marked(partial / _REGROUPED)
    if done is None:
        clear(groups)
        shutil.rmtree(spill, ignore_errors=True)
        _, done = regroup(config, spilled, groups, spill, progress)
        _mark(partial / _REGROUPED, done)
    return Buckets(spill, spilled.count, 1, GROUPED_ROW), Plan(done["sequences"], done["validation"]), done


def _mark(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, json.dumps({"boot": _boot(), **content}).encode())


def _marked(path: Path) -> dict[str, Any] | None:
    """What a marker says. One from before the machine was started is not believed: the files it vouches for were
    never forced to disk, which would cost more than making them again after such a rare event."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content if content["boot"] == _boot() else None


def _boot() -> str:
    """Differs between machines and between starts of one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename
