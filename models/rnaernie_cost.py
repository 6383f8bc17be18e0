"""What an RNAErnie model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.rnaernie`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.rnaernie import RNAErnieConfig


def count_parameters(config: RNAErnieConfig) -> int:
    """Parameters (spec 12); the tied matrix counts once, the pooler where the model has one."""
    d = config.width
    embeddings = (config.vocab + config.max_positions + 2) * d + 2 * d
    pooler = d * d + d if config.pooler else 0
    return embeddings + _encoder_parameters(config) + _head_parameters(config) + pooler


def flops(config: RNAErnieConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """FLOPs of one forward and backward pass over sequences of ``lengths`` tokens, ``targets`` of them predicted.

    Six per parameter of the encoder and token, six per parameter of the head and target, the tied decoder among them
    (every token is a target if ``targets`` is None), and 12 · layers · width · length² for attention scores and sums
    (spec 10, three times the forward pass). The look-up of embeddings costs none. Useful work only: neither padding nor
    recomputation counts.
    """
    lengths = list(lengths)
    tokens = sum(lengths)
    linear = 6.0 * _encoder_parameters(config) * tokens
    per_target = 6.0 * (_head_parameters(config) + config.vocab * config.width)
    head = per_target * (tokens if targets is None else targets)
    return linear + head + 12.0 * config.layers * config.width * sum(n * n for n in lengths)


def activation_bytes(
    config: RNAErnieConfig,
    tokens: int,
    targets: int | None = None,
    *,
    element_bytes: int = 2,
    residual_bytes: int | None = None,
    padded_tokens: int = 0,
) -> int:
    """Bytes of activations that the backward pass keeps for a micro-batch of ``tokens`` tokens in training.

    ``element_bytes`` is the width of the compute dtype (2 for bf16), ``residual_bytes`` that of the stream between the
    blocks (4 under fp32-parameter autocast; default: as the compute dtype). ``padded_tokens`` = sequences x longest
    if attention runs on padded copies (the sdpa kernel with unequal lengths), else 0. The estimate holds for the eager
    model with a fused attention kernel.
    """
    d, f, residual = config.width, config.ffn, residual_bytes or element_bytes
    targets = tokens if targets is None else targets
    # Stream: the inputs of the two norms. Branches: x and a (what the norms gave, as the linear layers read it), qkv,
    # attention output, and relu's output. Masks of residual dropout: one byte.
    branches = (6 * d + f) * element_bytes
    masks = 2 * d * (config.residual_dropout > 0)
    statistics = 4 * (4 + config.heads)  # mean and deviation of two norms, log-sum-exp of each head
    block = tokens * (2 * d * residual + branches + masks + statistics) + padded_tokens * 4 * d * element_bytes
    if config.checkpointing:  # the input of every block, and one block at a time in full
        blocks = config.layers * tokens * d * residual + block
    else:
        blocks = config.layers * block
    # The head: its input, relu's output, what the norm gave; logits, fp32 copy and softmax.
    head = targets * (d * (2 * element_bytes + residual) + config.vocab * (element_bytes + 8))
    embedding = tokens * d * (residual + (config.residual_dropout > 0))
    return int(blocks + embedding + tokens * d * element_bytes + head)


def _encoder_parameters(config: RNAErnieConfig) -> int:
    d, f = config.width, config.ffn
    return config.layers * (4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d)


def _head_parameters(config: RNAErnieConfig) -> int:
    """Without the tied matrix."""
    d = config.width
    return d * d + 3 * d + config.vocab
