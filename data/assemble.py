"""Second phase of preparing: buckets of records -> a complete corpus directory, its manifest last.

Two passes over the buckets. The first reads only the fixed-size rows: it counts distinct sequences and finds the split
key below which a sequence is validation. The second writes the sequences, bucket by bucket, in the order of their keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import Bucket, split_keys
from data.errors import DataError
from data.manifest import FORMAT, FORMAT_VERSION, INDEX, LENGTHS, MANIFEST, SPLITS, file_sha256, fingerprint, sealed
from data.normalise import CHANGE_KINDS, DROP_REASONS, LETTERS_ON_DISK
from data.prepare_config import PrepareConfig
from data.publish import write_durably
from data.rna_types import TYPES
from data.scan import Progress, SourceTally
from data.shards import ShardRecord, ShardWriter, block_table


class SplitTotals:
    """Counts of one split: sequences and nucleotides by source, sequences by type."""

    def __init__(self, sources: int) -> None:
        self.sequences = np.zeros(sources, dtype=np.int64)
        self.nucleotides = np.zeros(sources, dtype=np.int64)
        self.types = np.zeros(len(TYPES), dtype=np.int64)

    def add(self, rows: npt.NDArray[np.void]) -> None:
        self.sequences += np.bincount(rows["source"], minlength=len(self.sequences))
        weights = rows["length"].astype(np.float64)  # exact below 2**53 nucleotides
        self.nucleotides += np.bincount(rows["source"], weights, minlength=len(self.sequences)).astype(np.int64)
        self.types += np.bincount(rows["type"], minlength=len(TYPES))


def assemble(
    config: PrepareConfig, tallies: list[SourceTally], spill: Path, buckets: int, built: Path, progress: Progress
) -> None:
    """Writes shards, index, lengths and manifest of the records in ``spill`` into the empty directory ``built``."""
    records = sum(tally.records - sum(tally.dropped.values()) for tally in tallies)
    train, validation, last_key = _plan_split(config, records, spill, buckets, progress)
    lengths = np.lib.format.open_memmap(
        built / LENGTHS, mode="w+", dtype=np.uint32, shape=(train + validation,), version=(1, 0)
    )
    filled = [0, train]  # where the next length of train and of validation goes
    totals = [SplitTotals(len(tallies)) for _ in SPLITS]
    writers = [ShardWriter(built, split, config.shard_megabytes * 10**6) for split in SPLITS]
    try:
        for number in range(buckets):
            bucket = Bucket(spill, number, config.seed)
            keys = split_keys(bucket.rows["lo"][bucket.order], config.seed)
            is_validation = (keys <= last_key) & bool(validation)
            for s, chosen in enumerate((bucket.order[~is_validation], bucket.order[is_validation])):
                if not chosen.size:
                    continue
                rows = bucket.rows[chosen]
                lengths[filled[s] : filled[s] + len(rows)] = rows["length"]
                filled[s] += len(rows)
                totals[s].add(rows)
                writers[s].add(bucket.letters(chosen), bucket.names(chosen), rows["type"])
            progress("writing shards", number + 1, buckets)
        shards = [shard for writer in writers for shard in writer.close()]
    finally:
        for writer in writers:
            writer.abandon()
    lengths.flush()
    with open(built / INDEX, "wb") as file:
        np.savez(file, **block_table(shards))
    write_durably(built / MANIFEST, sealed(_manifest(config, tallies, totals, shards, built)))


def _plan_split(
    config: PrepareConfig, records: int, spill: Path, buckets: int, progress: Progress
) -> tuple[int, int, np.uint64]:
    """(train sequences, validation sequences, the largest split key of a validation sequence)."""
    most = _validation_count(config, records)  # distinct sequences are at most as many as records
    smallest = np.empty(0, dtype=np.uint64)
    distinct = 0
    for number in range(buckets):
        bucket = Bucket(spill, number, config.seed)
        distinct += len(bucket.order)
        keys = np.concatenate([smallest, split_keys(bucket.rows["lo"][bucket.order], config.seed)])
        smallest = np.partition(keys, most)[:most] if len(keys) > most else keys
        progress("removing duplicates", number + 1, buckets)
    if not distinct:
        raise DataError(
            f"{config.name}: no sequence is left after filtering; check min_length, max_length, the letter policies "
            "and the sources."
        )
    wanted = _validation_count(config, distinct)
    if config.validation_fraction and not wanted:
        raise DataError(
            f"{config.name}: the validation split would be empty, {distinct} distinct sequences are too few for "
            f"validation_fraction={config.validation_fraction:g}; raise it, or set it to 0 for no validation split."
        )
    if wanted >= distinct:
        raise DataError(
            f"{config.name}: the train split would be empty, all {distinct} distinct sequences went to validation; "
            "lower validation_fraction."
        )
    if not wanted:
        return distinct, 0, np.uint64(0)
    last_key = np.partition(smallest, wanted - 1)[wanted - 1]
    validation = int(np.count_nonzero(smallest <= last_key))
    return distinct - validation, validation, last_key


def _validation_count(config: PrepareConfig, sequences: int) -> int:
    if not config.validation_fraction:
        return 0
    return max(round(config.validation_fraction * sequences), min(config.validation_minimum, sequences // 10))


def _manifest(
    config: PrepareConfig, tallies: list[SourceTally], totals: list[SplitTotals], shards: list[ShardRecord], built: Path
) -> dict[str, Any]:
    sources = []
    for i, tally in enumerate(tallies):
        kept = {split: int(total.sequences[i]) for split, total in zip(SPLITS, totals, strict=True)}
        dropped = {reason: tally.dropped[reason] for reason in DROP_REASONS}
        # What passed the filters and is not in a split was a duplicate of a sequence read earlier.
        dropped["duplicate"] = tally.records - sum(tally.dropped.values()) - sum(kept.values())
        sources.append(
            {
                "name": tally.name,
                "type": config.sources[i].type,
                "files": tally.files,
                "records": tally.records,
                "dropped": dropped,
                "changed": {kind: tally.changed[kind] for kind in CHANGE_KINDS},
                "sequences": kept,
                "nucleotides": int(sum(total.nucleotides[i] for total in totals)),
            }
        )
    described = [shard.described() for shard in shards]
    options = {key: value for key, value in config.identity().items() if key not in ("name", "seed")}
    letters = np.sum([shard.letters for shard in shards], axis=0)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "seed": config.seed,
        "options": options,
        "sources": sources,
        "splits": {
            split: {
                "sequences": int(total.sequences.sum()),
                "nucleotides": int(total.nucleotides.sum()),
                "types": {TYPES[t]: int(n) for t, n in enumerate(total.types) if n},
            }
            for split, total in zip(SPLITS, totals, strict=True)
        },
        "alphabet": LETTERS_ON_DISK,
        "letters": {letter: int(letters[ord(letter)]) for letter in LETTERS_ON_DISK if letters[ord(letter)]},
        "type_names": list(TYPES),
        "shards": described,
        "files": {
            name: {"bytes": (built / name).stat().st_size, "sha256": file_sha256(built / name)}
            for name in (INDEX, LENGTHS)
        },
        "fingerprint": fingerprint(described),
    }
