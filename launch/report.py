"""Show a run: `python launch/report.py RUN` writes curves.png, throughput.png and report.html and prints a summary."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

from launch.cli import main_guard  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--to", type=Path, help="where to write; the run directory unless given")
    arguments = parser.parse_args()

    from pretrain.report import summary, write_report

    written = write_report(arguments.run, arguments.to)
    print(summary(arguments.run))
    print("written:", ", ".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main)())
