"""Corpora of the embedded synthetic families as alignments, for tests that train on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data.alignment_corpus import prepare_alignments
from data.synthetic import SyntheticCorpus
from data.synthetic_alignments import write_stockholm
from data.synthetic_family import PRESETS
from tests.data.alignments import config


def synthetic_families(count: int, seed: int = 7) -> SyntheticCorpus:
    """``count`` families of 40 to 70 columns."""
    return SyntheticCorpus(seed, dataclasses.replace(PRESETS["demo"], families=count))


def synthetic_alignments(folder: Path, families: int = 48, rows: int = 12, seed: int = 7, **options: Any) -> Path:
    """A corpus of one alignment per family, all with structures. Returns its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    source = write_stockholm(synthetic_families(families, seed), folder / "synthetic.sto", rows)
    prepare_alignments(config(folder / "corpus", source, **{"validation_fraction": 0.25, **options}))
    return folder / "corpus"
