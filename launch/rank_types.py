"""Name the RNA types of sequences: `python launch/rank_types.py MODEL --sequences FASTA [--top 3]`.

MODEL is a run of RNAErnie with type tokens, a checkpoint of it, or the part of a release that has them (full/). Prints
a table with tabs: accession, type, probability among the types; --top lines per sequence, the most probable first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

from launch.cli import main_guard  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a checkpoint, a release, or a hub id")
    parser.add_argument("--sequences", type=Path, required=True, metavar="FASTA", help="plain or gzip")
    parser.add_argument("--top", type=int, default=3, help="types per sequence; 3")
    arguments = parser.parse_args()

    import numpy as np

    from data.errors import DataError
    from data.formats.fasta import read_fasta
    from data.normalise import KEPT, LetterPolicy, Normaliser
    from data.rna_types import classify
    from pretrain.type_guided import rank_types

    names, sequences, normalise = [], [], Normaliser(LetterPolicy())
    for records in read_fasta(arguments.sequences):
        found = normalise(records.bodies, str(arguments.sequences))
        kept = zip(records.headers, found.sequences, found.verdict.tolist(), strict=True)
        for header, letters, verdict in kept:
            if verdict == KEPT and letters:
                names.append(classify(header)[0].decode(errors="replace"))
                sequences.append(np.frombuffer(letters, dtype=np.uint8))
    if not sequences:
        raise DataError(f"{arguments.sequences} holds no sequence that a model can read; give other --sequences.")
    ranked = rank_types(arguments.model, sequences)
    print("accession\ttype\tprobability")
    for number, name in enumerate(names):
        for rna_type, probability in ranked.best(number, max(arguments.top, 1)):
            print(f"{name}\t{rna_type}\t{probability:.4f}")


if __name__ == "__main__":
    sys.exit(main_guard(main)())
