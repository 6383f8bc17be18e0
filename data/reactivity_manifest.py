"""manifest.json of a corpus of profiles: `kind` tells it from a corpus of sequences, which has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.manifest import (
    CLUSTERING,
    CLUSTERS,
    FORMAT,
    FORMAT_VERSION,
    INDEX,
    LENGTHS,
    SPLITS,
    file_sha256,
    fingerprint,
)
from data.normalise import CHANGE_KINDS, LETTERS_ON_DISK
from data.reactivity_config import KIND, ReactivityConfig, source_options
from data.reactivity_filter import CLASSES
from data.reactivity_resolve import ErrorCheck
from data.reactivity_scan import CHANGES, DROP_REASONS
from data.scan import SourceTally
from data.shards import ShardRecord

if TYPE_CHECKING:
    from data.reactivity_assemble import Totals

RATIOS = "signal_to_noise.npy"  # float32 [sequences, channels], NaN = no profile; ordered as lengths.npy
LIBRARIES = "libraries.npy"  # uint8 [sequences], numbers into type_names; ordered as lengths.npy


def describe_reactivity(
    config: ReactivityConfig,
    tallies: list[SourceTally],
    totals: list[Totals],
    shards: list[ShardRecord],
    clusters: dict[str, Any],
    libraries: list[str],
    errors: ErrorCheck,
    built: Path,
) -> dict[str, Any]:
    """manifest.json without its own hash."""
    options = {k: v for k, v in config.identity().items() if k not in ("name", "seed", "channels")}
    return {
        "name": config.name,
        "seed": config.seed,
        "options": options,
        "sources": [_source(config, i, tally, totals) for i, tally in enumerate(tallies)],
        "split": {"by": config.split.by, "folds": config.split.folds, "fold": config.split.fold},
        "clusters": clusters or None,
        "errors": errors.as_json(),
        "provenance": None,
        **describe_shards(config.channels, libraries, totals, shards, config.threshold, built),
    }


def describe_shards(
    channels: list[str],
    libraries: list[str],
    totals: list[Totals],
    shards: list[ShardRecord],
    threshold: float,
    built: Path,
) -> dict[str, Any]:
    """The part of a manifest that is the same wherever the profiles come from."""
    described = [shard.described() for shard in shards]
    letters = np.sum([shard.letters for shard in shards], axis=0)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "channels": list(channels),
        "threshold": threshold,
        "splits": {
            split: _split(channels, libraries, total, (built / CLUSTERS).exists())
            for split, total in zip(SPLITS, totals, strict=True)
        },
        "alphabet": LETTERS_ON_DISK,
        "letters": {letter: int(letters[ord(letter)]) for letter in LETTERS_ON_DISK if letters[ord(letter)]},
        "type_names": libraries,
        "shards": described,
        "files": _hashed(built, INDEX, LENGTHS, RATIOS, LIBRARIES, CLUSTERS),
        "sidecars": _hashed(built, CLUSTERING),
        "fingerprint": fingerprint(described),
    }


def _split(channels: list[str], libraries: list[str], total: Totals, clustered: bool) -> dict[str, Any]:
    def by(names: Any, counts: Any) -> dict[str, int]:
        return {name: int(count) for name, count in zip(names, counts, strict=True)}

    return {
        "sequences": total.sequences,
        "nucleotides": total.nucleotides,
        "types": {name: n for name, n in by(libraries, total.libraries[: len(libraries)]).items() if n},
        "classes": by(CLASSES, total.classes),
        "profiles": by(channels, total.profiles),
        "values": by(channels, total.values),
        **({"clusters": len(total.pointers()) - 1} if clustered else {}),
    }


def _source(config: ReactivityConfig, number: int, source: SourceTally, totals: list[Totals]) -> dict[str, Any]:
    tally = source.tally
    return {
        "name": source.name,
        "options": source_options(config.sources[number]),
        "files": source.files,
        "records": tally.records,
        "dropped": {reason: tally.dropped[reason] for reason in DROP_REASONS},
        "first_dropped": {reason: first for reason, (_, first) in sorted(tally.first_dropped.items())},
        "changed": {kind: tally.changed[kind] for kind in (*CHANGE_KINDS, *CHANGES)},
        "sequences": {s: int(total.by_source[number]) for s, total in zip(SPLITS, totals, strict=True)},
    }


def _hashed(built: Path, *names: str) -> dict[str, dict[str, Any]]:
    """Size and hash of those files that there are."""
    return {
        name: {"bytes": (built / name).stat().st_size, "sha256": file_sha256(built / name)}
        for name in names
        if (built / name).exists()
    }
