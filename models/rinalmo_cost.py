"""What a RiNALMo model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.rinalmo`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from models import packed_cost

if TYPE_CHECKING:
    from models.rinalmo import RiNALMoConfig


def count_parameters(config: RiNALMoConfig, *, padded: bool = False) -> int:
    """Trainable parameters (spec 11.1); ``padded`` counts the zeros of the padded feed-forward layers as well."""
    inner = config.ffn_padded if padded else config.ffn
    return config.vocab * config.width + _encoder_parameters(config, inner) + _head_parameters(config)


def flops(config: RiNALMoConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """Useful FLOPs of a forward and backward pass over sequences of ``lengths`` tokens (`packed_cost.flops`; spec 1.4).

    ``targets`` of them are predicted, all if it is None. Pads of feed-forward layers do not count.
    """
    encoder, head = _encoder_parameters(config, config.ffn), _head_parameters(config)
    return packed_cost.flops(config, encoder, head, lengths, targets)


def activation_bytes(
    config: RiNALMoConfig,
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
    model with a fused attention kernel; torch.compile keeps less, and a kernel that stores attention probabilities
    (sdpa on CPU with attention dropout) more.
    """
    d, f, residual = config.width, config.ffn_padded, residual_bytes or element_bytes
    targets = tokens if targets is None else targets
    # Stream: x and a, the inputs of the two norms. Branches: h, qkv (v is part of it), rotated q and k, attention
    # output, z; and of the feed-forward layer u, sigmoid, u·sigmoid, p, gated. Masks of residual dropout: one byte.
    stream = 2 * d * residual
    branches = (8 * d + 5 * f + (f if config.transition_dropout else 0)) * element_bytes
    masks = 2 * d * (config.residual_dropout > 0) + f * (config.transition_dropout > 0)
    statistics = 4 * (4 + config.heads)  # mean and deviation of two norms, log-sum-exp of each head
    block = tokens * (stream + branches + masks + statistics) + padded_tokens * 4 * d * element_bytes
    blocks = packed_cost.blocks_bytes(config, block, tokens * d * residual)
    head = targets * (4 * d * element_bytes + config.vocab * (element_bytes + 8))  # logits, fp32 copy and softmax
    return int(blocks + tokens * d * (residual + element_bytes) + head)


def _encoder_parameters(config: RiNALMoConfig, inner: int) -> int:
    d = config.width
    return config.layers * (4 * d * d + 3 * d * inner + 2 * inner + 5 * d + 1) + 2 * d


def _head_parameters(config: RiNALMoConfig) -> int:
    d, v = config.width, config.vocab
    return d * d + 3 * d + v * d + v
