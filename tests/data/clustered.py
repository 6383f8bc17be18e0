"""Sequences with a known clustering, and an independent recount of what is in a corpus."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.index import Corpus

needs_mmseqs = pytest.mark.skipif(shutil.which("mmseqs") is None, reason="MMseqs2 is not installed (mmseqs2 in Debian)")


def families_of(count: int, members: int, seed: int = 0, length: int = 150) -> list[list[str]]:
    """``count`` families: a random parent and mutants that differ from it in 5 % of their letters."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        parent = generator.choice(list("ACGU"), length)
        family = {"".join(parent)}
        while len(family) < members:
            child = parent.copy()
            places = generator.choice(length, length // 20, replace=False)
            child[places] = generator.choice(list("ACGU"), len(places))
            family.add("".join(child))
        found.append(sorted(family))
    return found


def write_families(path: Path, families: list[list[str]], header: str = "f{family}m{member}") -> Path:
    lines = [
        f">{header.format(family=f, member=m)}\n{sequence}\n"
        for f, family in enumerate(families)
        for m, sequence in enumerate(family)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def write_table(path: Path, families: list[list[str]]) -> Path:
    lines = [f"f{f}m0\tf{f}m{m}\n" for f, family in enumerate(families) for m in range(len(family))]
    path.write_text("".join(lines))
    return path


def splits(path: Path) -> dict[str, list[tuple[str, str]]]:
    """(letters, accession) of every sequence, in order, by split; validation may be missing."""
    found = {}
    for split in ("train", "validation"):
        if not Corpus.open(path).manifest["splits"][split]["sequences"]:
            found[split] = []
            continue
        corpus = Corpus.open(path, split)
        ids = np.arange(corpus.count)
        letters = [view.tobytes().decode() for view in corpus.letters(ids)]
        found[split] = list(zip(letters, corpus.accessions(ids), strict=True))
    return found


def members(path: Path, split: str = "train") -> list[list[str]]:
    """Accessions by cluster, as the corpus's row pointers have them."""
    corpus = Corpus.open(path, split)
    assert corpus.clusters is not None
    names = corpus.accessions(np.arange(corpus.count))
    bounds = corpus.clusters.tolist()
    return [names[a:b] for a, b in itertools.pairwise(bounds)]
