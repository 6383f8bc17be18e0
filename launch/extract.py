"""What a trained RNA-MSM gives of alignments: `python launch/extract.py RUN ALIGNMENT ... --to DIR`.

RUN is a run directory, a checkpoint, a release or the authors' checkpoint; ALIGNMENT a Stockholm, a3m, a2m or gapped
FASTA file, plain or gzip, or a folder of them. DIR becomes a folder with one NAME.npz per alignment: `representation`
[L, d] of row 0 and `maps` [L, L, layers x heads] of row attention; with --contacts also `contacts` [L, L], and with a
structure in the file `partners` [L]. families.json lists them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads OpenMP; see launch/pretrain.py

from data.alignment_columns import COLUMNS, QUERIES, ColumnRules  # noqa: E402
from data.formats.alignment import FORMATS  # noqa: E402
from launch.cli import main_guard  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN", help="a run, a checkpoint, a release, or the authors' checkpoint")
    parser.add_argument("alignments", metavar="ALIGNMENT", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--contacts",
        nargs="?",
        const="",
        metavar="CORPUS",
        help="also give contacts, by a probe fitted on structures that CORPUS trains on; the run's unless given",
    )
    parser.add_argument("--rows", type=int, default=1024, help="most rows of an alignment that are read (1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of rows, where there are more (0)")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="by content and name (auto)")
    parser.add_argument(
        "--columns",
        choices=COLUMNS,
        default="rf",
        help="which columns count: of the RF line, by share of gaps, all (rf)",
    )
    parser.add_argument(
        "--query",
        choices=QUERIES,
        default="first",
        help="row 0, whose gap columns are left out; none keeps them (first)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if this command made it")
    arguments = parser.parse_args()

    from pretrain.extract import Options, extract

    options = Options(
        rules=ColumnRules(columns=arguments.columns, query=arguments.query),
        format=arguments.format,
        rows=arguments.rows,
        seed=arguments.seed,
        contacts=arguments.contacts,
        overwrite=arguments.overwrite,
    )
    for record in extract(arguments.model, arguments.alignments, arguments.to, options):
        if "skipped" in record:
            print(f"  left out: {record['skipped']}")
            continue
        used = f"{record['rows_used']:,} of {record['rows']:,} rows, {record['columns']:,} columns"
        known = f"; contacts right at L/5: {record['precision_l5']:.2f}" if "precision_l5" in record else ""
        print(f"  {record['name']}: {used}{known}")
    print(f"written to {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main)())
