"""Small files of profiles in the exact forms of the released ones, written without any code of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.reactivity import Profile, ReactivityCorpus
from data.reactivity_build import prepare_reactivity
from data.reactivity_config import ReactivityConfig, ReactivitySource

HEAD = ["sequence", "experiment_type", "dataset_name", "reads", "signal_to_noise", "SN_filter"]


@dataclass(frozen=True)
class Row:
    """One row of a table; ``values`` and ``errors`` hold None where a cell is blank."""

    sequence: str
    experiment: str
    snr: float | None
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    dataset: str = "LIB_2A3"
    reads: int = 500

    @property
    def id(self) -> str:
        return hashlib.md5(self.sequence.encode()).hexdigest()[:12]


def rows_of(count: int, seed: int = 0, shortest: int = 50, longest: int = 70, blank: int = 5) -> list[Row]:
    """``count`` sequences, a row of each reagent; a third is clean, dirty and noisy each. The ends are blank."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        n = int(generator.integers(shortest, longest + 1))
        sequence = "".join(generator.choice(list("ACGU"), n))
        for experiment, low in (("2A3_MaP", number % 3 > 1), ("DMS_MaP", number % 3 > 0)):
            values, errors = np.round(generator.normal(0.3, 0.5, n), 3), np.round(generator.uniform(0.01, 0.4, n), 3)
            cells = [
                tuple(None if i < blank or i >= n - blank else float(x) for i, x in enumerate(numbers))
                for numbers in (values, errors)
            ]
            snr = round(float(generator.uniform(-0.5, 1.0) if low else generator.uniform(1.01, 20)), 3)
            found.append(Row(sequence, experiment, snr, cells[0], cells[1], f"LIB{number % 2}_{experiment[:3]}"))
    return found


def write_table(
    path: Path, rows: Sequence[Row], width: int = 80, id_name: str = "sequence_id", end: str = "\n"
) -> Path:
    """train_data.csv: three decimals, blank cells, `reactivity_error_NNNN` after all `reactivity_NNNN`."""
    columns = [f"{kind}_{i:04d}" for kind in ("reactivity", "reactivity_error") for i in range(1, width + 1)]
    lines = [",".join([id_name, *HEAD, *columns])]
    for row in rows:
        cells = [row.id, row.sequence, row.experiment, row.dataset, str(row.reads)]
        cells += ["" if row.snr is None else f"{row.snr:.3f}", "1"]
        for numbers in (row.values, row.errors):
            cells += ["" if x is None else f"{x:.3f}" for x in numbers] + [""] * (width - len(numbers))
        lines.append(",".join(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(end.join(lines) + end, newline="")
    return path


def config(output: Path, *paths: Path, **options: Any) -> ReactivityConfig:
    sources = options.pop("sources", None) or [ReactivitySource(f"s{i}", str(path)) for i, path in enumerate(paths)]
    return ReactivityConfig(name="test", output=str(output), sources=sources, **options)


def build(output: Path, *paths: Path, buckets: int | None = None, **options: Any) -> dict[str, Any]:
    return prepare_reactivity(config(output, *paths, **options), buckets=buckets)


def other(row: Row, **changes: Any) -> Row:
    return replace(row, **changes)


def as_array(cells: Sequence[float | None]) -> np.ndarray:
    """float32 of what half precision keeps, NaN for blank cells."""
    return np.array([np.nan if x is None else x for x in cells], dtype=np.float32).astype(np.float16).astype(np.float32)


def samples(corpus: Path) -> dict[str, Profile]:
    """Every sample of both splits, by its letters."""
    found = {}
    for split in ("train", "validation"):
        try:
            opened = ReactivityCorpus.open(corpus, split)
        except DataError:
            continue
        for profile in opened.profiles(np.arange(opened.count)):
            found[profile.letters.tobytes().decode()] = profile
    return found


def dropped(manifest: dict[str, Any], source: int = 0) -> dict[str, int]:
    return {reason: n for reason, n in manifest["sources"][source]["dropped"].items() if n}


def changed(manifest: dict[str, Any]) -> dict[str, int]:
    return {kind: n for kind, n in manifest["sources"][0]["changed"].items() if n}
