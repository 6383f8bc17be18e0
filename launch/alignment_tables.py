"""How `launch/prepare.py` shows a corpus of alignments: what came in, what left and why, depths and lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from data.alignments import AlignmentCorpus
from data.manifest import SPLITS, read_manifest
from launch import tables

DEPTH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
COLUMN_EDGES = (1, 25, 50, 75, 100, 150, 200, 300, 500, 1024, 2048)

Figures = dict[str, npt.NDArray[np.uint32]]  # by split


def print_alignment_build(path: Path, published: dict[str, Any]) -> None:
    """The tables of a finished build; ``published`` are figures of the same collection as its authors report them."""
    manifest, console = read_manifest(path), tables.console()
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
    tables.say_written(console, manifest, path)


def print_alignment_description(path: Path) -> None:
    """The tables of an existing corpus. Raises DataError if it is not intact on sight."""
    manifest, console = read_manifest(path), tables.console()
    depths, columns = figures(path, manifest)
    _print_tables(console, manifest, depths, columns)
    console.print(tables.types(manifest))
    tables.say_size(console, manifest)


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
    return tables.in_ranges(edges, counts)


def _print_tables(console: Console, manifest: dict[str, Any], depths: Figures, columns: Figures) -> None:
    read = {"alignments read": "alignments_read", "rows read": "rows_read"}
    console.print(tables.sources(manifest, read, "", {"kept": "alignments"}))
    for title, unit, found, edges in (
        ("Depths", "rows", depths, DEPTH_EDGES),
        ("Lengths", "columns", columns, COLUMN_EDGES),
    ):
        table = tables.counts(title, unit, found, histogram(found, edges))
        table.add_section()
        table.add_row("median", *(f"{np.median(values):,.10g}" for values in found.values()))
        console.print(table)
    for split in SPLITS:
        counts = manifest["splits"][split]
        console.print(
            f"{split}: {counts['alignments']:,} alignments, {counts['rows']:,} rows, {counts['letters']:,} letters",
            highlight=False,
        )
    tables.say_first_dropped(console, manifest, "alignment")
