"""What a RibonanzaNet model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The pair stream dominates everything:
memory grows with the square of the length and, beyond about a thousand nucleotides, arithmetic with its cube.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.ribonanzanet import RibonanzaNetConfig


def count_parameters(config: RibonanzaNetConfig) -> int:
    """Trainable parameters (spec 1.4), those of the last pair update included."""
    d, p = config.width, config.pair
    once = config.vocab * d + (d + 1) * config.channels + (2 * config.reach + 2) * p
    once += _outer_parameters(config)
    norms = 4 * d + 2 * d + (2 * d if config.attention_residual == "double" else 0)
    layer = 4 * d * d + p * config.heads + 2 * p + 2 * d * config.ffn + config.ffn + d + norms
    layer += pair_update_parameters(config)
    convolutions = (config.layers - 1) * (config.kernel_size * d * d + d) + d * d + d
    return once + config.layers * layer + convolutions


def pair_update_parameters(config: RibonanzaNetConfig) -> int:
    """Parameters of one layer's update of z; those of the last layer get gradients of exactly zero (spec 1.4)."""
    p = config.pair
    update = 6 * (p * p + p) + 4 * p
    attention = 3 * p * p + p * config.triangle_heads + 2 * (p * p + p) + 2 * p
    transition = 8 * p * p + 5 * p + 2 * p
    return _outer_parameters(config) + 2 * update + transition + 2 * attention * config.triangle_attention


def flops(config: RibonanzaNetConfig, lengths: Iterable[int], targets: int | None = None) -> float:
    """FLOPs of one forward and backward pass over sequences of ``lengths`` nucleotides: three times the forward pass.

    The work of this implementation, that is with the outer product in its cheap order (spec 11.2) and without the last
    pair update where the configuration leaves it out. Neither padding nor recomputation count, so that this over time
    and peak is the model-FLOPs utilisation. ``targets`` is there for the common interface: the head's share is nothing.
    """
    return 3.0 * sum(_forward(config, length) for length in lengths)


def _forward(config: RibonanzaNetConfig, length: int) -> float:
    """FLOPs of the forward pass over one sequence; two per multiplication and addition (spec 11.1)."""
    d, p = config.width, config.pair
    kernels = (config.layers - 1) * config.kernel_size + 1
    sequence = length * (8 * d * d + 4 * d * config.ffn) + length**2 * (2 * p * config.heads + 4 * d)
    once = _outer(config, length) + length * 2 * d * config.channels
    # An update that is left out is made for one nucleotide, for gradients of zero on every rank.
    left_out = config.skip_last_pair_update
    updates = (config.layers - left_out) * _update(config, length) + left_out * _update(config, 1)
    return once + config.layers * sequence + kernels * length * 2 * d * d + updates


def _update(config: RibonanzaNetConfig, length: int) -> float:
    p = config.pair
    update = _outer(config, length) + length**2 * (2 * 12 * p * p + 16 * p * p) + length**3 * 4 * p
    if config.triangle_attention:
        update += 2 * (length**2 * (10 * p * p + 2 * p * config.triangle_heads) + length**3 * 4 * p)
    return update


def _outer(config: RibonanzaNetConfig, length: int) -> float:
    d, p, c = config.width, config.pair, config.outer
    return length * (2 * d * c + 2 * c * c * p) + length**2 * 2 * (c + 1) * p  # + 1: its bias is part of the product


def activation_bytes(
    config: RibonanzaNetConfig,
    lengths: Iterable[int],
    *,
    element_bytes: int = 2,
    residual_bytes: int | None = None,
) -> int:
    """Bytes of activations that the backward pass keeps for a micro-batch [B, L] of sequences of ``lengths``.

    Every sequence counts as the longest one. ``element_bytes`` is the width of the compute dtype (2 for bf16),
    ``residual_bytes`` that of the sequence stream (4 under fp32-parameter autocast; default: as the compute dtype; z is
    in the compute dtype in any case). The estimate holds for the eager model with its own triangle kernel, on CPU,
    where triangle attention keeps its weights; fused kernels keep less. With checkpointing it includes one layer in
    full, which the backward pass computes again. What that needs besides while it runs is `backward_bytes`.
    """
    lengths = list(lengths)
    if not lengths:
        return 0
    length, e, r = max(lengths), element_bytes, residual_bytes or element_bytes
    d, p, h, c, dropping = config.width, config.pair, config.heads, config.outer, config.dropout > 0
    places = length * length
    z = places * p * e
    # The stream around five norms; q, k, v, output, and feed-forward. z, and softmax weights in fp32 and what dropout
    # makes of them.
    sequence = length * (9 * d * r + e * (7 * d + (2 + dropping) * config.ffn))
    sequence += places * h * (4 + (e if config.attention_dropout or e != 4 else 0) + 4 * (config.attention_dropout > 0))
    factors = length * e * (c + (p + 1) * (c + 1))  # of an outer product
    # z and o of both triangle updates, and the factors of dropout.
    update = factors + 4 * z + dropping * 2 * length * p * e
    if config.triangle_attention:
        # z, norm, qkv (3), output, gate, gated; its weights for every row or column, and with half precision qkv again,
        # in fp32 as torch has them on CPU.
        update += 2 * (8 * z + places * (8 + length * config.triangle_heads * max(e, 4) + 6 * p * (e < 4)))
    layers, updates = config.layers, config.layers - config.skip_last_pair_update
    inputs = layers * z + updates * z  # of every layer and transition
    if config.checkpointing:  # what is computed again includes the transition's input
        kept = inputs + layers * length * d * r + sequence + min(updates, 1) * (update + z)
    else:
        kept = inputs + layers * sequence + updates * update
    return int(len(lengths) * (kept + factors))


def backward_bytes(
    config: RibonanzaNetConfig,
    lengths: Iterable[int],
    *,
    element_bytes: int = 2,
    residual_bytes: int | None = None,
) -> int:
    """The most bytes that the backward pass needs beside what is kept: in a triangle update.

    The gradients of z that enter and leave it; and of the sequences that it works on together (on an accelerator as
    many as 2**30 bytes have room for, layers/triangle_update.py) fields, gates, sides, gradients of the sides and of o,
    and what a piece needs on the way: on a CPU that is little, elsewhere a piece is all of them. Arguments as of
    `activation_bytes`; ``residual_bytes`` is also the width of norms.
    """
    lengths, wide = list(lengths), residual_bytes or element_bytes
    places = max(lengths, default=0) ** 2 * config.pair
    together = min(len(lengths), max(2**30 // max(16 * places * element_bytes, 1), 1))
    return places * (2 * len(lengths) * element_bytes + together * (11 * element_bytes + 4 * wide))


def _outer_parameters(config: RibonanzaNetConfig) -> int:
    c = config.outer
    return (config.width + 1) * c + (c * c + 1) * config.pair
