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
from launch.cli import find_config
from launch.corpus_tables import build_progress


def alignments_command(arguments: Sequence[str]) -> None:
    """Makes a corpus of alignments: one per family, cleaned to A C G U X -, row 0 the query."""
    parser = argparse.ArgumentParser(
        prog="prepare.py alignments",
        description=alignments_command.__doc__,
        epilog="Any key of the config can be set as key=value, e.g. query=none exclude=families.txt overwrite=true.",
    )
    parser.add_argument("--config", metavar="NAME.yaml", help="a path, or a name in configs/")
    parser.add_argument(
        "--from", nargs="+", dest="paths", metavar="PATH", help="files, folders or globs, instead of a config"
    )
    parser.add_argument("--to", metavar="DIR", help="output directory, with --from")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    build_alignments(_config(parser.parse_intermixed_args(arguments)))


def build_alignments(config: AlignmentConfig) -> None:
    """Builds the corpus, with progress, and prints its tables."""
    with build_progress() as progress:
        prepare_alignments(config, progress)
    print_alignment_build(config.output_path, config.published)


def _config(parsed: argparse.Namespace) -> AlignmentConfig:
    # After --from a b, argparse takes key=value for one more path.
    paths = [path for path in parsed.paths or () if "=" not in path or Path(path).exists()]
    overrides = [*parsed.overrides, *(path for path in parsed.paths or () if path not in paths)]
    if bool(parsed.config) == bool(paths):
        raise DataError(
            "give either --config NAME.yaml or --from PATH ... --to DIR; see launch/prepare.py alignments --help."
        )
    if parsed.config:
        given = {"output": parsed.to} if parsed.to else {}
        return load_alignment_config(find_config(parsed.config), overrides, **given)
    if not parsed.to:
        raise DataError("--from needs --to DIR, the directory to make.")
    sources = [{"name": f"source{number}", "path": path} for number, path in enumerate(paths, 1)]
    return load_alignment_config(None, overrides, name=Path(parsed.to).name, output=parsed.to, sources=sources)


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
