"""`launch/prepare.py download`: the raw files of a config, fetched into raw/SOURCE/FILE and checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.download import PARALLEL, Downloaded, download
from data.download_config import load_downloads
from launch.cli import find_config
from launch.corpus_tables import build_progress


def download_command(arguments: Sequence[str]) -> None:
    """Downloads the sources of a config. A run that was broken off continues; a second run fetches nothing again."""
    parser = argparse.ArgumentParser(prog="prepare.py download", description=download_command.__doc__)
    parser.add_argument("--config", required=True, metavar="NAME.yaml", help="a path, or a name in configs/")
    parser.add_argument("--only", nargs="+", default=[], metavar="SOURCE", help="these sources, not all")
    parser.add_argument("--to", type=Path, default=Path("raw"), metavar="DIR", help="files go to DIR/SOURCE/ (raw)")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help=f"files at a time ({PARALLEL})")
    parsed = parser.parse_args(arguments)
    sources = load_downloads(find_config(parsed.config), parsed.only)
    with build_progress() as progress:
        found = download(sources, parsed.to, progress, parsed.parallel)
    for source in sources:
        print(_line(source.name, [one for one in found if one.source == source.name]))


def _line(name: str, files: list[Downloaded]) -> str:
    size = sum(one.bytes for one in files) / 1e6
    fetched = sum(one.fetched for one in files)
    how = sorted({one.checked or "nothing" for one in files if one.url})
    checked = f"; checked by {', '.join(how)}" if how else ""
    kind = f"{fetched:,} fetched now" if how else "local"
    return f"{name}: {len(files):,} file{'s' * (len(files) != 1)}, {size:,.1f} MB, {kind}{checked}"
