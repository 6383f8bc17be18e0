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
    and peak is the model-FLOPs utilisation; torch's counter sees the recomputation too (`recomputed_flops`). ``targets`` is there for the common interface: the
    head's share is nothing.
    """
    return 3.0 * sum(_forward(config, length) for length in lengths)


def recomputed_flops(config: RibonanzaNetConfig, lengths: Iterable[int]) -> float:
    """FLOPs of the backward pass beyond twice the forward pass: what torch's counter sees besides `flops`."""
    return sum(_recomputed(config, length) for length in lengths)


def _recomputed(config: RibonanzaNetConfig, length: int) -> float:
    """Of z the transition's inner layer and the projections of both triangle updates; with checkpointing z itself too,
    up to the second triangle product, and the sequence stream."""
    p, places = config.pair, length**2
    updates = config.layers - config.skip_last_pair_update
    again = places * (8 + 2 * 10) * p * p
    if not config.checkpointing:
        return updates * again
    again += places * (2 * (config.outer + 1) * p + 12 * p * p) + length**3 * 4 * p
    return updates * again + _sequence(config, length)


def _forward(config: RibonanzaNetConfig, length: int) -> float:
    """FLOPs of the forward pass over one sequence; two per multiplication and addition (spec 11.1)."""
    d, p, c = config.width, config.pair, config.outer
    updates = config.layers - config.skip_last_pair_update
    outer = length * (2 * d * c + 2 * c * c * p) + length**2 * 2 * (c + 1) * p  # + 1: the bias is part of the product
    update = outer + length**2 * (2 * 12 * p * p + 16 * p * p) + length**3 * 4 * p
    if config.triangle_attention:
        update += 2 * (length**2 * (10 * p * p + 2 * p * config.triangle_heads) + length**3 * 4 * p)
    return outer + length * 2 * d * config.channels + _sequence(config, length) + updates * update


def _sequence(config: RibonanzaNetConfig, length: int) -> float:
    """Of all layers of the sequence stream, with the bias that its attention takes from z."""
    d = config.width
    layer = length * (8 * d * d + 4 * d * config.ffn) + length**2 * (2 * config.pair * config.heads + 4 * d)
    kernels = (config.layers - 1) * config.kernel_size + 1
    return config.layers * layer + kernels * length * 2 * d * d


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
    in the compute dtype in any case). The estimate holds for the eager model on CPU, where triangle attention keeps its
    weights; fused kernels and torch.compile keep less. With checkpointing it includes the sequence stream of one layer
    in full, which the backward pass makes again. What it needs besides while it runs is `working_bytes`.
    """
    lengths = list(lengths)
    if not lengths:
        return 0
    length, e, r = max(lengths), element_bytes, residual_bytes or element_bytes
    d, p, h, c, dropping = config.width, config.pair, config.heads, config.outer, config.dropout > 0
    places = length * length
    z = places * p * e
    # The stream around five norms; q, k, v, output, and feed-forward. Softmax weights in fp32 and what dropout makes
    # of them.
    sequence = length * (9 * d * r + e * (7 * d + (2 + dropping) * config.ffn))
    sequence += places * h * (4 + (e if config.attention_dropout or e != 4 else 0) + 4 * (config.attention_dropout > 0))
    factors = length * e * (c + (p + 1) * (c + 1))  # of an outer product
    update = factors + dropping * 2 * length * p * e + z  # z before the transition
    if not config.checkpointing:
        update += 4 * z  # z after the outer product and after the first triangle update; both triangle products
    if config.triangle_attention:  # z, norm, qkv (3), output, gate, gated; and its weights for every row or column
        update += 2 * (8 * z + places * (8 + length * config.triangle_heads * e))
    updates = config.layers - config.skip_last_pair_update
    streams = length * d * r + sequence if config.checkpointing else config.layers * sequence
    if config.checkpointing:  # the inputs of every layer
        streams += (config.layers - 1) * length * d * r
    return int(len(lengths) * (streams + config.layers * z + updates * update + factors) + 8 * places)


def working_bytes(config: RibonanzaNetConfig, lengths: Iterable[int], *, element_bytes: int = 2) -> int:
    """The most bytes that the backward pass needs besides what is kept: gradients of z, and one sequence's update.

    Of the batch the gradients of z that enter and leave a triangle update. Of one sequence the update's sides (2) and
    gradients of them (2), fields and gates (4), gradients of the product and of z (3), and with checkpointing what it
    makes again (4).
    """
    lengths = list(lengths)
    z = max(lengths, default=0) ** 2 * config.pair * element_bytes
    return (2 * len(lengths) + (15 if config.checkpointing else 11)) * z


def _outer_parameters(config: RibonanzaNetConfig) -> int:
    c = config.outer
    return (config.width + 1) * c + (c * c + 1) * config.pair
