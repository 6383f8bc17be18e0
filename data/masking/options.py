"""The options of the masking levels (specs: rnaernie 4.4). Values are checked where a recipe is read."""

from __future__ import annotations

from dataclasses import dataclass, field

LEVELS = ("base", "span", "motif", "npmi", "pair")
INV_RANK, UNIFORM, GEOMETRIC = SPAN_DISTRIBUTIONS = ("inv_rank", "uniform", "geometric")
SHUFFLE, LONGEST, DB_FIRST = WORD_ORDERS = ("shuffle", "longest", "db_first")
MIX, STAGED, RAMP = SCHEDULES = ("mix", "staged", "ramp")
SAMPLE, BATCH = CHOOSE_PER = ("sample", "batch")
BASE, SPAN, NONE = TOP_UPS = ("base", "span", "none")


@dataclass
class LevelWeights:
    """How often each level is chosen, on any scale."""

    base: float = 1.0  # single nucleotides
    span: float = 1.0  # short runs anywhere
    motif: float = 1.0  # occurrences of the words in `motif.files`
    npmi: float = 0.0  # occurrences of the words in `npmi.files`: k-mers whose letters belong together
    pair: float = 0.0  # nucleotides with their partners, where the corpus has structures; others as `base`


@dataclass
class Stage(LevelWeights):
    """The weights up to a fraction of the run's steps; levels that are not named have none."""

    until: float = 1.0  # fraction of the steps
    base: float = 0.0
    span: float = 0.0
    motif: float = 0.0


@dataclass
class Ramp:
    """Share of the levels other than `base`: 0 until `start`, rising linearly to `max` at `end`. Fractions of steps."""

    start: float = 0.15
    end: float = 0.85
    max: float = 0.5


@dataclass
class SpanOptions:
    min: int = 4  # nucleotides
    max: int = 8  # nucleotides
    distribution: str = INV_RANK  # of lengths: inv_rank (1, 1/2, 1/3 ...), uniform, or geometric
    p: float = 0.2  # of the geometric distribution, cut off at `max`
    tail: int = 0  # last nucleotides that no span touches (the original: 9); spans are cut there


@dataclass
class WordOptions:
    """Lists of words; formats are recognised (data/formats/motifs.py)."""

    files: list[str] = field(default_factory=list)  # of a database
    mined: list[str] = field(default_factory=list)  # of mined words, which `db_first` tries after those
    organism: str | None = None  # of an ATtRACT table only rows of this organism, e.g. Homo_sapiens
    min_len: int = 6  # letters; shorter words are left out
    max_len: int = 50  # longer ones too
    order: str = SHUFFLE  # shuffle; longest (first); db_first (database shuffled, then mined ones as they occur)
    threshold: float = 0.25  # of a matrix: a letter with at least this probability is one of its position's letters
    expansions: int = 4096  # most words that one motif with ambiguity codes or one matrix may stand for


@dataclass
class TypeTokenOptions:
    """`[IND] [type]` after the letters of sequences whose type the vocabulary has."""

    append: bool = True  # false: sequences without type tokens
    drop_prob: float = 0.5  # left out, as for sequences of unknown type; 0 or 0.15 to 0.5
    mask_prob: float = 0.15  # of those appended: the type is `<mask>` and a target; 0 or 0.15 to 0.5
    types: list[str] = field(default_factory=list)  # only these; all that the vocabulary has unless given
