"""The content of manifest.json: what a finished build tells about its sources, splits, clusters and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.duplicates import SOURCES, names_name, table_name
from data.manifest import (
    CLUSTERING,
    CLUSTERS,
    EXCLUDED,
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    LENGTHS,
    SPLITS,
    file_sha256,
    fingerprint,
)
from data.normalise import CHANGE_KINDS, DROP_REASONS, LETTERS_ON_DISK
from data.prepare_config import PrepareConfig
from data.rna_types import TYPES
from data.scan import SourceTally
from data.shards import ShardRecord

if TYPE_CHECKING:
    from data.assemble import SplitTotals


def describe_corpus(
    config: PrepareConfig,
    tallies: list[SourceTally],
    totals: list[SplitTotals],
    shards: list[ShardRecord],
    told: dict[str, Any],
    built: Path,
) -> dict[str, Any]:
    """manifest.json without its own hash; ``told`` is what `data.regroup` tells, empty without clusters."""
    described = [shard.described() for shard in shards]
    options = {key: value for key, value in config.identity().items() if key not in ("name", "seed")}
    letters = np.sum([shard.letters for shard in shards], axis=0)
    files = _hashed(built, INDEX, LENGTHS, CLUSTERS)
    side_tables = [name for split in SPLITS for name in (table_name(split), names_name(split))]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "seed": config.seed,
        "options": options,
        "sources": _sources(config, tallies, totals, told),
        "splits": {
            split: {
                "sequences": int(total.sequences.sum()),
                "nucleotides": int(total.nucleotides.sum()),
                "duplicates": int(total.duplicates.sum()),
                "types": {TYPES[t]: int(n) for t, n in enumerate(total.types) if n},
                **({"clusters": len(total.pointers()) - 1} if told.get("clusters") else {}),
            }
            for split, total in zip(SPLITS, totals, strict=True)
        },
        "split": told.get("split", {"by": config.split_by}),
        "clusters": told.get("clusters") or None,
        "exclude": told.get("exclude", []),
        "alphabet": LETTERS_ON_DISK,
        "letters": {letter: int(letters[ord(letter)]) for letter in LETTERS_ON_DISK if letters[ord(letter)]},
        "type_names": list(TYPES),
        "shards": described,
        "files": files,  # what training reads; checked when a corpus is opened
        "sidecars": _hashed(built, SOURCES, *side_tables, CLUSTERING, EXCLUDED),  # checked by `verify`
        "fingerprint": fingerprint(described),
    }


def _hashed(built: Path, *names: str) -> dict[str, dict[str, Any]]:
    """Size and hash of those files that there are."""
    return {
        name: {"bytes": (built / name).stat().st_size, "sha256": file_sha256(built / name)}
        for name in names
        if (built / name).exists()
    }


def _sources(
    config: PrepareConfig, tallies: list[SourceTally], totals: list[SplitTotals], told: dict[str, Any]
) -> list[dict[str, Any]]:
    excluded, duplicates_of_excluded = told.get("excluded_records") or [[0] * len(tallies)] * 2
    sources = []
    for i, source in enumerate(tallies):
        tally = source.tally
        dropped = {reason: tally.dropped[reason] for reason in DROP_REASONS}
        dropped["duplicate"] = int(sum(total.duplicates[i] for total in totals)) + duplicates_of_excluded[i]
        dropped["excluded"] = excluded[i]
        sources.append(
            {
                "name": source.name,
                "type": config.sources[i].type,
                "files": source.files,
                "records": tally.records,
                "dropped": dropped,
                "first_dropped": {reason: first for reason, (_, first) in sorted(tally.first_dropped.items())},
                "changed": {kind: tally.changed[kind] for kind in CHANGE_KINDS},
                "sequences": {split: int(total.sequences[i]) for split, total in zip(SPLITS, totals, strict=True)},
                "nucleotides": int(sum(total.nucleotides[i] for total in totals)),
            }
        )
    return sources
