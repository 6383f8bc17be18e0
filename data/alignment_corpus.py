"""Building a corpus of alignments: raw files -> shuffled, verifiable shards. `prepare_alignments` is the whole of it.

    scan      files -> cleaned alignments in a spool on disk          data/alignment_scan.py, data/alignment_columns.py
    choose    families or clans -> training or validation             data/alignment_split.py
    write     in the order of a keyed hash of the family: shards      data/alignment_shards.py
    publish   rename the finished directory into place                data/publish.py

The bytes of the corpus depend on the seed, the options, and which alignments there are, not on how they are spread over
files, nor on the order of a directory listing. A killed build starts over. Memory is that of one alignment, plus a few
hundred bytes for each.
"""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data import randomness
from data.alignment_columns import LETTERS
from data.alignment_config import KIND, AlignmentConfig, check, files_of, identity_key
from data.alignment_scan import DROP_REASONS, AlignmentTally, Entry, described_changes, scan
from data.alignment_shards import AlignmentShard, AlignmentShardWriter, alignment_index
from data.alignment_split import choose
from data.corpus import silent
from data.errors import DataError
from data.manifest import (
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    SPLITS,
    file_sha256,
    fingerprint,
    read_manifest,
    sealed,
)
from data.publish import is_finished, mark_finished, partial_directory, publish, sync_file, write_durably
from data.rna_types import TYPES
from data.scan import Progress


def prepare_alignments(config: AlignmentConfig, progress: Progress = silent) -> dict[str, Any]:
    """Builds the corpus at ``config.output_path`` and returns its manifest.

    Raises DataError for any input a user can mend; then, nothing is left behind.
    """
    check(config.name, config)
    files = [files_of(source) for source in config.sources]
    output = config.output_path
    with partial_directory(output, identity_key(config, files), config.overwrite) as partial:
        built, spool = partial / "built", partial / "spool"
        if not is_finished(built):
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            entries, tallies = scan(config, files, spool, progress)
            _require_some(config, entries, tallies)
            held_out, told = choose(config, entries)
            shards = _write(config, entries, held_out, spool, built, progress)
            with open(built / INDEX, "wb") as file:
                np.savez(file, allow_pickle=False, **alignment_index(shards))
            sync_file(built / INDEX)
            write_durably(built / MANIFEST, sealed(_described(config, tallies, entries, held_out, shards, told, built)))
            mark_finished(built)
        spool.unlink(missing_ok=True)
        manifest = read_manifest(built)
        publish(built, output)
    return manifest


def _require_some(config: AlignmentConfig, entries: list[Entry], tallies: list[AlignmentTally]) -> None:
    """Raises DataError that tells why alignments were left out, if all were."""
    if not entries:
        why = [f"{reason.replace('_', ' ')}: {where}" for t in tallies for reason, where in t.first_dropped.items()]
        raise DataError(
            f"{config.name}: no alignment is left after filtering ({'; '.join(why[:3]) or 'the sources hold none'}); "
            "check min_depth, min_columns, max_columns, exclude and the sources."
        )


def _write(
    config: AlignmentConfig, entries: list[Entry], held_out: list[bool], spool: Path, built: Path, progress: Progress
) -> list[AlignmentShard]:
    """Copies the spool into shards, split by split, in the order of a keyed hash of each family."""
    order = sorted(
        range(len(entries)), key=lambda i: (randomness.key(config.seed, "order", entries[i].family), entries[i].family)
    )
    shards: list[AlignmentShard] = []
    done = 0
    with open(spool, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for split in SPLITS:
            writer = AlignmentShardWriter(built, split, config.shard_megabytes * 10**6)
            for i in order:
                entry = entries[i]
                if held_out[i] != (split == "validation"):
                    continue
                at = entry.at + entry.json_bytes
                letters = np.frombuffer(mapped[at : at + entry.depth * entry.columns], dtype=np.uint8)
                writer.add(entry, mapped[entry.at : at], letters.reshape(entry.depth, entry.columns))
                done += 1
                progress("writing shards", done, len(entries))
            shards += writer.close()
    return shards


def _described(
    config: AlignmentConfig,
    tallies: list[AlignmentTally],
    entries: list[Entry],
    held_out: list[bool],
    shards: list[AlignmentShard],
    told: dict[str, Any],
    built: Path,
) -> dict[str, Any]:
    """manifest.json without its own hash."""
    described = [shard.described() for shard in shards]
    letters = np.sum([shard.letters for shard in shards], axis=0)
    sides = {
        split: [e for e, out in zip(entries, held_out, strict=True) if out == (split == "validation")]
        for split in SPLITS
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "name": config.name,
        "seed": config.seed,
        "options": {key: value for key, value in config.identity().items() if key not in ("name", "seed")},
        "sources": [
            {
                "name": tally.name,
                "format": config.sources[s].format,
                "type": config.sources[s].type,
                "files": tally.files,
                "alignments_read": tally.alignments,
                "rows_read": tally.rows,
                "dropped": {reason: tally.dropped[reason] for reason in DROP_REASONS},
                "first_dropped": dict(sorted(tally.first_dropped.items())),
                "changed": described_changes(tally),
                "alignments": {split: sum(e.source == s for e in sides[split]) for split in SPLITS},
            }
            for s, tally in enumerate(tallies)
        ],
        "splits": {split: _split_counts(sides[split]) for split in SPLITS},
        "split": told,
        "alphabet": LETTERS,
        "letters": {letter: int(letters[ord(letter)]) for letter in LETTERS if letters[ord(letter)]},
        "type_names": list(TYPES),
        "shards": described,
        "files": {INDEX: {"bytes": (built / INDEX).stat().st_size, "sha256": file_sha256(built / INDEX)}},
        "fingerprint": fingerprint(described),
    }


def _split_counts(entries: list[Entry]) -> dict[str, Any]:
    types = np.bincount([entry.type for entry in entries], minlength=len(TYPES))
    return {
        "alignments": len(entries),
        "rows": sum(entry.depth for entry in entries),
        "columns": sum(entry.columns for entry in entries),
        "letters": sum(entry.depth * entry.columns for entry in entries),
        "types": {TYPES[t]: int(n) for t, n in enumerate(types.tolist()) if n},
    }
