"""Packed random sequences and engines, for the tests of data/masking."""

from __future__ import annotations

from typing import Any

import numpy as np

from data import randomness
from data.masking.engine import Engine, Packed
from data.masking.levels import LevelChoice
from data.masking.options import LEVELS, LevelWeights, Ramp, SpanOptions, WordOptions
from data.masking.words import WordScanner


def keys(count: int, seed: int = 0) -> np.ndarray:
    return randomness.keys(randomness.key("test", seed), np.arange(count))


def packed(*sequences: str | bytes, partners: list | None = None) -> Packed:
    texts = [s.encode() if isinstance(s, str) else s for s in sequences]
    letters = np.frombuffer(b"".join(texts), dtype=np.uint8)
    return Packed(letters, np.array([len(t) for t in texts]), np.isin(letters, list(b"ACGU")), partners)


def random_texts(count: int, length: int, seed: int = 0) -> list[bytes]:
    table = np.random.default_rng(seed).choice(np.frombuffer(b"ACGU", np.uint8), (count, length))
    return [row.tobytes() for row in table]


def engine(
    words: list[str] | None = None,
    mined: list[str] | None = None,
    rate: float = 0.15,
    topup: str = "none",
    order: str = "shuffle",
    max_tokens: int = 512,
    **span: Any,
) -> Engine:
    options = {"motif": WordOptions(order=order)} if words is not None else {}
    scanners = {"motif": WordScanner(words, mined or [])} if words is not None else {}
    choice = LevelChoice(LevelWeights(), "mix", [], Ramp(), "sample")
    return Engine(choice, rate, max_tokens, SpanOptions(**span), options, scanners, topup)


def select(own: Engine, batch: Packed, level: str, seed: int = 0) -> list[list[int]]:
    """Selected nucleotides of each sequence."""
    n = len(batch.lengths)
    found = own.select_at(batch, keys(n, seed), np.full(n, LEVELS.index(level)))
    firsts = np.cumsum(batch.lengths) - batch.lengths
    sample = np.searchsorted(firsts, found.place, side="right") - 1
    return [(found.place[sample == i] - firsts[i]).tolist() for i in range(n)]
