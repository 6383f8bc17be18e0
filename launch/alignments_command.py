"""`launch/prepare.py alignments`: Stockholm, a3m, a2m or gapped FASTA -> a corpus of alignments for RNA-MSM."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.alignment_config import AlignmentConfig, load_alignment_config
from data.alignment_corpus import prepare_alignments
from data.errors import DataError
from data.synthetic import SyntheticCorpus
from data.synthetic_alignments import write_stockholm
from data.synthetic_family import PRESETS
from launch.alignment_tables import print_alignment_build
from launch.build_command import parsed_config
from launch.corpus_tables import build_progress


def alignments_command(arguments: Sequence[str]) -> None:
    """Makes a corpus of alignments: one per family, cleaned to A C G U X -, row 0 the query."""
    example, about = "query=none exclude=families.txt", alignments_command.__doc__
    build_alignments(parsed_config("alignments", about, example, load_alignment_config, arguments))


def build_alignments(config: AlignmentConfig) -> None:
    """Builds the corpus, with progress, and prints its tables."""
    with build_progress() as progress:
        prepare_alignments(config, progress)
    print_alignment_build(config.output_path, config.published)


def synthetic_alignments(parsed: argparse.Namespace) -> None:
    """`prepare.py synthetic --alignments`: the embedded families as alignments, in a corpus or a Stockholm file."""
    if parsed.fasta or bool(parsed.to) == bool(parsed.stockholm):
        raise DataError("--alignments goes with either --to DIR for a corpus or --stockholm FILE for a Stockholm file.")
    preset = dataclasses.replace(PRESETS[parsed.preset], families=parsed.alignments)
    corpus = SyntheticCorpus(parsed.seed, preset)
    if parsed.stockholm:
        print(f"written to {write_stockholm(corpus, parsed.stockholm, parsed.rows)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = write_stockholm(corpus, Path(directory) / "synthetic.sto", parsed.rows)
        given = {"name": Path(parsed.to).name, "output": parsed.to}
        sources = [{"name": "synthetic", "path": str(path)}]
        build_alignments(load_alignment_config(None, parsed.overrides, **given, sources=sources))
