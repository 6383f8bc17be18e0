"""What an RNAErnie model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.rnaernie`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from models import packed_cost

if TYPE_CHECKING:
    from models.rnaernie import RNAErnieConfig


def count_parameters(config: RNAErnieConfig) -> int:
    """Parameters (spec 12); the tied matrix counts once, the pooler where the model has one."""
    d = config.width
    embeddings = (config.vocab + config.max_positions + 2) * d + 2 * d
    pooler = d * d + d if config.pooler else 0
    return embeddings + _encoder_parameters(config) + _head_parameters(config) + pooler


def flops(config: RNAErnieConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """Useful FLOPs of a forward and backward pass over sequences of ``lengths`` tokens (`packed_cost.flops`; spec 10).

    ``targets`` of them are predicted, all if it is None. The tied matrix works in the head alone.
    """
    head = _head_parameters(config) + config.vocab * config.width
    return packed_cost.flops(config, _encoder_parameters(config), head, lengths, targets)


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
    blocks = packed_cost.blocks_bytes(config, block, tokens * d * residual)
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
