"""A corpus of RNA families with known secondary structure, generated instead of stored: for the demo and for tests.

A member of a family is its consensus with

- stem pairs replaced as a whole by another of GC, CG, AU, UA, GU, UG (compensatory changes and wobbles),
- loop letters substituted,
- nucleotides inserted behind loop columns and loop columns deleted; stems keep their length.

Every letter is a pure function of (seed, config, family, index), through `randomness` and with nothing but additions,
multiplications, divisions and comparisons, so that every machine makes the same bytes. Whether columns are deleted or
insertions made does not depend on letters.

It imitates covariation, not evolution: there is no tree, no selection, no relation between families. The best loss that
any model can reach on it is known: `synthetic_bound`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.randomness import key, keys, uniform
from data.synthetic_family import (
    LETTERS,
    PAIR_CLOSE,
    PAIR_OPEN,
    PRESETS,
    Family,
    SyntheticConfig,
    choose,
    draw_family,
    pair_table,
)

GAP = ord("-")
MAX_INSERT = 3
_EXTEND = 0.3  # probability of each further inserted nucleotide, up to MAX_INSERT
_CHANNELS = 2 + 2 * MAX_INSERT  # uniform numbers per column: letter, deletion, insertion lengths, inserted letters
_ROUNDS = 64  # indices per family drawn at once by `stream`: about 15 MB for 64 families
# Mean reactivity by context (unpaired, end of a helix, inside a helix) and by letter (A, C, G, U), for [2A3, DMS].
_CONTEXT_LEVEL = np.array([[1.0, 1.0], [0.3, 0.25], [0.08, 0.05]])
_LETTER_LEVEL = np.array([[1.2, 1.2], [0.8, 0.8], [1.1, np.nan], [0.9, np.nan]])
_SKEW_MEAN = 0.6479184330021646  # of u / (1.5 - u) for u uniform in [0, 1): 1.5 ln 3 - 1
_ACCESSION = re.compile(r"SYN(\d+)-([a-z]\w*)-(\d+)-(\d+)", re.ASCII)


@dataclass(frozen=True, eq=False)
class SyntheticSequence:
    """One member of a family, L nucleotides long."""

    accession: str
    family: int
    index: int
    letters: npt.NDArray[np.uint8]  # [L] ASCII, upper case, U for uracil
    structure: str  # [L] dot-bracket of these letters
    columns: npt.NDArray[np.int64]  # [L] consensus column of each nucleotide, -1 for an inserted one


class SyntheticCorpus:
    """All members of all families of a seed: family in [0, config.families), index in [0, 2**63).

    ``config`` is a SyntheticConfig or the name of a preset (`demo`, `standard`).
    Raises DataError for an unknown preset or a seed that is not in [0, 2**64).
    """

    def __init__(self, seed: int, config: SyntheticConfig | str = "demo") -> None:
        if isinstance(config, str):
            if config not in PRESETS:
                raise DataError(f"There is no synthetic preset {config!r}; the presets are {', '.join(PRESETS)}.")
            config = PRESETS[config]
        if not 0 <= seed < 2**64:
            raise DataError(f"The seed of a synthetic corpus must be in [0, 2**64); got {seed}.")
        self.seed = seed
        self.config = config
        base = key("synthetic", seed)
        self.families = tuple(draw_family(key(base, f), f, config) for f in range(config.families))

    def family(self, number: int) -> Family:
        """The family of a number; DataError when there is none."""
        if not 0 <= number < len(self.families):
            raise DataError(f"Family {number} does not exist; this corpus has families 0 to {len(self.families) - 1}.")
        return self.families[number]

    def accession(self, family: int, index: int) -> str:
        """`SYN<seed>-<preset or config label>-<family>-<index>`."""
        return f"SYN{self.seed}-{self.config.label}-{family}-{index}"

    def sequence(self, family: int, index: int) -> SyntheticSequence:
        """One member. Raises DataError when there is no such family or member."""
        if not 0 <= index < 2**63:
            raise DataError(f"The members of a family are numbered from 0 to 2**63 - 1; got the index {index}.")
        return self.sequences(family, np.array([index]))[0]

    def sequences(self, family: int, indices: npt.NDArray[np.int64]) -> list[SyntheticSequence]:
        """The members of these indices >= 0, drawn together: some three times faster than one by one."""
        law = self.family(family)
        letters, kept, inserted, insert_letters = self._draw(law, indices)
        # Each column owns 1 + MAX_INSERT slots, of which a member fills some: its own letter, then what follows it.
        slots = np.concatenate([letters[:, :, None], insert_letters], axis=2)
        filled = np.concatenate([kept[:, :, None], np.arange(MAX_INSERT) < inserted[:, :, None]], axis=2)
        columns = np.full(slots.shape[1:], -1)
        columns[:, 0] = np.arange(len(columns))
        brackets = np.full(slots.shape[1:], ord("."), dtype=np.uint8)
        brackets[:, 0] = np.frombuffer(law.structure.encode(), dtype=np.uint8)
        prefix = self.accession(family, 0)[:-1]
        return [
            SyntheticSequence(
                accession=f"{prefix}{index}",
                family=family,
                index=index,
                letters=LETTERS[slots[row][filled[row]]],
                structure=brackets[filled[row]].tobytes().decode(),
                columns=columns[filled[row]],
            )
            for row, index in enumerate(indices.tolist())
        ]

    def sequence_of(self, accession: str) -> SyntheticSequence:
        """The member that an accession of this corpus names. Raises DataError for one of another corpus."""
        seed, label, family, index = parse_accession(accession)
        if (seed, label) != (self.seed, self.config.label):
            raise DataError(
                f"The accession {accession!r} is of the corpus SYN{seed}-{label}; "
                f"this one is SYN{self.seed}-{self.config.label}."
            )
        return self.sequence(family, index)

    def stream(self, count: int, start: int = 0) -> Iterator[SyntheticSequence]:
        """Sequences start .. start + count - 1 of the corpus: number n is member n // F of family n mod F.

        Disjoint ranges are disjoint sets of members: a training and a validation set from one corpus.
        """
        if count < 0 or start < 0:
            raise DataError(f"The first sequence and the number of sequences cannot be negative; got {start}, {count}.")
        size = len(self.families)
        for first in range(start // size, -(-(start + count) // size), _ROUNDS):
            indices = np.arange(first, first + _ROUNDS)
            members = [self.sequences(f, indices) for f in range(size)]
            low = max(start - first * size, 0)
            high = min(start + count - first * size, _ROUNDS * size)
            for n in range(low, high):
                yield members[n % size][n // size]

    def alignment(self, family: int, rows: int) -> tuple[npt.NDArray[np.uint8], str]:
        """The consensus and members 0 .. rows - 2 in the family's C columns.

        Returns letters uint8 [rows, C] (ASCII, `-` for a deleted column; inserted nucleotides are left out, as in a
        query-anchored a3m) and the dot-bracket consensus structure [C]. Row 0 is the consensus, the query.
        Raises DataError for rows < 1.
        """
        if rows < 1:
            raise DataError(f"An alignment needs at least one row, the consensus; got {rows}.")
        law = self.family(family)
        letters, kept, _, _ = self._draw(law, np.arange(rows - 1))
        members = np.where(kept, LETTERS[letters], np.uint8(GAP))
        return np.concatenate([law.consensus[None], members]), law.structure

    def write_fasta(self, path: str | os.PathLike[str], count: int, start: int = 0) -> Path:
        """Writes sequences start .. start + count - 1 (see `stream`); the file appears whole or not at all.

        Headers: accession, RNA type, `family <number>`. Members that happen to be equal are all written.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            with open(partial, "wb") as handle:
                for sequence in self.stream(count, start):
                    family = self.families[sequence.family]
                    header = f">{sequence.accession} {family.rna_type} family {family.number}\n"
                    handle.write(header.encode() + sequence.letters.tobytes() + b"\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def reactivity(self, sequence: SyntheticSequence) -> npt.NDArray[np.float32]:
        """[L, 2] chemical mapping profiles of a member of this corpus: channel 0 like 2A3, channel 1 like DMS.

        Unpaired nucleotides are high, paired ones low, the ends of a helix in between; 1 is the mean of the unpaired
        ones. NaN where not measured: DMS at G and U. The noise belongs to the sequence and is the same every time:
        a skewed factor (mean 1, at most 3.1) and an error of up to 0.05 either way; some values are below 0, as in
        real data.
        """
        partner = pair_table(sequence.structure)
        paired = partner >= 0
        # Inside a helix both neighbours are paired, with the two neighbours of the partner.
        stacked = paired[:-1] & paired[1:] & (partner[:-1] == partner[1:] + 1)
        inner = np.append(False, stacked) & np.append(stacked, False)
        context = np.where(inner, 2, np.where(paired, 1, 0))

        base = key(self.family(sequence.family).key, "reactivity", sequence.index)
        u = uniform(base, np.arange(len(partner) * 4)).reshape(-1, 2, 2)
        factor = u[..., 0] / (1.5 - u[..., 0]) / _SKEW_MEAN
        error = 0.1 * (u[..., 1] - 0.5)
        level = _CONTEXT_LEVEL[context] * _LETTER_LEVEL[np.searchsorted(LETTERS, sequence.letters)]
        profile: npt.NDArray[np.float32] = (level * factor + error).astype(np.float32)
        return profile

    def _draw(
        self, law: Family, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """N members in C columns: codes [N, C], kept [N, C], number inserted [N, C], inserted codes [N, C, 3]."""
        columns = len(law.structure)
        positions = np.arange(columns * _CHANNELS)
        u = uniform(keys(law.key, indices)[:, None], positions[None, :]).reshape(len(indices), columns, _CHANNELS)
        letters = np.empty((len(indices), columns), dtype=np.int64)
        letters[:, law.loops] = choose(law.loop_law, u[:, law.loops, 0])
        pair = choose(law.stem_law, u[:, law.stems[:, 0], 0])
        letters[:, law.stems[:, 0]] = PAIR_OPEN[pair]
        letters[:, law.stems[:, 1]] = PAIR_CLOSE[pair]
        kept = ~(law.deletable & (u[:, :, 1] < self.config.deletion))
        more = u[:, :, 2 : 2 + MAX_INSERT] < np.array([self.config.insertion, _EXTEND, _EXTEND])
        inserted = np.where(law.partner < 0, np.cumprod(more, axis=2).sum(axis=2), 0)
        return letters, kept, inserted, choose(law.insertion_law, u[:, :, 2 + MAX_INSERT :])


def from_accession(text: str) -> SyntheticSequence:
    """The sequence that an accession of a preset corpus names, from the text alone.

    Raises DataError for text that is no accession, or of another config: ask that corpus's `sequence_of`.
    """
    seed, label, _, _ = parse_accession(text)
    if label not in PRESETS:
        raise DataError(f"The accession {text!r} is not of a preset: its corpus must be made from its config first.")
    return SyntheticCorpus(seed, label).sequence_of(text)


def parse_accession(text: str) -> tuple[int, str, int, int]:
    """(seed, config label, family, index). Raises DataError for text that is no accession of a synthetic sequence."""
    match = _ACCESSION.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is not the accession of a synthetic sequence, such as SYN7-demo-3-120.")
    return int(match[1]), match[2], int(match[3]), int(match[4])
