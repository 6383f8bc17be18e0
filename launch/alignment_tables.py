"""How `launch/prepare.py` shows a corpus of alignments: what came in, what left and why, depths and lengths."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from data.alignments import AlignmentCorpus
from data.manifest import SPLITS, read_manifest

DEPTH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
COLUMN_EDGES = (1, 25, 50, 75, 100, 150, 200, 300, 500, 1024, 2048)

Figures = dict[str, npt.NDArray[np.uint32]]  # by split


def print_alignment_build(path: Path, published: dict[str, Any]) -> None:
    """The tables of a finished build; ``published`` are figures of the same collection as its authors report them."""
    manifest, console = read_manifest(path), _console()
    depths, columns = figures(path, manifest)
    _print_tables(console, manifest, depths, columns)
    found = {
        "families": sum(source["alignments_read"] for source in manifest["sources"]),
        "families_used": sum(manifest["splits"][split]["alignments"] for split in SPLITS),
        "median_depth": float(np.median(np.concatenate(list(depths.values())))),
    }
    for what, number in published.items():
        if what in found:
            label = what.replace("_", " ")
            console.print(f"published: {label} {number:,}; here {found[what]:,.10g}", highlight=False)
    console.print(f"written to {path}, fingerprint {manifest['fingerprint'][:16]}", highlight=False, soft_wrap=True)


def print_alignment_description(path: Path) -> None:
    """The tables of an existing corpus. Raises DataError if it is not intact on sight."""
    manifest, console = read_manifest(path), _console()
    depths, columns = figures(path, manifest)
    _print_tables(console, manifest, depths, columns)
    types: dict[str, list[int]] = {}
    for s, split in enumerate(SPLITS):
        for name, count in manifest["splits"][split]["types"].items():
            types.setdefault(name, [0] * len(SPLITS))[s] = count
    table = _table("RNA types", "RNA type", SPLITS)
    for name, counts in sorted(types.items(), key=lambda pair: (-pair[1][0], pair[0])):
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    console.print(
        f"{manifest['name']}: {len(manifest['shards'])} shards, {size / 1e6:,.1f} MB, seed {manifest['seed']}, "
        f"fingerprint {manifest['fingerprint']}",
        highlight=False,
        soft_wrap=True,
    )


def figures(path: Path, manifest: dict[str, Any]) -> tuple[Figures, Figures]:
    """(rows, columns) of every alignment, by split; splits that are empty are left out."""
    depths, columns = {}, {}
    for split in SPLITS:
        if manifest["splits"][split]["alignments"]:
            corpus = AlignmentCorpus.open(path, split)
            depths[split], columns[split] = corpus.depths, corpus.lengths
            corpus.close()
    return depths, columns


def histogram(found: Figures, edges: tuple[int, ...]) -> list[tuple[str, list[int]]]:
    """(range, alignments in it per split), ranges without any left out."""
    counts = [np.histogram(values, bins=[*edges, np.inf])[0].tolist() for values in found.values()]
    rows = []
    for i, low in enumerate(edges):
        high = edges[i + 1] - 1 if i + 1 < len(edges) else None
        if any(of_split[i] for of_split in counts):
            name = f"{low}" if high == low else f"{low} - {high or 'more'}"
            rows.append((name, [of_split[i] for of_split in counts]))
    return rows


def _print_tables(console: Console, manifest: dict[str, Any], depths: Figures, columns: Figures) -> None:
    console.print(_source_table(manifest))
    for title, unit, found, edges in (
        ("Depths", "rows", depths, DEPTH_EDGES),
        ("Lengths", "columns", columns, COLUMN_EDGES),
    ):
        table = _table(title, unit, tuple(found))
        for name, counts in histogram(found, edges):
            table.add_row(name, *(f"{count:,}" for count in counts))
        table.add_section()
        table.add_row("median", *(f"{np.median(values):,.10g}" for values in found.values()))
        console.print(table)
    for split in SPLITS:
        counts = manifest["splits"][split]
        console.print(
            f"{split}: {counts['alignments']:,} alignments, {counts['rows']:,} rows, {counts['letters']:,} letters",
            highlight=False,
        )
    for source in manifest["sources"]:
        for reason, where in source["first_dropped"].items():
            label = reason.replace("_", " ")
            console.print(f"{source['name']}: the first alignment dropped as {label}: {where}", highlight=False)


def _source_table(manifest: dict[str, Any]) -> Table:
    """One column per source, one row per count; rows that are zero everywhere are left out."""
    sources = manifest["sources"]
    table = _table(f"Sources of {manifest['name']}", "", [source["name"] for source in sources])
    rows = [("alignments read", [source["alignments_read"] for source in sources])]
    rows.append(("rows read", [source["rows_read"] for source in sources]))
    for group, label in (("dropped", "dropped: "), ("changed", "")):
        rows += [(label + kind.replace("_", " "), [s[group][kind] for s in sources]) for kind in sources[0][group]]
    rows += [(f"kept: {split}", [source["alignments"][split] for source in sources]) for split in SPLITS]
    for label, counts in rows:
        if any(counts) or label.startswith("kept"):
            table.add_row(label, *(f"{count:,}" for count in counts))
    return table


def _table(title: str, first: str, others: tuple[str, ...] | list[str]) -> Table:
    table = Table(first, title=title)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _console() -> Console:
    # A log file has no width of its own, and 80 columns would break the tables.
    return Console(width=None if sys.stdout.isatty() else 140)
