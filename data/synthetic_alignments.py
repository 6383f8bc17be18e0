"""Alignments of the synthetic families, with their consensus structure, as a Stockholm file like Rfam's."""

from __future__ import annotations

import os
from pathlib import Path

from data.synthetic import SyntheticCorpus


def write_stockholm(corpus: SyntheticCorpus, path: str | os.PathLike[str], rows: int) -> Path:
    """Writes one alignment of ``rows`` rows per family; the file appears whole or not at all.

    Row 0 is the consensus, the others are members 0 .. rows - 2 (`SyntheticCorpus.alignment`); insertions are left out,
    so the RF line marks every column. Raises DataError for rows < 1.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(partial, "w") as file:
            for family in corpus.families:
                letters, structure = corpus.alignment(family.number, rows)
                accession = corpus.accession(family.number, 0)
                name = accession.rpartition("-")[0]
                names = [f"{name}-consensus", *(f"{name}-{index}" for index in range(rows - 1))]
                width = len(names[-1]) + len("#=GC SS_cons") + 2
                file.write(f"# STOCKHOLM 1.0\n#=GF AC   {name}\n#=GF ID   synthetic_{family.number}\n")
                file.write(f"#=GF TP   Gene; {family.rna_type};\n#=GF SQ   {rows}\n\n")
                for row, row_name in zip(letters, names, strict=True):
                    file.write(f"{row_name:{width}}{row.tobytes().decode()}\n")
                file.write(f"{'#=GC SS_cons':{width}}{structure}\n")
                file.write(f"{'#=GC RF':{width}}{family.consensus.tobytes().decode()}\n//\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
