"""Small Stockholm files, corpora made of them, and a reader that shares no code with ours."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.alignment_config import AlignmentConfig, AlignmentSource
from data.alignment_corpus import prepare_alignments


@dataclass
class Family:
    """What a test writes, or the plain reader finds."""

    rows: list[tuple[str, str]]
    features: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)


def random_family(number: int, depth: int = 6, columns: int = 40, gaps: float = 0.1, clan: str = "") -> Family:
    """RF0000n with random letters, a helix in its structure, and every tenth column an insertion."""
    generator = np.random.default_rng(number)
    letters = generator.choice(list("ACGU"), (depth, columns))
    letters[generator.random((depth, columns)) < gaps] = "-"
    marks = {"RF": "".join("." if c % 10 == 9 else "x" for c in range(columns)), "SS_cons": "." * columns}
    marks["SS_cons"] = "<<<" + "." * (columns - 6) + ">>>"
    features = {"AC": f"RF{number:05d}", "ID": f"name_{number}", "TP": "Gene; tRNA;"}
    if clan:
        features["CL"] = clan
    return Family([(f"s{i}/1-9", "".join(row)) for i, row in enumerate(letters)], features, marks)


def stockholm(family: Family, width: int = 0) -> str:
    """The text of one alignment, in blocks of ``width`` columns (0: not interleaved)."""
    columns = len(family.rows[0][1])
    lines = ["# STOCKHOLM 1.0", *(f"#=GF {key} {value}" for key, value in family.features.items())]
    for start in range(0, columns, width or columns):
        part = slice(start, start + (width or columns))
        lines += ["", *(f"{name:20} {row[part]}" for name, row in family.rows)]
        lines += [f"#=GC {key:15} {value[part]}" for key, value in family.marks.items()]
    return "\n".join([*lines, "//", ""])


def write_stockholm(path: Path, families: list[Family], width: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(stockholm(family, width) for family in families))
    return path


def many_families(count: int, clan_of: int = 0, **options: Any) -> list[Family]:
    """Families of different depths; with ``clan_of`` n, every n neighbours are a clan."""
    return [
        random_family(i, depth=2 + i % 9, clan=f"CL{i // clan_of:05d}" if clan_of else "", **options)
        for i in range(1, count + 1)
    ]


def config(output: Path, *paths: Path, **options: Any) -> AlignmentConfig:
    sources = [AlignmentSource(f"source{i}", str(path)) for i, path in enumerate(paths)]
    return AlignmentConfig(name="test", output=str(output), sources=sources, **options)


def small_alignments(folder: Path, count: int = 40, **options: Any) -> Path:
    """A corpus of ``count`` families. Returns its directory."""
    prepare_alignments(config(folder / "corpus", write_stockholm(folder / "a.sto", many_families(count)), **options))
    return folder / "corpus"


def plain_stockholm(path: Path) -> list[Family]:
    """Line by line; rows of interleaved files are joined by their place in the block."""
    found, rows, marks, features, blocks = [], [], {}, {}, []
    with gzip.open(path, "rt", encoding="latin-1") if path.suffix == ".gz" else path.open(encoding="latin-1") as file:
        for line in file:
            line = line.rstrip("\n")
            if line.startswith("//"):
                blocks += [rows] if rows else []
                joined = [(names[0][0], "".join(part for _, part in names)) for names in zip(*blocks, strict=True)]
                found.append(Family(joined, features, marks))
                rows, marks, features, blocks = [], {}, {}, []
            elif line.startswith("#=GF"):
                features.setdefault(line[5:7], line[7:].strip())
            elif line.startswith("#=GC"):
                _, name, part = line.split()
                marks[name] = marks.get(name, "") + part
            elif line and not line.startswith("#"):
                name, part = line.split()
                rows.append((name, part))
            elif not line and rows:
                blocks.append(rows)
                rows = []
    return found


def plain_a3m(path: Path) -> Family:
    """Line by line; whatever is a capital or `-` stays."""
    rows: list[tuple[str, str]] = []
    for line in path.read_text().splitlines():
        if line.startswith(">"):
            rows.append((line[1:].split()[0], ""))
        else:
            rows[-1] = rows[-1][0], rows[-1][1] + "".join(c for c in line if c.isupper() or c == "-")
    return Family(rows, marks={"RF": "x" * len(rows[0][1])})


def plain_id(family: Family, path: Path, number: int) -> str:
    """The accession, else the name, else that of the file."""
    name = family.features.get("AC") or family.features.get("ID")
    return name or path.name.removesuffix(".gz").rpartition(".")[0] + f"-{number}" * (number > 1)


def plain_clean(family: Family, query: bool) -> list[str]:
    """RF columns (without an RF line those with at most half gaps), upper case, U and X; letter by letter."""
    rows = ["".join("-" if c in ".-_~" else c.upper().replace("T", "U") for c in row) for _, row in family.rows]
    rows = ["".join(c if c in "ACGU-" else "X" for c in row) for row in rows]
    depth, reference = len(rows), family.marks.get("RF")
    kept = [
        c
        for c in range(len(rows[0]))
        if (reference[c] not in ".-_~" if reference else 2 * sum(row[c] == "-" for row in rows) <= depth)
    ]
    if query:
        first = next(row for row in rows if any(row[c] != "-" for c in kept))
        kept = [c for c in kept if first[c] != "-"]
    cut = ["".join(row[c] for c in kept) for row in rows]
    return [row for row in cut if set(row) != {"-"}]
