"""How `launch/prepare.py` shows a corpus of profiles: what came in, what left and why, classes, channels, libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data.manifest import SPLITS, read_manifest
from data.reactivity import ReactivityCorpus
from data.reactivity_filter import CLASSES
from launch import tables

RATIO_EDGES = (-np.inf, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, np.inf)
LENGTH_EDGES = (1, 50, 100, 150, 200, 250, 300, 400, 500, 1024)


def print_reactivity_build(path: Path, published: dict[str, Any]) -> None:
    """The tables of a finished build; ``published`` are figures of the same collection as its authors report them."""
    manifest, console = read_manifest(path), tables.console()
    _print_counts(console, manifest)
    for what, number in published.items():
        found = figure(manifest, what)
        if found is not None:
            console.print(f"published: {what} {number:,}; here {found:,}", highlight=False)
    tables.say_written(console, manifest, path)


def figure(manifest: dict[str, Any], what: str) -> int | None:
    """A count by name: records, sequences, a class, or `train_`/`validation_` and one of the latter two."""
    if what == "records":
        return sum(source["records"] for source in manifest["sources"])
    split, _, rest = what.partition("_")
    splits, name = ((split,), rest) if split in SPLITS else (SPLITS, what)
    counts = [{"sequences": manifest["splits"][s]["sequences"], **manifest["splits"][s]["classes"]} for s in splits]
    return int(sum(count[name] for count in counts)) if name in counts[0] else None


def print_reactivity_description(path: Path) -> None:
    """The tables of an existing corpus. Raises DataError if it is not intact on sight."""
    manifest, console = read_manifest(path), tables.console()
    _print_counts(console, manifest)
    lengths, ratios = histograms(path, manifest)
    for title, unit, rows in (("Lengths", "nucleotides", lengths), ("Signal-to-noise", "channel", ratios)):
        shown = [(label, list(counts.values())) for label, counts in rows if any(counts.values())]
        console.print(tables.counts(title, unit, rows[0][1], shown))
    samples = [(name, [manifest["splits"][s]["types"].get(name, 0) for s in SPLITS]) for name in manifest["type_names"]]
    console.print(tables.counts("Libraries", "library", SPLITS, [row for row in samples if any(row[1])]))
    if manifest["provenance"]:
        told = manifest["provenance"]
        console.print(
            f"pseudo-labels: mean of {', '.join(told['models'])} on {told['source']['name']} "
            f"({told['source']['fingerprint'][:16]})",
            highlight=False,
        )
    tables.say_size(console, manifest)


def histograms(
    path: Path, manifest: dict[str, Any]
) -> tuple[list[tuple[str, dict[str, int]]], list[tuple[str, dict[str, int]]]]:
    """(lengths by split, signal-to-noise by channel over both splits): (range, counts) of each range."""
    lengths = [(_range(LENGTH_EDGES, i), dict[str, int]()) for i in range(len(LENGTH_EDGES))]
    ratios = [
        (_range(RATIO_EDGES[:-1], i), dict.fromkeys(manifest["channels"], 0)) for i in range(len(RATIO_EDGES) - 1)
    ]
    for split in SPLITS:
        if not manifest["splits"][split]["sequences"]:
            continue
        corpus = ReactivityCorpus.open(path, split)
        for i, count in enumerate(np.histogram(corpus.lengths, bins=np.array([*LENGTH_EDGES, np.inf]))[0].tolist()):
            lengths[i][1][split] = count
        for c, channel in enumerate(corpus.channels):
            column = corpus.signal_to_noise[:, c]
            place = np.searchsorted(RATIO_EDGES[1:-1], column[~np.isnan(column)], side="left")
            for i, count in enumerate(np.bincount(place, minlength=len(ratios)).tolist()):
                ratios[i][1][channel] += count
        corpus.close()
    return lengths, ratios


def _range(edges: tuple[float, ...], i: int) -> str:
    if all(isinstance(edge, int) for edge in edges):
        return f"{edges[i]} - {edges[i + 1] - 1 if i + 1 < len(edges) else 'more'}"
    low, high = edges[i], edges[i + 1] if i + 1 < len(edges) else np.inf
    return f"up to {high:g}" if low == -np.inf else f"above {low:g}" + (f" to {high:g}" if high < np.inf else "")


def _print_counts(console: Console, manifest: dict[str, Any]) -> None:
    console.print(tables.sources(manifest, {"profiles read": "records"}, "changed: ", {"sequences": "sequences"}))
    rows = [("sequences", "sequences", ""), ("nucleotides", "nucleotides", "")]
    if manifest["clusters"]:
        rows.append(("clusters", "clusters", ""))
    rows += [(name, "classes", name) for name in CLASSES]
    for what in ("profiles", "values"):
        rows += [(f"{what} of {channel}", what, channel) for channel in manifest["channels"]]
    splits = [manifest["splits"][split] for split in SPLITS]
    shown = [
        (label, [one.get(what, 0)[name] if name else one.get(what, 0) for one in splits]) for label, what, name in rows
    ]
    console.print(tables.counts("Splits", "", SPLITS, shown))
    tables.say_first_dropped(console, manifest, "profile")
    errors = manifest["errors"]
    if errors["samples"] and not errors["trusted"]:
        console.print(
            f"warning: the error columns of different channels are identical in {errors['pairs_identical']:,} of "
            f"{errors['pairs_compared']:,} samples; they are kept, but recipes that use errors will refuse this corpus",
            highlight=False,
            soft_wrap=True,
        )
