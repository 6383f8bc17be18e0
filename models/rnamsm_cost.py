"""What an RNA-MSM model costs, from its configuration alone: parameters, training FLOPs, activation memory.

Estimates for planning and for reporting utilisation; nothing here runs a model. The numbers are re-exported by
`models.rnamsm`. Source: RNA-MSM specification 10 and 12.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.rnamsm import RNAMSMConfig

MAX_ROWS = 1024


def count_parameters(config: RNAMSMConfig) -> int:
    """Trainable parameters (spec 12); the tied matrix counts once, the row embedding (which does nothing) too."""
    d, f, v = config.width, config.ffn, config.vocab
    attention = 4 * d * d + 4 * d
    block = 2 * attention + 2 * d * f + f + d + 3 * 2 * d
    embedding = v * d + (config.max_positions + 2) * d + MAX_ROWS + 2 * d
    return config.layers * block + embedding + 2 * d + (d * d + d + 2 * d + v)


def flops(config: RNAMSMConfig, shapes: Iterable[tuple[int, int]], targets: int | None = None) -> float:
    """FLOPs of one forward and backward pass over alignments of (rows, columns with `<cls>`), ``targets`` predicted.

    Three times the forward pass of spec 10.1: of every token and layer 16 d² + 4 d f for the linear layers (12 d² in an
    alignment of one row, where column attention is its values alone) and 4 d (L + R) for the attentions, and the head
    for every target (every token is one if ``targets`` is None). What the last layer does after its attentions, the
    2 d² of an output and 4 d f, is done for targets alone. Useful work only: recomputation under checkpointing does not
    count, so that this over time and peak is the model-FLOPs utilisation.
    """
    d, total, tokens = config.width, 0.0, 0
    last = 2 * d * d + 4 * d * config.ffn
    for rows, columns in shapes:
        linear = (16 if rows > 1 else 12) * d * d + 4 * d * config.ffn
        mixing = 4 * d * (columns + (rows if rows > 1 else 0))
        total += config.layers * rows * columns * (linear + mixing)
        tokens += rows * columns
    targets = tokens if targets is None else targets
    head = targets * (2 * d * d + 2 * config.vocab * d)
    return 3.0 * (total - (tokens - targets) * last + head)


def activation_bytes(
    config: RNAMSMConfig,
    rows: int,
    columns: int,
    targets: int | None = None,
    *,
    element_bytes: int = 2,
    residual_bytes: int | None = None,
) -> int:
    """Bytes of activations that the backward pass keeps for one alignment of rows x columns (`<cls>` included).

    ``element_bytes`` is the width of the compute dtype (2 for bf16), ``residual_bytes`` that of the stream between the
    blocks (4 under fp32-parameter autocast; default: as the compute dtype). For the eager model with a fused kernel for
    column attention; one that stores attention probabilities (the CPU's with attention dropout) keeps more.
    """
    e, residual, tokens = element_bytes, residual_bytes or element_bytes, rows * columns
    targets = tokens if targets is None else targets
    block, spared = _block_bytes(config, rows, columns, targets, e, residual)
    d = config.width
    if config.checkpointing:  # the input of every block, and one block at a time in full
        blocks = config.layers * tokens * d * residual + (block if config.layers > 1 else block - spared)
    else:
        blocks = config.layers * block - spared
    ends = tokens * d * (2 * residual + (config.residual_dropout > 0))
    head = targets * (4 * d * e + config.vocab * (e + 8))  # logits, fp32 copy and softmax
    return int(blocks + ends + head)


def _block_bytes(config: RNAMSMConfig, rows: int, columns: int, targets: int, e: int, residual: int) -> tuple[int, int]:
    """(what the backward pass keeps of a block, how much less it is of the last one, where only targets go on)."""
    d, f, tokens = config.width, config.ffn, rows * columns
    # Stream: the inputs of three layer norms. Each attention: q, k, v, output; feed-forward: its inner units before
    # GELU, which also say what was dropped (layers/pieces.py). The other masks of dropout take one byte, the statistics
    # of softmax four.
    stream, branches = 3 * d * residual, (8 * d + f) * e
    masks = 3 * d * (config.residual_dropout > 0)
    statistics = 4 * config.heads
    maps = config.heads * columns * columns * (4 + (e + 1 if config.attention_dropout else e * (e < 4)))
    block = tokens * (stream + branches + masks + statistics) + maps
    # After the attentions of the last block: the stream, two masks and the inner units of targets alone, for which the
    # attention's output is held once more.
    spared = (tokens - targets) * (d * residual + f * e + 2 * masks // 3) - (targets < tokens) * targets * d * e
    return block, spared


def backward_bytes(
    config: RNAMSMConfig,
    rows: int,
    columns: int,
    targets: int | None = None,
    *,
    element_bytes: int = 2,
    residual_bytes: int | None = None,
) -> int:
    """The most bytes that the backward pass works in, beside what is kept when it begins; arguments as above.

    In a feed-forward branch its inner units after GELU and their gradient; gradients of the stream before and after it;
    the norm computed again, its gradient and the stream's through it (layers/feed_forward.py). That of the last block
    has targets alone, and when the one before it is reached, what was kept of the last block is free. In an attention
    the gradients of its context, queries, keys and values, and of the stream. A CPU works through a part at a time.
    """
    d, e, tokens = config.width, element_bytes, rows * columns
    residual = residual_bytes or e
    targets = tokens if targets is None else targets
    feed_forward = 2 * config.ffn * e + d * (5 * residual + e)
    attention = tokens * d * (4 * e + 3 * residual)
    if config.checkpointing and config.layers > 1:
        return tokens * feed_forward
    block, spared = _block_bytes(config, rows, columns, targets, e, residual)
    before = tokens * feed_forward - (block - spared) if config.layers > 1 else 0
    return max(targets * feed_forward, attention, before)
