"""How `launch/prepare.py` shows a build: a progress bar, and tables of what came in, what left and why."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from data.index import Corpus, check_files, read_clusters
from data.manifest import SPLITS, read_manifest
from data.scan import Progress as ProgressCallback
from launch import tables

_LENGTH_EDGES = (1, 50, 100, 200, 400, 600, 1024, 2048, 4096, 8192)
_SIZE_EDGES = (1, 2, 3, 5, 10, 30, 100, 1000, 10_000)
_LINE_SECONDS = 10.0  # between two progress lines of one phase where there is no terminal


@contextlib.contextmanager
def build_progress() -> Iterator[ProgressCallback]:
    """A callable (phase, done, total): a bar on a terminal, a plain line now and then elsewhere. Writes to stderr."""
    if not sys.stderr.isatty():
        yield _PlainLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        yield show


class _PlainLines:
    def __init__(self) -> None:
        self.phase, self.printed = "", 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self.phase or now - self.printed >= _LINE_SECONDS:
            print(f"{phase}: {100 * done / max(1, total):.0f} %", file=sys.stderr, flush=True)
            self.phase, self.printed = phase, now


def print_build(manifest: dict[str, Any], output: Path, published: dict[str, Any]) -> None:
    """The tables of a finished build; ``published`` are counts of the same collection as its authors report them."""
    console = tables.console()
    console.print(_source_table(manifest))
    console.print(tables.types(manifest))
    _print_splits(console, manifest)
    found = {"sequences": 0, "nucleotides": 0, "clusters": 0}
    for split in SPLITS:
        for what in found:
            found[what] += manifest["splits"][split].get(what, 0)
    for what, number in published.items():
        if found.get(what):
            console.print(f"published: {number:,} {what}; here {found[what] / number:.0%} of it", highlight=False)
    tables.say_written(console, manifest, output)


def print_description(path: Path) -> None:
    """The tables of an existing corpus, with its length histogram. Raises DataError if it is not intact on sight."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    console = tables.console()
    console.print(_source_table(manifest))
    console.print(_length_table(path, manifest))
    console.print(tables.types(manifest))
    sizes = cluster_sizes(path, manifest)
    if sizes:
        console.print(tables.counts("Clusters by size", "sequences", SPLITS[: len(sizes[0][1])], sizes))
    _print_splits(console, manifest)
    tables.say_size(console, manifest)


def _print_splits(console: Console, manifest: dict[str, Any]) -> None:
    for split in SPLITS:
        counts = manifest["splits"][split]
        clusters = f" in {counts['clusters']:,} clusters" if "clusters" in counts else ""
        console.print(
            f"{split}: {counts['sequences']:,} sequences{clusters}, {counts['nucleotides']:,} nucleotides, "
            f"{counts.get('duplicates', 0):,} more records with the same sequences",
            highlight=False,
        )
    for entry in manifest.get("exclude", ()):
        what = "left out" if entry["action"] == "drop" else "found and kept"
        console.print(
            f"{entry['fasta']['name']}: {entry['sequences']:,} sequences that resemble "
            f"{entry['benchmark_sequences_resembled']:,} of its {entry['benchmark_sequences']:,} were {what} "
            "(excluded.tsv lists them)",
            highlight=False,
        )
    tables.say_first_dropped(console, manifest, "record")


def _source_table(manifest: dict[str, Any]) -> Table:
    kept = {"kept": "sequences", "nucleotides kept": "nucleotides"}
    return tables.sources(manifest, {"records read": "records"}, "letters changed: ", kept)


def cluster_sizes(path: Path, manifest: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(range of sizes, clusters of that size per split that is not empty); empty without clusters."""
    found = []
    for split in SPLITS:
        pointers = read_clusters(path, manifest, split)
        if pointers is not None and len(pointers) > 1:
            found.append(np.histogram(np.diff(pointers.astype(np.int64)), bins=[*_SIZE_EDGES, np.inf])[0].tolist())
    return tables.in_ranges(_SIZE_EDGES, found)


def _length_table(path: Path, manifest: dict[str, Any]) -> Table:
    found = {}
    for split in SPLITS:
        if manifest["splits"][split]["sequences"]:
            corpus = Corpus.open(path, split)
            found[split] = np.histogram(corpus.lengths, bins=np.array([*_LENGTH_EDGES, np.inf]))[0].tolist()
            corpus.close()
    return tables.counts("Lengths", "nucleotides", found, tables.in_ranges(_LENGTH_EDGES, list(found.values())))
