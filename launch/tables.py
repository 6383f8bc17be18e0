"""Tables that `launch/prepare.py` shows of every kind of corpus."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from data.manifest import SPLITS

Rows = Iterable[tuple[str, Sequence[int]]]  # label, a count for each column


def console() -> Console:
    """Of standard output. A log file has no width of its own, and 80 columns would break the tables."""
    return Console(width=None if sys.stdout.isatty() else 140)


def counts(title: str, first: str, columns: Iterable[str], rows: Rows) -> Table:
    """A table of counts; ``first`` heads the labels."""
    table = Table(first, title=title)
    for name in columns:
        table.add_column(name, justify="right")
    for label, numbers in rows:
        table.add_row(label, *(f"{count:,}" for count in numbers))
    return table


def sources(manifest: dict[str, Any], read: dict[str, str], changed: str, kept: dict[str, str]) -> Table:
    """What came in, what left and why: a column per source, and one for all where there are several.

    ``read`` and ``kept``: label -> key of a source, of which kept ones are by split or whole; ``changed`` goes before
    the kinds of changes. What was dropped or changed nowhere is left out.
    """
    every = manifest["sources"]
    rows = [(label, [source[key] for source in every]) for label, key in read.items()]
    for group, before in (("dropped", "dropped: "), ("changed", changed)):
        found = [(before + kind.replace("_", " "), [s[group][kind] for s in every]) for kind in every[0][group]]
        rows += [(label, numbers) for label, numbers in found if any(numbers)]
    for label, key in kept.items():
        if isinstance(every[0][key], dict):
            rows += [(f"{label}: {split}", [source[key][split] for source in every]) for split in SPLITS]
        else:
            rows.append((label, [source[key] for source in every]))
    names = [source["name"] for source in every]
    if len(every) > 1:
        names, rows = [*names, "all"], [(label, [*numbers, sum(numbers)]) for label, numbers in rows]
    return counts(f"Sources of {manifest['name']}", "", names, rows)


def types(manifest: dict[str, Any]) -> Table:
    """RNA types by split, the most frequent first."""
    found: dict[str, list[int]] = {}
    for s, split in enumerate(SPLITS):
        for name, n in manifest["splits"][split]["types"].items():
            found.setdefault(name, [0] * len(SPLITS))[s] = n
    return counts("RNA types", "RNA type", SPLITS, sorted(found.items(), key=lambda pair: (-pair[1][0], pair[0])))


def in_ranges(edges: Sequence[int], found: Sequence[Sequence[int]]) -> list[tuple[str, list[int]]]:
    """(range, count in it per column) of histograms over ``edges`` and beyond; ranges without any are left out."""
    rows = []
    for i, low in enumerate(edges):
        high = edges[i + 1] - 1 if i + 1 < len(edges) else None
        if any(column[i] for column in found):
            name = f"{low}" if high == low else f"{low} - {high or 'more'}"
            rows.append((name, [int(column[i]) for column in found]))
    return rows


def say_first_dropped(out: Console, manifest: dict[str, Any], what: str) -> None:
    for source in manifest["sources"]:
        for reason, where in source.get("first_dropped", {}).items():
            label = reason.replace("_", " ")
            out.print(f"{source['name']}: the first {what} dropped as {label}: {where}", highlight=False)


def say_written(out: Console, manifest: dict[str, Any], path: object) -> None:
    out.print(f"written to {path}, fingerprint {manifest['fingerprint'][:16]}", highlight=False, soft_wrap=True)


def say_size(out: Console, manifest: dict[str, Any]) -> None:
    size = sum(shard["bytes"] for shard in manifest["shards"])
    out.print(
        f"{manifest['name']}: {len(manifest['shards'])} shards, {size / 1e6:,.1f} MB, seed {manifest['seed']}, "
        f"fingerprint {manifest['fingerprint']}",
        highlight=False,
        soft_wrap=True,
    )
