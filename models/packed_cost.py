"""What the models of packed sequences cost alike; the parts of each are in its own file (models/*_cost.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Encoder(Protocol):
    """What is asked of a configuration."""

    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def checkpointing(self) -> bool: ...


def flops(config: Encoder, per_token: int, per_target: int, lengths: Iterable[int], targets: int | None) -> float:
    """FLOPs of one forward and backward pass over sequences of ``lengths`` tokens, ``targets`` of them predicted.

    Six per parameter and token (``per_token`` of them, in the encoder), six per parameter and target (``per_target``,
    in the head; every token is a target if ``targets`` is None), and 12 · layers · width · length² for attention scores
    and sums. A look-up of embeddings costs none. Useful work only: neither padding nor recomputation counts, so that
    this over time and peak is the model-FLOPs utilisation.
    """
    lengths = list(lengths)
    tokens = sum(lengths)
    linear = 6.0 * per_token * tokens
    head = 6.0 * per_target * (tokens if targets is None else targets)
    return linear + head + 12.0 * config.layers * config.width * sum(n * n for n in lengths)


def blocks_bytes(config: Encoder, block: int, boundary: int) -> int:
    """Of all blocks: each keeps ``block`` bytes, or with checkpointing its input of ``boundary`` bytes and one all."""
    if config.checkpointing:
        return config.layers * boundary + block
    return config.layers * block
