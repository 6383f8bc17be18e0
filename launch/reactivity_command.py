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
from launch.cli import find_config
from launch.corpus_tables import build_progress
from launch.reactivity_tables import print_reactivity_build


def reactivity_command(arguments: Sequence[str]) -> None:
    """Makes a corpus of reactivity profiles: one sample per sequence, one profile per channel."""
    parser = argparse.ArgumentParser(
        prog="prepare.py reactivity",
        description=reactivity_command.__doc__,
        epilog="Any key of the config can be set as key=value, e.g. split.folds=0 channels=[2A3,DMS] overwrite=true.",
    )
    parser.add_argument("--config", metavar="NAME.yaml", help="a path, or a name in configs/")
    parser.add_argument(
        "--from", nargs="+", dest="paths", metavar="PATH", help="files, folders or globs, instead of a config"
    )
    parser.add_argument("--to", metavar="DIR", help="output directory, with --from")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    build_reactivity(_config(parser.parse_intermixed_args(arguments)))


def build_reactivity(config: ReactivityConfig) -> None:
    """Builds the corpus, with progress, and prints its tables."""
    with build_progress() as progress:
        prepare_reactivity(config, progress)
    print_reactivity_build(config.output_path, config.published)


def _config(parsed: argparse.Namespace) -> ReactivityConfig:
    # After --from a b, argparse takes key=value for one more path.
    paths = [path for path in parsed.paths or () if "=" not in path or Path(path).exists()]
    overrides = [*parsed.overrides, *(path for path in parsed.paths or () if path not in paths)]
    if bool(parsed.config) == bool(paths):
        raise DataError(
            "give either --config NAME.yaml or --from PATH ... --to DIR; see launch/prepare.py reactivity --help."
        )
    if parsed.config:
        given = {"output": parsed.to} if parsed.to else {}
        return load_reactivity_config(find_config(parsed.config), overrides, **given)
    if not parsed.to:
        raise DataError("--from needs --to DIR, the directory to make.")
    sources = [{"name": f"source{number}", "path": path} for number, path in enumerate(paths, 1)]
    return load_reactivity_config(None, overrides, name=Path(parsed.to).name, output=parsed.to, sources=sources)


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
