"""Parts of a residual branch computed a piece of the tokens at a time, with derivatives written out.

Why: autograd keeps the input of every operation, which is 45 numbers of the width d for a token and layer of RNA-MSM.
All but those that only a matrix product gives back (the stream, queries, keys, values, the attention's output, inner
units before GELU) are cheap to compute again in the backward pass, and worked through a piece at a time the copies
never exist whole: a piece stays in the processor's cache, and its memory serves the next one.

What is common to them is here; the parts themselves are in `projections.py` and `feed_forward.py`, and of
RibonanzaNet's pair stream, where autograd keeps thirty tensors for a layer, in `pair_bias.py`, `triangle_update.py` and
`pair_transition.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LAYER_NORM_EPS = 1e-5
# Bytes of the widest tensor of a piece. On CPU: as many as its cache holds, but enough tokens for a matrix product
# to be efficient. Elsewhere a launch costs more than memory: as many as a training step has.
CACHED, TOKENS, WHOLE = 2**20, 512, 2**30
ALL = slice(None)


def piece_tokens(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens are worked on at a time, where the widest tensor has ``width`` channels."""
    if device.type != "cpu":
        return max(WHOLE // (width * dtype.itemsize), 1)
    # In half precision a matrix product is quick, and adding it to a total in fp32 takes as long for few as for many.
    return max(CACHED // (width * dtype.itemsize), TOKENS if dtype.itemsize > 2 else 2 * TOKENS)


def slices(length: int, step: int) -> Iterator[slice]:
    """Slices of range(length), of ``step`` each, but one at least."""
    step = max(step, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the matrix products of x are computed in: autocast's type where it is on, else that of x."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(layer norm of x over its last dimension, mean, reciprocal deviation)"""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)


def wide_normed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x in the precision of the norm's weights, its layer norm, mean, reciprocal deviation)"""
    wide = x.to(torch.promote_types(x.dtype, weight.dtype))
    return (wide, *normed(wide, weight, bias))


def through_norm(
    grad: Tensor, x: Tensor, statistics: Sequence[Tensor], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of `normed`."""
    backward = torch.ops.aten.native_layer_norm_backward
    found: tuple[Tensor, Tensor, Tensor] = backward(
        grad.to(x.dtype), x, x.shape[-1:], *statistics, weight, bias, [True, True, True]
    )
    return found


class Total:
    """The gradient of a parameter, summed over pieces in fp32 at least."""

    def __init__(self, parameter: Tensor) -> None:
        self.dtype = parameter.dtype
        wide = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
        self.sum = torch.zeros(parameter.shape, dtype=wide, device=parameter.device)

    def add(self, part: Tensor) -> None:
        self.sum.add_(part)

    def add_rows(self, x_Tn: Tensor, part: slice = ALL) -> None:
        """Σ over tokens, to a part of the parameter."""
        self.sum[part].add_(x_Tn.sum(0))

    def add_product(self, out_To: Tensor, in_Ti: Tensor, part: slice = ALL) -> None:
        """outᵀ · in, the gradient of a matrix [o, i], to a part of its rows."""
        if out_To.dtype == self.sum.dtype:
            self.sum[part].addmm_(out_To.t(), in_Ti)
        else:
            self.sum[part].add_(torch.mm(out_To.t(), in_Ti))

    def result(self) -> Tensor:
        return self.sum.to(self.dtype)
