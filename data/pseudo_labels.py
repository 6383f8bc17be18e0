"""Predictions of trained models -> a corpus of profiles to train on, sample for sample that of a source corpus.

    train on real profiles -> predict for every sequence -> mean over models -> profiles without gaps

The source is a corpus of sequences or of profiles, or the samples of it that a filter takes. Samples keep their shard,
block, order, split, name, type and clusters; without a filter the keys in the shards are the source's, one by one. The
manifest tells which models predicted, on what. This module knows no models: it is given functions.

Signal-to-noise is set to 10, so that neither a class nor a loss mask leaves a pseudo-label out (spec RibonanzaNet 3.4).
Errors are unknown. Every position has a value, the constant ends of a library too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.corpus import silent
from data.errors import DataError
from data.index import Corpus, read_block_table
from data.manifest import CLUSTERS, INDEX, LENGTHS, MANIFEST, SPLITS, read_manifest, sealed
from data.publish import is_finished, mark_finished, partial_directory, publish, sync_file, write_durably
from data.reactivity import ReactivityCorpus
from data.reactivity_assemble import Totals, count_samples
from data.reactivity_config import KIND
from data.reactivity_filter import SampleFilter
from data.reactivity_manifest import LIBRARIES, RATIOS, describe_shards
from data.reactivity_resolve import ErrorCheck, table_dtype
from data.reactivity_scan import LARGEST
from data.reactivity_shards import ProfileShardWriter
from data.scan import Progress
from data.shards import block_table

I64 = npt.NDArray[np.int64]
Letters = list[npt.NDArray[np.uint8]]
Predict = Callable[[Letters], Sequence[npt.NDArray[np.floating]]]  # ASCII letters [L] each -> values [L, channels] each

SIGNAL_TO_NOISE = 10.0
_WHOLE = 1 << 62  # bytes: shards end where the source's do


def write_pseudo_labels(
    source: str | Path,
    output: str | Path,
    channels: Sequence[str],
    models: Mapping[str, Predict],
    provenance: Mapping[str, Any],
    weights: Sequence[float] | None = None,
    chosen: SampleFilter | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the corpus ``output`` and returns its manifest.

    ``models``: name (as a checkpoint is known by) -> predictions for the sequences of one block, channels in the order
    of ``channels``; their mean is taken with ``weights`` (equal unless given) in double precision. ``provenance``
    (plain JSON: checkpoints with hashes, recipe, augmentation) is kept in the manifest beside the source's fingerprint.
    ``chosen``: the samples of a corpus of profiles to predict for; None for all.

    Deterministic where the models are. A run that was killed starts again. Raises DataError for predictions of the
    wrong shape or that are not finite, naming model and sample; then, nothing is left behind.
    """
    share = _shares(models, weights)
    source, output = Path(source), Path(output)
    splits = _splits(source, chosen)
    told = {
        **dict(provenance),
        "models": list(models),
        "weights": share.tolist(),
        "source": {"name": splits[0].corpus.manifest["name"], "fingerprint": splits[0].corpus.fingerprint},
        "filter": chosen.key if chosen else None,
    }
    job = json.dumps({"kind": "pseudo-labels", "channels": list(channels), **told}, sort_keys=True)
    with partial_directory(output, job, overwrite) as partial:
        built = partial / "built"
        if not is_finished(built):
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            _write(output.name, splits, built, list(channels), models, share, told, progress)
            mark_finished(built)
        manifest = read_manifest(built)
        publish(built, output)
    for split in splits:
        split.corpus.close()
    return manifest


class _Split:
    """The samples of one split of the source, block by block."""

    def __init__(self, corpus: Corpus, ids: I64) -> None:
        self.corpus, self.ids = corpus, ids
        self.starts: npt.NDArray[np.bool_] | None = None  # which samples start a cluster
        if corpus.clusters is not None:
            cluster = np.searchsorted(corpus.clusters, ids, side="right")
            self.starts = np.ones(len(ids), dtype=bool)
            self.starts[1:] = cluster[1:] != cluster[:-1]

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """(number of the shard, which of ``ids`` lie in the block), for every block that has some."""
        shards = self.corpus.manifest["shards"]
        own = np.array([shard["split"] == self.corpus.split for shard in shards])
        shard_of = read_block_table(self.corpus.path)["shard"]
        shard_of = shard_of[own[shard_of]]
        bounds = np.searchsorted(self.ids, np.concatenate([[0], np.cumsum(self.corpus.block_counts)])).tolist()
        for shard, start, stop in zip(shard_of.tolist(), bounds[:-1], bounds[1:], strict=True):
            if stop > start:
                yield shard, slice(start, stop)


def _splits(source: Path, chosen: SampleFilter | None) -> list[_Split]:
    manifest = read_manifest(source)
    measured = manifest.get("kind", "sequences") == KIND
    if chosen is not None and not measured:
        raise DataError(f"{source}: only a corpus of profiles can be filtered; predict for all of its sequences.")
    found = []
    for split in SPLITS:
        if not manifest["splits"][split]["sequences"]:
            continue
        if measured:
            profiles = ReactivityCorpus.open(source, split)
            ids = profiles.select(chosen) if chosen else np.arange(profiles.count)
            corpus: Corpus = profiles
        else:
            corpus = Corpus.open(source, split)
            ids = np.arange(corpus.count)
        if len(ids):
            found.append(_Split(corpus, ids))
    if not found:
        raise DataError(f"{source}: the filter takes no sample, so there is nothing to predict for; choose others.")
    return found


def _write(
    name: str,
    splits: list[_Split],
    built: Path,
    channels: list[str],
    models: Mapping[str, Predict],
    share: npt.NDArray[np.float64],
    told: dict[str, Any],
    progress: Progress,
) -> None:
    samples, done = sum(len(split.ids) for split in splits), 0
    source = splits[0].corpus
    totals = {split: Totals(len(channels), 1) for split in SPLITS}
    writers = {split: ProfileShardWriter(built, split, _WHOLE, channels) for split in SPLITS}
    lengths, ratios, libraries = (
        np.lib.format.open_memmap(built / file, mode="w+", dtype=dtype, shape=(samples, *more), version=(1, 0))
        for file, dtype, more in ((LENGTHS, "<u4", ()), (RATIOS, "<f4", (len(channels),)), (LIBRARIES, "u1", ()))
    )
    ratios[:] = SIGNAL_TO_NOISE
    try:
        for split in splits:
            corpus, writer, total = split.corpus, writers[split.corpus.split], totals[split.corpus.split]
            shard_before = -1
            for shard, places in split.blocks():
                if shard != shard_before:
                    writer.end_shard()
                    shard_before = shard
                ids = split.ids[places]
                letters, names, types = corpus.letters(ids), corpus.accessions(ids), corpus.types(ids)
                values = _mean(models, share, letters, names, len(channels))
                here = slice(done, done + len(ids))
                lengths[here], libraries[here] = [len(sequence) for sequence in letters], types
                row = np.zeros(len(ids), dtype=table_dtype(len(channels)))
                row["nucleotides"], row["snr"] = lengths[here], SIGNAL_TO_NOISE
                starts = None if split.starts is None else split.starts[places]
                if starts is not None:
                    total.cluster_starts.append((total.sequences + np.flatnonzero(starts)).astype(np.uint32))
                count_samples(total, row, types, values, 1.0)
                writer.write_block(
                    [sequence.tobytes() for sequence in letters],
                    [name.encode() for name in names],
                    types,
                    values,
                    [np.full_like(value, np.nan) for value in values],
                    np.array(ratios[here]),
                    starts,
                )
                done += len(ids)
                progress("predicting", done, samples)
        shards = [shard for split in SPLITS for shard in writers[split].close()]
    finally:
        for writer in writers.values():
            writer.abandon()
    for array in (lengths, ratios, libraries):
        array.flush()
    with open(built / INDEX, "wb") as file:
        np.savez(file, allow_pickle=False, **block_table(shards))
    if source.clusters is not None:
        with open(built / CLUSTERS, "wb") as file:
            np.savez(file, allow_pickle=False, **{split: total.pointers() for split, total in totals.items()})
    for path in built.iterdir():
        if path.suffix != ".tar":
            sync_file(path)
    content = {
        "name": name,
        "seed": None,
        "options": {},
        "sources": [
            {
                "name": source.manifest["name"],
                "options": {},
                "files": [],
                "records": samples,
                "dropped": {},
                "first_dropped": {},
                "changed": {},
                "sequences": {split: total.sequences for split, total in totals.items()},
            }
        ],
        "split": source.manifest.get("split"),
        "clusters": source.manifest.get("clusters"),
        "errors": ErrorCheck().as_json(),
        "provenance": told,
        **describe_shards(channels, source.type_names, list(totals.values()), shards, 1.0, built),
    }
    write_durably(built / MANIFEST, sealed(content))


def _shares(models: Mapping[str, Predict], weights: Sequence[float] | None) -> npt.NDArray[np.float64]:
    if not models:
        raise DataError("pseudo-labels need at least one model; give a checkpoint.")
    given = np.array([1.0] * len(models) if weights is None else weights, dtype=np.float64)
    if len(given) != len(models) or not (given > 0).all():
        raise DataError(f"weights are {given.tolist()}, expected {len(models)} numbers above 0, one per model.")
    share: npt.NDArray[np.float64] = given / given.sum()
    return share


def _mean(
    models: Mapping[str, Predict], share: npt.NDArray[np.float64], letters: Letters, names: list[str], channels: int
) -> list[npt.NDArray[np.float16]]:
    """[L, channels] of each sequence: the weighted mean of all models."""
    sums = [np.zeros((len(sequence), channels)) for sequence in letters]
    for (model, predict), weight in zip(models.items(), share.tolist(), strict=True):
        predicted = list(predict(letters))
        if len(predicted) != len(letters):
            raise DataError(f"{model}: predicted {len(predicted)} profiles for {len(letters)} sequences.")
        for name, total, values in zip(names, sums, predicted, strict=True):
            if np.shape(values) != total.shape:
                raise DataError(f"{model}: its prediction for {name} is {np.shape(values)}, expected {total.shape}.")
            if not (np.abs(values) <= LARGEST).all():
                raise DataError(
                    f"{model}: its prediction for {name} is not finite or beyond {LARGEST:g}; check the checkpoint."
                )
            total += weight * np.asarray(values, dtype=np.float64)
    return [total.astype("<f2") for total in sums]
