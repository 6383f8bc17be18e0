"""`launch/prepare.py reactivity`: tables, RDAT and OpenVaccine files -> a corpus of chemical mapping profiles."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.reactivity_build import prepare_reactivity
from data.reactivity_config import ReactivityConfig, load_reactivity_config
from data.synthetic import SyntheticCorpus
from data.synthetic_reactivity import write_train_csv
from launch.build_command import parsed_config
from launch.corpus_tables import build_progress
from launch.reactivity_tables import print_reactivity_build


def reactivity_command(arguments: Sequence[str]) -> None:
    """Makes a corpus of reactivity profiles: one sample per sequence, one profile per channel."""
    example, about = "split.folds=0 channels=[2A3,DMS]", reactivity_command.__doc__
    build_reactivity(parsed_config("reactivity", about, example, load_reactivity_config, arguments))


def build_reactivity(config: ReactivityConfig) -> None:
    """Builds the corpus, with progress, and prints its tables."""
    with build_progress() as progress:
        prepare_reactivity(config, progress)
    print_reactivity_build(config.output_path, config.published)


def synthetic_reactivity(parsed: argparse.Namespace) -> None:
    """`prepare.py synthetic --reactivity`: profiles of the embedded families, in a corpus or a CSV file."""
    if parsed.fasta or bool(parsed.to) == bool(parsed.csv):
        raise DataError("--reactivity goes with either --to DIR for a corpus or --csv FILE for a table.")
    corpus = SyntheticCorpus(parsed.seed, parsed.preset)
    if parsed.csv:
        print(f"written to {write_train_csv(corpus, parsed.csv, parsed.sequences)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = write_train_csv(corpus, Path(directory) / "train_data.csv", parsed.sequences)
        given = {"name": Path(parsed.to).name, "output": parsed.to}
        sources = [{"name": "synthetic", "path": str(path)}]
        build_reactivity(load_reactivity_config(None, parsed.overrides, **given, sources=sources))
