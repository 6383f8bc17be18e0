"""What a RiNALMo model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.rinalmo`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.rinalmo import RiNALMoConfig


def count_parameters(config: RiNALMoConfig, *, padded: bool = False) -> int:
    """Trainable parameters (spec 11.1); ``padded`` counts the zeros of the padded feed-forward layers as well."""
    inner = config.ffn_padded if padded else config.ffn
    return config.vocab * config.width + _encoder_parameters(config, inner) + _head_parameters(config)


def flops(config: RiNALMoConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """FLOPs of one forward and backward pass over sequences of ``lengths`` tokens, ``targets`` of them predicted.

    Six per parameter of the encoder and token, six per parameter of the head and target (every token is a target if
    ``targets`` is None), and 12 · layers · width · length² for attention scores and sums (spec 1.4). The embedding is a
    look-up and costs none. Useful work only: neither feed-forward pads, nor padding of sequences, nor recomputation
    under checkpointing count, so that this over time and peak is the model-FLOPs utilisation.
    """
    lengths = list(lengths)
    tokens = sum(lengths)
    linear = 6.0 * _encoder_parameters(config, config.ffn) * tokens
    head = 6.0 * _head_parameters(config) * (tokens if targets is None else targets)
    return linear + head + 12.0 * config.layers * config.width * sum(n * n for n in lengths)


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
    if config.checkpointing:  # the input of every block, and one block at a time in full
        blocks = config.layers * tokens * d * residual + block
    else:
        blocks = config.layers * block
    head = targets * (4 * d * element_bytes + config.vocab * (element_bytes + 8))  # logits, fp32 copy and softmax
    return int(blocks + tokens * d * (residual + element_bytes) + head)


def _encoder_parameters(config: RiNALMoConfig, inner: int) -> int:
    d = config.width
    return config.layers * (4 * d * d + 3 * d * inner + 2 * inner + 5 * d + 1) + 2 * d


def _head_parameters(config: RiNALMoConfig) -> int:
    d, v = config.width, config.vocab
    return d * d + 3 * d + v * d + v
