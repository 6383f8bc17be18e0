"""The arguments that every `launch/prepare.py KIND` takes: a config, or files and where the corpus goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError
from launch.cli import find_config


def parsed_config(
    kind: str, about: str | None, example: str, load: Callable[..., Any], arguments: Sequence[str]
) -> Any:
    """What ``load`` makes of `prepare.py KIND ...`; ``about`` and an ``example`` of keys are for its help.

    ``load(file, overrides, **given)`` is the loader of that kind's config. Raises DataError.
    """
    parser = argparse.ArgumentParser(
        prog=f"prepare.py {kind}",
        description=about,
        epilog=f"Any key of the config can be set as key=value, e.g. {example} overwrite=true. "
        "docs/data.md says what is read of each kind of file, docs/keys.md lists every key.",
    )
    parser.add_argument("--config", metavar="NAME.yaml", help="a path, or a name in configs/")
    parser.add_argument(
        "--from", nargs="+", dest="paths", metavar="PATH", help="files, folders or globs, instead of a config"
    )
    parser.add_argument("--to", metavar="DIR", help="output directory, with --from")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_intermixed_args(arguments)
    # After --from a b, argparse takes key=value for one more path.
    paths = [path for path in parsed.paths or () if "=" not in path or Path(path).exists()]
    overrides = [*parsed.overrides, *(path for path in parsed.paths or () if path not in paths)]
    if bool(parsed.config) == bool(paths):
        raise DataError(f"give either --config NAME.yaml or --from PATH ... --to DIR; see prepare.py {kind} --help.")
    if parsed.config:
        given = {"output": parsed.to} if parsed.to else {}
        return load(find_config(parsed.config), overrides, **given)
    if not parsed.to:
        raise DataError("--from needs --to DIR, the directory to make.")
    sources = [{"name": f"source{number}", "path": path} for number, path in enumerate(paths, 1)]
    return load(None, overrides, name=Path(parsed.to).name, output=parsed.to, sources=sources)
