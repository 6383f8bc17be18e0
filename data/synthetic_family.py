"""What a synthetic RNA family is: a consensus structure, a consensus sequence, and the law that its members follow.

The structure is drawn as nested stems closed by hairpin, interior, bulge and multi loops, to an exact length. The law
is kept as tables (probability of each pair of a stem, of each letter of a loop column): `synthetic` samples from them
and `synthetic_bound` computes with them, so the two cannot disagree.

There is no energy model, no pseudoknot, no tree: the members of a family are independent given its consensus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from data.alphabet import NUCLEOTIDES
from data.errors import DataError
from data.randomness import key, uniform

LETTERS = np.frombuffer(NUCLEOTIDES.encode(), dtype=np.uint8)
PAIRS = ("GC", "CG", "AU", "UA", "GU", "UG")
PAIR_OPEN = np.array([NUCLEOTIDES.index(pair[0]) for pair in PAIRS])  # code of the 5' letter of each pair
PAIR_CLOSE = np.array([NUCLEOTIDES.index(pair[1]) for pair in PAIRS])
RNA_TYPES = (
    "tRNA",
    "rRNA",
    "snRNA",
    "snoRNA",
    "pre_miRNA",
    "SRP_RNA",
    "ribozyme",
    "Y_RNA",
)  # spelled as RNAcentral does

MIN_HAIRPIN = 3  # unpaired nucleotides that a hairpin needs to turn round
MAX_HAIRPIN = 9
MIN_STEM = 3
MAX_STEM = 6
MIN_ELEMENT = 2 * MIN_STEM + MIN_HAIRPIN
MIN_LENGTH = MIN_ELEMENT + 2  # one hairpin and a tail of one on either side


@dataclass(frozen=True)
class SyntheticConfig:
    """The parameters of a corpus. Rates are probabilities per member sequence: of a stem pair, of a loop column.

    `insertion` is the probability that nucleotides (1 to 3) are inserted behind a loop column, `deletion` that a loop
    column is missing. `pairs` are the frequencies of GC, CG, AU, UA, GU, UG and `loops` those of A, C, G, U, used for
    the consensus, for what a substitution leads to, and (`loops`) for inserted letters; both are scaled to sum to 1.

    Raises DataError for a number out of range.
    """

    families: int
    shortest: int
    longest: int
    stem_substitution: float
    loop_substitution: float
    insertion: float
    deletion: float
    pairs: tuple[float, ...] = (0.27, 0.27, 0.16, 0.16, 0.07, 0.07)
    loops: tuple[float, ...] = (0.40, 0.15, 0.20, 0.25)

    def __post_init__(self) -> None:
        if self.families < 1:
            raise DataError(f"A synthetic corpus needs at least one family; families is {self.families}.")
        if not MIN_LENGTH <= self.shortest <= self.longest:
            raise DataError(
                f"Consensus lengths must satisfy {MIN_LENGTH} <= shortest <= longest; "
                f"got {self.shortest} and {self.longest}."
            )
        for name in ("stem_substitution", "loop_substitution", "insertion", "deletion"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"The rate {name} is a probability, between 0 and 1; got {getattr(self, name)}.")
        for name, size in (("pairs", len(PAIRS)), ("loops", len(NUCLEOTIDES))):
            frequencies = getattr(self, name)
            if len(frequencies) != size or min(frequencies) < 0 or sum(frequencies) <= 0:
                raise DataError(f"The frequencies {name} must be {size} numbers >= 0, not all 0; got {frequencies}.")

    @property
    def pair_frequencies(self) -> npt.NDArray[np.float64]:
        """[6], sums to 1, in the order of PAIRS."""
        return np.array(self.pairs) / sum(self.pairs)

    @property
    def loop_frequencies(self) -> npt.NDArray[np.float64]:
        """[4], sums to 1, in the order A, C, G, U."""
        return np.array(self.loops) / sum(self.loops)

    @property
    def label(self) -> str:
        """The preset's name, or `x` and 8 hexadecimal digits of its parameters: a part of every accession."""
        for name, preset in PRESETS.items():
            if self == preset:
                return name
        return f"x{key(json.dumps(asdict(self))) >> 32:08x}"


# demo: so little to remember that a small model on two CPU cores gets well below the baselines in minutes. Measured
# with 7.4 M parameters after 200,000 nucleotides: perplexity 2.0 with 4 families, 2.8 with 8; the bound is about 1.25.
# standard: members like those of a diverse real family, about 75 % identical to the consensus, most with multiloops.
PRESETS = {
    "demo": SyntheticConfig(4, 40, 70, stem_substitution=0.08, loop_substitution=0.08, insertion=0.01, deletion=0.01),
    "standard": SyntheticConfig(
        64, 60, 150, stem_substitution=0.3, loop_substitution=0.2, insertion=0.03, deletion=0.03
    ),
}


@dataclass(frozen=True, eq=False)
class Family:
    """A family of C consensus columns, L of them in loops, and P stem pairs. Letters are codes 0-3 for A, C, G, U.

    Its members' letters are independent but for the two ends of a stem pair.
    """

    number: int
    rna_type: str
    key: int  # the base of everything drawn for its members
    structure: str  # [C] dot-bracket
    consensus: npt.NDArray[np.uint8]  # [C] ASCII letters
    partner: npt.NDArray[np.int64]  # [C] column paired with, -1 in loops
    stems: npt.NDArray[np.int64]  # [P, 2] columns of each pair, 5' end first
    stem_law: npt.NDArray[np.float64]  # [P, 6] probability of each of PAIRS in a member
    loops: npt.NDArray[np.int64]  # [L] loop columns
    loop_law: npt.NDArray[np.float64]  # [L, 4] probability of each letter in a member
    insertion_law: npt.NDArray[np.float64]  # [4] probability of each inserted letter
    deletable: npt.NDArray[np.bool_]  # [C] columns that a member may lack


def draw_family(base: int, number: int, config: SyntheticConfig) -> Family:
    """The family of a key: its structure, consensus and laws are a pure function of (base, config)."""
    length_draws = _draws(key(base, "length"))
    length = config.shortest + _below(length_draws, config.longest - config.shortest + 1)
    structure = draw_structure(key(base, "structure"), length)
    partner = pair_table(structure)
    opening = np.flatnonzero(partner > np.arange(length))
    loops = np.flatnonzero(partner < 0)

    pair = choose(config.pair_frequencies, uniform(key(base, "pairs"), np.arange(len(opening))))
    letter = choose(config.loop_frequencies, uniform(key(base, "loops"), np.arange(len(loops))))
    codes = np.empty(length, dtype=np.int64)
    codes[loops] = letter
    codes[opening] = PAIR_OPEN[pair]
    codes[partner[opening]] = PAIR_CLOSE[pair]

    deletable = partner < 0
    for start in opening[partner[opening + 1] < 0]:
        end = partner[start]
        if np.all(partner[start + 1 : end] < 0):
            deletable[start + 1 : start + 1 + MIN_HAIRPIN] = False  # a hairpin keeps the nucleotides that it needs

    return Family(
        number=number,
        rna_type=RNA_TYPES[number % len(RNA_TYPES)],
        key=key(base, "members"),
        structure=structure,
        consensus=LETTERS[codes],
        partner=partner,
        stems=np.stack([opening, partner[opening]], axis=1),
        stem_law=substitution_law(pair, config.pair_frequencies, config.stem_substitution),
        loops=loops,
        loop_law=substitution_law(letter, config.loop_frequencies, config.loop_substitution),
        insertion_law=config.loop_frequencies,
        deletable=deletable,
    )


def substitution_law(
    consensus: npt.NDArray[np.int64], frequencies: npt.NDArray[np.float64], rate: float
) -> npt.NDArray[np.float64]:
    """[N, K]: choice k of N columns. The consensus stays with 1 - rate, else *another* choice by its frequency.

    Where no other choice has a frequency above 0 the consensus stays.
    """
    kept = np.eye(len(frequencies))[consensus]
    others = frequencies[None, :] * (1 - kept)
    total = others.sum(axis=1, keepdims=True)
    changed = np.where(total > 0, others / np.where(total > 0, total, 1), kept)
    return (1 - rate) * kept + rate * changed


def choose(law: npt.NDArray[np.float64], u: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Inverse transform: the choice that each uniform number of ``u`` [...] makes by ``law`` [K] or [..., K]."""
    chosen: npt.NDArray[np.int64] = (u[..., None] >= np.cumsum(law, axis=-1)[..., :-1]).sum(axis=-1)
    return chosen


def pair_table(structure: str) -> npt.NDArray[np.int64]:
    """[C] the position paired with each position of a dot-bracket string, -1 where unpaired.

    Raises DataError when the brackets do not balance or another character occurs.
    """
    partner = np.full(len(structure), -1, dtype=np.int64)
    stack: list[int] = []
    for i, character in enumerate(structure):
        if character == "(":
            stack.append(i)
        elif character == ")" and stack:
            partner[i] = stack.pop()
            partner[partner[i]] = i
        elif character != ".":
            raise DataError(
                f"Character {i + 1} of the structure {structure!r}, {character!r}, closes or means nothing."
            )
    if stack:
        raise DataError(f"The bracket at character {stack[-1] + 1} of the structure {structure!r} is never closed.")
    return partner


def draw_structure(base: int, length: int) -> str:
    """A dot-bracket string of exactly ``length`` >= MIN_LENGTH characters: tails around one or two elements."""
    draws = _draws(base)
    spare = length - MIN_ELEMENT
    five = 1 + _below(draws, min(4, spare - 1))
    three = 1 + _below(draws, min(4, spare - five))
    inner = length - five - three
    if inner >= 4 * MIN_ELEMENT and next(draws) < 0.3:
        left = _between(draws, MIN_ELEMENT, inner - MIN_ELEMENT - 1)
        body = _element(draws, left) + "." + _element(draws, inner - left - 1)
    else:
        body = _element(draws, inner)
    return "." * five + body + "." * three


def _element(draws: Iterator[float], length: int) -> str:
    """A stem of exactly ``length`` >= MIN_ELEMENT with all that it encloses."""
    pairs = _between(draws, MIN_STEM, min(MAX_STEM, (length - MIN_HAIRPIN) // 2))
    inner = length - 2 * pairs
    if inner <= MAX_HAIRPIN:
        enclosed = "." * inner
    elif inner >= 2 * MIN_ELEMENT + 3 and next(draws) < 0.5:
        enclosed = _multiloop(draws, inner)
    else:  # an interior loop, or a bulge where one side is empty
        unpaired = _between(draws, 1, min(6, inner - MIN_ELEMENT))
        left = _between(draws, 0, unpaired)
        enclosed = "." * left + _element(draws, inner - unpaired) + "." * (unpaired - left)
    return "(" * pairs + enclosed + ")" * pairs


def _multiloop(draws: Iterator[float], length: int) -> str:
    """Two or three elements joined by single nucleotides, exactly ``length`` long."""
    branches = 3 if length >= 3 * MIN_ELEMENT + 4 and next(draws) < 0.5 else 2
    spare = length - (branches + 1) - branches * MIN_ELEMENT
    text = "."
    for last in (False,) * (branches - 1) + (True,):
        extra = spare if last else _between(draws, 0, spare)
        spare -= extra
        text += _element(draws, MIN_ELEMENT + extra) + "."
    return text


def _draws(base: int) -> Iterator[float]:
    """The uniform numbers of a key, one after the other. A structure of C columns takes fewer than 4 C of them."""
    position = 0
    while True:
        yield from uniform(base, np.arange(position, position + 64)).tolist()
        position += 64


def _below(draws: Iterator[float], bound: int) -> int:
    return int(next(draws) * bound)


def _between(draws: Iterator[float], low: int, high: int) -> int:
    """Uniform over low..high, both included."""
    return low + _below(draws, high - low + 1)
