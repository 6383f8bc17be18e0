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


def _console() -> Console:
    # A log file has no width of its own, and 80 columns would break the tables.
    return Console(width=None if sys.stdout.isatty() else 140)


def print_build(manifest: dict[str, Any], output: Path, published: dict[str, Any]) -> None:
    """The tables of a finished build; ``published`` are counts of the same collection as its authors report them."""
    console = _console()
    console.print(_source_table(manifest))
    console.print(_type_table(manifest))
    _print_splits(console, manifest)
    found = {"sequences": 0, "nucleotides": 0, "clusters": 0}
    for split in SPLITS:
        for what in found:
            found[what] += manifest["splits"][split].get(what, 0)
    for what, number in published.items():
        if found.get(what):
            console.print(f"published: {number:,} {what}; here {found[what] / number:.0%} of it", highlight=False)
    console.print(f"written to {output}, fingerprint {manifest['fingerprint'][:16]}", highlight=False)


def print_description(path: Path) -> None:
    """The tables of an existing corpus, with its length histogram. Raises DataError if it is not intact on sight."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    console = _console()
    console.print(_source_table(manifest))
    console.print(_length_table(path, manifest))
    console.print(_type_table(manifest))
    if (clusters := _cluster_table(path, manifest)) is not None:
        console.print(clusters)
    _print_splits(console, manifest)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    console.print(
        f"{manifest['name']}: {len(manifest['shards'])} shards, {size / 1e6:,.1f} MB, seed {manifest['seed']}, "
        f"fingerprint {manifest['fingerprint']}",
        highlight=False,
        soft_wrap=True,
    )


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
    for source in manifest["sources"]:
        for reason, where in source.get("first_dropped", {}).items():
            label = reason.replace("_", " ")
            console.print(f"{source['name']}: the first record dropped for {label}: {where}", highlight=False)


def _source_table(manifest: dict[str, Any]) -> Table:
    """One column per source, one row per count; rows that are zero everywhere are left out."""
    sources = manifest["sources"]
    table = Table(title=f"Sources of {manifest['name']}")
    table.add_column("")
    for source in sources:
        table.add_column(source["name"], justify="right")
    if len(sources) > 1:
        table.add_column("all", justify="right")
    rows: list[tuple[str, list[int], bool]] = [("records read", [s["records"] for s in sources], True)]
    for group, label in (("dropped", "dropped: "), ("changed", "letters changed: ")):
        rows += [
            (label + kind.replace("_", " "), [s[group][kind] for s in sources], False) for kind in sources[0][group]
        ]
    rows += [(f"kept: {split}", [s["sequences"][split] for s in sources], True) for split in SPLITS]
    rows.append(("nucleotides kept", [s["nucleotides"] for s in sources], True))
    for label, counts, always in rows:
        if always or any(counts):
            shown = counts if len(sources) == 1 else [*counts, sum(counts)]
            table.add_row(label, *(f"{count:,}" for count in shown))
    return table


def cluster_sizes(path: Path, manifest: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(range of sizes, clusters of that size per split that is not empty); empty without clusters."""
    counts = []
    for split in SPLITS:
        pointers = read_clusters(path, manifest, split)
        if pointers is not None and len(pointers) > 1:
            counts.append(np.histogram(np.diff(pointers.astype(np.int64)), bins=[*_SIZE_EDGES, np.inf])[0].tolist())
    rows = []
    for i, low in enumerate(_SIZE_EDGES if counts else ()):
        high = _SIZE_EDGES[i + 1] - 1 if i + 1 < len(_SIZE_EDGES) else None
        if any(found[i] for found in counts):
            name = f"{low}" if high == low else f"{low} - {high or 'more'}"
            rows.append((name, [found[i] for found in counts]))
    return rows


def _cluster_table(path: Path, manifest: dict[str, Any]) -> Table | None:
    rows = cluster_sizes(path, manifest)
    if not rows:
        return None
    table = Table("sequences", title="Clusters by size")
    for split in SPLITS[: len(rows[0][1])]:
        table.add_column(split, justify="right")
    for name, counts in rows:
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _type_table(manifest: dict[str, Any]) -> Table:
    counts: dict[str, list[int]] = {}
    for s, split in enumerate(SPLITS):
        for name, n in manifest["splits"][split]["types"].items():
            counts.setdefault(name, [0, 0])[s] = n
    table = Table("RNA type", title="RNA types")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, (train, validation) in sorted(counts.items(), key=lambda pair: (-pair[1][0], pair[0])):
        table.add_row(name, f"{train:,}", f"{validation:,}")
    return table


def _length_table(path: Path, manifest: dict[str, Any]) -> Table:
    table = Table("nucleotides", title="Lengths")
    histograms = []
    for split in SPLITS:
        if not manifest["splits"][split]["sequences"]:
            continue
        corpus = Corpus.open(path, split)
        table.add_column(split, justify="right")
        edges = [*_LENGTH_EDGES, np.iinfo(np.int64).max]
        histograms.append(np.histogram(corpus.lengths, bins=np.array(edges, dtype=np.float64))[0])
        corpus.close()
    for i, low in enumerate(_LENGTH_EDGES):
        high = f"{_LENGTH_EDGES[i + 1] - 1}" if i + 1 < len(_LENGTH_EDGES) else "more"
        if any(counts[i] for counts in histograms):
            table.add_row(f"{low} - {high}", *(f"{counts[i]:,}" for counts in histograms))
    return table
