"""Small FASTA files, corpora made of them, and an independent idea of what preparing must do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.corpus import prepare
from data.prepare_config import PrepareConfig, SourceConfig

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def random_sequences(count: int, seed: int = 0, shortest: int = 5, longest: int = 120) -> list[str]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, longest + 1, count)
    return ["".join(generator.choice(list("ACGU"), n)) for n in lengths]


def write_fasta(path: Path, sequences: list[str], line: int = 60, names: str = "s") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        for i, sequence in enumerate(sequences):
            file.write(f">{names}{i} rRNA from {i % 7} species\n")
            file.writelines(sequence[p : p + line] + "\n" for p in range(0, len(sequence), line))
    return path


def config(output: Path, *paths: Path, **options: Any) -> PrepareConfig:
    sources = [SourceConfig(f"source{i}", str(path)) for i, path in enumerate(paths)]
    return PrepareConfig(name="test", output=str(output), sources=sources, **options)


def small_corpus(folder: Path, count: int = 300, **options: Any) -> Path:
    """A corpus of ``count`` random sequences in shards of at most 1 MB. Returns its directory."""
    output = folder / "corpus"
    fasta = write_fasta(folder / "small.fa", random_sequences(count, shortest=20))
    prepare(config(output, fasta, **{"min_length": 1, "shard_megabytes": 1, **options}))
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def reference(files: list[Path], shortest: int, longest: int) -> dict[str, str]:
    """letters -> accession of the first record that has them: plain Python, line by line, no code of ours."""
    found: dict[str, str] = {}
    for path in files:
        for record in ("\n" + path.read_text()).split("\n>")[1:]:
            header, *lines = record.split("\n")
            letters = "".join("".join(lines).split()).upper().replace("T", "U").replace("-", "").replace(".", "")
            if shortest <= len(letters) <= longest and set(letters) <= set("ACGURYKMSWBDHVNI"):
                found.setdefault(letters, header.split()[0])
    return found
