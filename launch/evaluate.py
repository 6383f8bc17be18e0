"""Evaluate trained models on a corpus, or let them predict profiles to train on.

python launch/evaluate.py RUN [RUN ...] --corpus DIR                      validation figures of each
python launch/evaluate.py RUN [RUN ...] --corpus DIR --write-predictions DIR [--classes noisy] [--weights 2 1]

RUN is a run directory (its newest checkpoint is taken), one checkpoint, a release, or weights of others with --config.
Predictions are of a model of reactivity: the mean of all RUNs, as a corpus with the samples of --corpus. One process.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in launch/pretrain.py

from launch.cli import main_guard  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--corpus", type=Path, required=True, help="what to evaluate on or to predict for")
    parser.add_argument("--config", help="the recipe of weights that come without one: a path, or a name in configs/")
    parser.add_argument("--sequences", type=int, help="of the validation split; all unless given")
    predicting = parser.add_argument_group("predictions")
    predicting.add_argument("--write-predictions", type=Path, metavar="DIR", help="the corpus of profiles to make")
    predicting.add_argument("--weights", nargs="+", type=float, help="of the RUNs in the mean; equal unless given")
    predicting.add_argument("--classes", help="only samples of these classes, such as noisy or dirty+noisy")
    predicting.add_argument("--max-length", type=int, default=0, help="only sequences of at most so many nucleotides")
    predicting.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    arguments = parser.parse_args()

    from launch.evaluation import predict, show

    if arguments.write_predictions is not None:
        return predict(arguments)
    return show(arguments)


if __name__ == "__main__":
    sys.exit(main_guard(main)())
