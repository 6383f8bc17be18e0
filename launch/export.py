"""Publish a run: `python launch/export.py RUN --to DIR`, checked before it is put into place.

RUN is a run directory (its newest checkpoint is taken) or one checkpoint. DIR becomes a directory that
`from_pretrained` loads, with the model's other layouts in folders of it and a model card. A run whose tokens are pieces
of several nucleotides fits none of them: it is written in our own layout, with its tokenizer for transformers. So is a
model of channels other than 2A3 and DMS, whose rows of the output the other layouts would name wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

from launch.cli import main_guard  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory or a checkpoint")
    parser.add_argument("--to", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--layout", help="one of the model's layouts, such as multimolecule or original; all unless given"
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        choices=(28, 26),
        default=28,
        help="tokens of MultiMolecule's alphabet (28; 26 for its versions before 0.2)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (float32)")
    parser.add_argument("--shard-gigabytes", type=float, help="largest weight file; one file unless given")
    parser.add_argument("--licence", help="licence of the released weights, for the card, such as cc-by-4.0")
    parser.add_argument("--sequences", type=Path, help="FASTA to check outputs on; the run's corpus unless given")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    arguments = parser.parse_args()

    from pretrain.release import Options, release

    options = Options(
        layouts=(arguments.layout,) if arguments.layout else None,
        vocabulary=arguments.vocabulary,
        dtype=arguments.dtype,
        shard_bytes=int(arguments.shard_gigabytes * 1e9) if arguments.shard_gigabytes else None,
        licence=arguments.licence,
        sequences=arguments.sequences,
        overwrite=arguments.overwrite,
    )
    found, checked = release(arguments.run, arguments.to, options)
    print(f"exported {found.path} (step {found.progress.step:,}) to {arguments.to}")
    for result in checked:
        print(
            f"  {result.layout}: {result.path} gives the trained outputs on {result.sequences} sequences "
            f"(largest difference of a logit {result.largest_difference:.1e})"
        )
        print(result.filled.replace("`", "").replace("- ", "    ", 1), end="")
    if "rnafoundry" in [result.layout for result in checked]:
        loads = "transformers loads the tokenizer; " if (arguments.to / "tokenizer.json").exists() else ""
        print(f"  rnafoundry: {loads}no class of theirs loads the weights yet, init_from does")
    if arguments.licence is None:
        print("  no --licence was given: the card says so; state one before you publish")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main)())
