"""Activation checkpointing of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run(block: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """``block(*inputs)``; with ``recompute`` its activations are computed again in the backward pass, and not kept.

    Dropout then draws the same numbers again: the generator's state is kept with each block.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
