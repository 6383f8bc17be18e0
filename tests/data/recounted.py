"""The released files of profiles read a second time, with csv and string operations and nothing of this project."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Candidates = dict[
    tuple[str, str], list[tuple[float, np.ndarray]]
]  # (sequence, channel) -> (signal-to-noise, values [L])


@dataclass
class Recount:
    """Every profile of some files, and how many there are of what."""

    counts: Counter[str] = field(default_factory=Counter)
    profiles: Candidates = field(default_factory=lambda: defaultdict(list))

    @property
    def sequences(self) -> set[str]:
        return {sequence for sequence, _ in self.profiles}

    @property
    def duplicates(self) -> int:
        return sum(len(found) - 1 for found in self.profiles.values())

    def best(self, sequence: str, channel: str) -> tuple[float, list[np.ndarray]]:
        """The highest signal-to-noise (-inf where none tells it), and the values of every profile that has it."""
        told = [(-np.inf if np.isnan(ratio) else ratio, values) for ratio, values in self.profiles[sequence, channel]]
        top = max(ratio for ratio, _ in told)
        return top, [values for ratio, values in told if ratio == top]


def tables(paths: Iterable[Path]) -> Recount:
    """Kaggle's form, gzipped."""
    found = Recount()
    for path in paths:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                channel = row["experiment_type"].removesuffix("_MaP")
                names = [f"reactivity_{i:04d}" for i in range(1, len(row["sequence"]) + 1)]
                values = np.array([float(row[name] or "nan") for name in names])
                found.profiles[row["sequence"], channel].append((float(row["signal_to_noise"]), values))
                found.counts["rows"] += 1
                found.counts[f"values {channel}"] += int((~np.isnan(values)).sum())
                found.counts[f"rows with values {channel}"] += bool((~np.isnan(values)).any())
    return found


def rdats(paths: Iterable[Path], channel_of: dict[str, str]) -> Recount:
    """RDAT 0.33 and 0.34 with a sequence in every row."""
    found = Recount()
    for path in paths:
        positions, offset, head, rows = [0], 0, list[str](), defaultdict[str, dict[str, str]](dict)
        for line in path.read_text().splitlines():
            key, _, rest = line.partition("\t")
            name, _, index = key.strip().partition(":")
            if name == "SEQPOS":
                positions = [int(re.sub("[A-Za-z]", "", token)) for token in rest.split()]
            elif key.split(" ")[0] == "OFFSET":
                offset = int(line.split()[1])
            elif name == "ANNOTATION":
                head += rest.split("\t")
            elif index:
                rows[index.strip()][name] = rest
        for row in rows.values():
            _count_row(found, row, head, np.array(positions) - offset - 1, channel_of)
    return found


def _count_row(
    found: Recount, row: dict[str, str], head: list[str], at: np.ndarray, channel_of: dict[str, str]
) -> None:
    counts = found.counts
    told = dict(token.strip().partition(":")[::2] for token in [*head, *row["ANNOTATION_DATA"].split("\t")])
    values, errors = (np.array(row[kind].split(), dtype=float) for kind in ("REACTIVITY", "REACTIVITY_ERROR"))
    assert len(values) == len(errors) == len(at)
    counts.update({"rows": 1, "values": len(values), told["modifier"]: 1, "negative errors": int((errors < 0).sum())})
    if "sequence" not in told:
        counts["rows without sequence"] += 1
        return
    counts["dots"] += told["sequence"].endswith(".")
    sequence = re.sub("[^ACGU]", "N", told["sequence"].rstrip(".").upper().replace("T", "U"))
    inside = (at >= 0) & (at < len(sequence))
    counts["rows past the end"] += not inside.all()
    counts["values past the end"] += int((~inside).sum())
    counts["negative errors inside"] += int((errors[inside] < 0).sum())
    placed = np.full(len(sequence), np.nan)
    placed[at[inside]] = values[inside]
    ratio = told.get("signal_to_noise", "N/A")
    ratio = "nan" if ratio.startswith("N/A") else ratio.rpartition(":")[2]
    found.profiles[sequence, channel_of[told["modifier"]]].append((float(ratio), placed))
