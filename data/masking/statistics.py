"""What the masking levels do to a corpus, measured on a sample of it before a run.

The check that matters: the shares of A, C, G and U among a level's targets. The published RNAErnie code searched motifs
spelled with U in sequences spelled with T, so that no U was ever a target at the motif level, and nothing said so
(specs: rnaernie 0.1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alphabet import NUCLEOTIDES
from data.masking.engine import Engine, Packed
from data.masking.options import LEVELS
from data.masking.words import Hits

I64 = npt.NDArray[np.int64]
LEAST_TARGETS = 200  # fewer say nothing about composition
FAR = 2.0  # a share that is more than so many times, or less than one so-many-th of, the corpus's
LEAST_SHARE = 0.02  # of the corpus: rarer letters are not judged
EVERYWHERE = 0.8  # words that cover more than this share of the corpus, and shuffled letters as well, say nothing


@dataclass
class LevelStatistics:
    """Of one level, applied to every sequence of the sample. The first three are None for levels without words."""

    hits_per_kilobase: float | None
    enrichment: float | None  # hits against those in the same sequences with their letters shuffled; None also if 0
    coverage: float | None  # share of nucleotides that lie in at least one hit
    masked_fraction: float  # mean over sequences
    without_targets: float  # share of sequences that get no target
    targets: int  # that the level itself chose, without top-up
    composition: dict[str, float]  # shares of A, C, G, U among those of them that are nucleotides


def describe(engine: Engine, packed: Packed, keys: npt.NDArray[np.uint64]) -> dict[str, Any]:
    """{sequences, nucleotides, composition, levels: {level: LevelStatistics as a dictionary}, warnings: sentences}."""
    sample = np.repeat(np.arange(len(packed.lengths)), packed.lengths)
    corpus = _shares(packed.letters)
    levels, warnings = {}, []
    own = engine.without_topup()
    for level in engine.choice.possible:
        numbers = np.full(len(packed.lengths), LEVELS.index(level), dtype=np.int64)
        counts = np.bincount(sample[engine.select_at(packed, keys, numbers).place], minlength=len(packed.lengths))
        chosen = packed.letters[own.select_at(packed, keys, numbers).place]
        found = LevelStatistics(
            *_words(engine, level, packed, keys),
            masked_fraction=float((counts / np.maximum(packed.lengths, 1)).mean()) if len(counts) else 0.0,
            without_targets=float((counts == 0).mean()) if len(counts) else 0.0,
            targets=len(chosen),
            composition=_shares(chosen),
        )
        levels[level] = asdict(found)
        warnings += _warnings(level, found, corpus)
    return {
        "sequences": len(packed.lengths),
        "nucleotides": len(packed.letters),
        "composition": corpus,
        "levels": levels,
        "warnings": warnings,
    }


def _words(
    engine: Engine, level: str, packed: Packed, keys: npt.NDArray[np.uint64]
) -> tuple[float | None, float | None, float | None]:
    """(hits per kilobase, enrichment, coverage); None for a level without words."""
    if level not in engine.scanners or not len(packed.letters):
        return None, None, None
    every = np.arange(len(packed.lengths))
    hits = engine.hits(level, packed, every)
    shuffled = engine.hits(level, _shuffled(packed, keys), every)
    enrichment = len(hits.start) / len(shuffled.start) if len(shuffled.start) else None
    return 1000 * len(hits.start) / len(packed.letters), enrichment, _coverage(hits, packed)


def _coverage(hits: Hits, packed: Packed) -> float:
    firsts = np.cumsum(packed.lengths) - packed.lengths
    change = np.zeros(len(packed.letters) + 1, dtype=np.int64)
    np.add.at(change, firsts[hits.sample] + hits.start, 1)
    np.add.at(change, firsts[hits.sample] + hits.stop, -1)
    return float((np.cumsum(change)[:-1] > 0).mean())


def _shuffled(packed: Packed, keys: npt.NDArray[np.uint64]) -> Packed:
    """The same sequences, the letters of each in random order."""
    sample = np.repeat(np.arange(len(packed.lengths)), packed.lengths)
    draws = randomness.bits(randomness.keys(randomness.key("shuffled"), keys)[sample], np.arange(len(sample)))
    return Packed(packed.letters[np.lexsort((draws, sample))], packed.lengths, packed.eligible)


def _shares(letters: npt.NDArray[np.uint8]) -> dict[str, float]:
    counts = np.bincount(letters, minlength=256)[np.frombuffer(NUCLEOTIDES.encode(), dtype=np.uint8)]
    shares = counts / max(int(counts.sum()), 1)
    return dict(zip(NUCLEOTIDES, shares.tolist(), strict=True))


def _warnings(level: str, found: LevelStatistics, corpus: dict[str, float]) -> list[str]:
    sentences = []
    if found.hits_per_kilobase == 0:
        sentences.append(
            f"masking level {level}: not one of its words occurs in the sample of the corpus; check that words and "
            "sequences are spelled alike"
        )
    elif found.targets >= LEAST_TARGETS:
        for letter, share in found.composition.items():
            expected = corpus[letter]
            if expected < LEAST_SHARE or expected / FAR <= share <= expected * FAR:
                continue
            sentences.append(
                f"masking level {level}: {letter} is {share:.1%} of its targets, but {expected:.1%} of the corpus; "
                + ("check that words and sequences are spelled alike" if share == 0 else "its words are one-sided")
            )
    if (
        found.coverage is not None
        and found.coverage > EVERYWHERE
        and found.enrichment is not None
        and found.enrichment < FAR
    ):
        sentences.append(
            f"masking level {level}: its words cover {found.coverage:.0%} of all nucleotides ({found.enrichment:.2f} "
            "times as many hits as in shuffled sequences), so it hardly differs from random spans; raise its min_len"
        )
    return sentences
