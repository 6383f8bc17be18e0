"""Synthetic families as chemical mapping data: a table in the form of Kaggle's train_data.csv, with known structures.

Each member is measured twice, as by 2A3 and by DMS, between the constant ends that real libraries have (their first 26
and last 20 positions are blank). A profile is `SyntheticCorpus.reactivity` (unpaired nucleotides high, paired ones low;
DMS at A and C only) plus noise that falls with the number of reads; errors tell the noise, signal_to_noise is the mean
value over the mean error, SN_filter is signal_to_noise > 1 and reads > 100 (spec RibonanzaNet 3.1). Reads are few in
some rows, so there are clean, dirty and noisy sequences. Every byte is a function of (seed, config, count).
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.randomness import key, uniform
from data.synthetic import SyntheticCorpus, SyntheticSequence

HEAD = b"GGGAACGACUCGAGUAGAGUCGAAAA"  # of Ribonanza's libraries (spec RibonanzaNet 3.1); blank in every profile
TAIL = b"AAAGAAACAACAACAACAAC"
EXPERIMENTS = ("2A3_MaP", "DMS_MaP")
_READS = (6, 30, 300, 1200, 5000, 20000)  # how deep a sequence may be measured; either row has this, or three times it
_NOISE = 3.0  # error of a value near 1 with one read; it falls with the root of reads


def write_train_csv(
    corpus: SyntheticCorpus, path: str | os.PathLike[str], count: int, start: int = 0, ends: bool = True
) -> Path:
    """Writes members start .. start + count - 1 (see `SyntheticCorpus.stream`), 2A3 rows and DMS rows in turn.

    ``ends``: with the constant ends. Members that happen to be equal are written once. The file appears whole or not at
    all. Raises DataError for a negative count or start, or if there is no member.
    """
    path = Path(path)
    head, tail = (HEAD, TAIL) if ends else (b"", b"")
    longest = max((len(s.letters) for s in corpus.stream(count, start)), default=0)
    if not longest:
        raise DataError("a table of synthetic profiles needs at least one sequence.")
    width = longest + len(head) + len(tail)
    columns = ["sequence_id", "sequence", "experiment_type", "dataset_name", "reads", "signal_to_noise", "SN_filter"]
    columns += [f"reactivity_{i:04d}" for i in range(1, width + 1)]
    columns += [f"reactivity_error_{i:04d}" for i in range(1, width + 1)]
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    written: set[bytes] = set()
    try:
        with open(partial, "w", newline="\n") as file:
            file.write(",".join(columns) + "\n")
            for member in corpus.stream(count, start):
                letters = head + member.letters.tobytes() + tail
                digest = hashlib.md5(letters, usedforsecurity=False)
                if digest.digest() in written:
                    continue
                written.add(digest.digest())
                for channel, experiment in enumerate(EXPERIMENTS):
                    values, errors, reads = _measured(corpus, member, channel)
                    ratio = _sum(values) / _sum(errors)
                    cells = [digest.hexdigest()[:12], letters.decode(), experiment]
                    cells += [f"SYN_{corpus.config.label}_{experiment[:3]}", f"{reads}", f"{ratio:.3f}"]
                    cells.append(f"{int(ratio > 1 and reads > 100)}")
                    for numbers in (values, errors):
                        cells += [""] * len(head) + [_cell(number) for number in numbers.tolist()]
                        cells += [""] * (width - len(head) - len(numbers))
                    file.write(",".join(cells) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _measured(
    corpus: SyntheticCorpus, member: SyntheticSequence, channel: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """(values [L], errors [L], reads) of one row; NaN where the reagent does not react."""
    level = corpus.reactivity(member)[:, channel].astype(np.float64)
    own = key(corpus.family(member.family).key, "reads", member.index)
    base = key(own, channel)
    depth, more = uniform(own, [0])[0], uniform(base, [0])[0]
    reads = _READS[int(depth * len(_READS))] * (3 if more < 0.5 else 1)
    errors = _NOISE * np.sqrt((np.maximum(level, 0.0) + 0.1) / reads)
    # A sum of four uniform numbers: close to normal, of variance 1, and the same bytes on every machine.
    u = uniform(base, 1 + np.arange(4 * len(level))).reshape(-1, 4)
    noise = (u[:, 0] + u[:, 1] + u[:, 2] + u[:, 3] - 2.0) * np.sqrt(3.0)
    return level + errors * noise, errors, reads


def _sum(numbers: npt.NDArray[np.float64]) -> float:
    """Exact, so that no order of adding up shows in the third decimal."""
    return math.fsum(number for number in numbers.tolist() if number == number)


def _cell(number: float) -> str:
    return "" if number != number else f"{number:.3f}"
