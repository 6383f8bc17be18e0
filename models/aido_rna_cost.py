"""What an AIDO.RNA model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.aido_rna`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from models import packed_cost

if TYPE_CHECKING:
    from models.aido_rna import AidoRNAConfig


def count_parameters(config: AidoRNAConfig) -> int:
    """Trainable parameters (spec 11.1); the tied matrix counts once."""
    return config.vocab * config.width + _encoder_parameters(config) + _head_parameters(config)


def flops(config: AidoRNAConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """Useful FLOPs of a forward and backward pass over sequences of ``lengths`` tokens (`packed_cost.flops`; spec 1.3).

    ``targets`` of them are predicted, all if it is None. The tied matrix works in the head alone.
    """
    head = _head_parameters(config) + config.vocab * config.width
    return packed_cost.flops(config, _encoder_parameters(config), head, lengths, targets)


def activation_bytes(
    config: AidoRNAConfig,
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
    # Stream: x and a, the inputs of the two norms. Branches: h, qkv (v is part of it), rotated q and k, attention
    # output, z; and of the feed-forward layer the swish branch before and after SiLU, p, gated.
    branches = (8 * d + 4 * f) * element_bytes
    # RMSNorm is written out. It also keeps the normalised vector, in fp32 beside an fp32 input; of a half-precision
    # input it keeps the fp32 copy instead, and the normalised vector in half precision: four bytes more either way.
    kept_by_norm = 0 if config.norm == "layer" else 4 * d
    masks = 2 * d * (config.residual_dropout > 0)
    statistics = 4 * (4 + config.heads)  # mean and deviation of two norms, log-sum-exp of each head
    block = tokens * (2 * d * residual + 2 * kept_by_norm + branches + masks + statistics)
    block += padded_tokens * 4 * d * element_bytes
    blocks = packed_cost.blocks_bytes(config, block, tokens * d * residual)
    head = targets * (4 * d * element_bytes + config.vocab * (element_bytes + 8) + kept_by_norm)
    return int(blocks + tokens * (d * (residual + element_bytes) + kept_by_norm) + head)


def _encoder_parameters(config: AidoRNAConfig) -> int:
    d, f = config.width, config.ffn
    norms = 2 * _norm_parameters(config)
    biases = 5 * d + 2 * f if config.bias else 0
    return config.layers * (4 * d * d + 3 * d * f + biases + norms) + _norm_parameters(config)


def _head_parameters(config: AidoRNAConfig) -> int:
    """Without the tied matrix."""
    d = config.width
    return d * d + d + _norm_parameters(config) + config.vocab


def _norm_parameters(config: AidoRNAConfig) -> int:
    return config.width * (2 if config.norm == "layer" else 1)
