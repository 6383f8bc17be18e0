"""Random numbers of dropout, on every device: eight bits for a place, and one byte kept for it.

On CPU torch's dropout takes six nanoseconds for a place, and keeps a number of the tensor's own type for the backward
pass. Here one 64-bit draw of the default generator serves eight places (a third of a nanosecond each) and a byte is
kept, as integers, which multiply faster than booleans.

The drop probability is rounded to a multiple of 2**-16, and what is kept is scaled by just that. Eight bits resolve
only 2**-8; so a place is dropped if its byte is below a threshold that is itself drawn, one of two neighbours, for one
of `_PERIOD` places at a time. That makes the probability of each place exact; two places with one threshold are
correlated by less than 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16
_PERIOD = 4096


def kept_share(probability: float) -> float:
    """The share of places that stay: 1 - ``probability``, rounded to a multiple of 2**-16 in [2**-8, 1 - 2**-16]."""
    return 1 - _levels(probability) / _LEVELS


def draw_kept(shape: Sequence[int], probability: float, device: torch.device) -> Tensor:
    """uint8 of ``shape``: 0 with ``probability``, else 1."""
    draws, threshold = _draws(shape, probability, device)
    return draws.ge_(threshold).view(-1)[: math.prod(shape)].view(shape)


def draw_dropped(shape: Sequence[int], probability: float, device: torch.device) -> Tensor:
    """uint8 of ``shape``: 1 with ``probability``, else 0."""
    draws, threshold = _draws(shape, probability, device)
    return draws.lt_(threshold).view(-1)[: math.prod(shape)].view(shape)


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """``F.dropout``; on CPU the quicker one of this file."""
    if not training or probability == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    y: Tensor = _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept = draw_kept(x.shape, probability, x.device)
        ctx.scale = 1 / kept_share(probability)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept * ctx.scale, None


def _levels(probability: float) -> int:
    """How many of 2**16 equal chances drop a place: never none, never all."""
    return min(max(round(probability * _LEVELS), 1), _LEVELS - 2**8)


def _draws(shape: Sequence[int], probability: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random bytes for at least the places of ``shape``, [n, _PERIOD], and the thresholds [_PERIOD] to drop below."""
    whole, rest = divmod(_levels(probability), 2**8)
    draws = _bytes(-(-math.prod(shape) // _PERIOD), device)
    return draws, _bytes(1, device)[0].lt_(rest).add_(whole)


def _bytes(rows: int, device: torch.device) -> Tensor:
    draws = torch.empty(rows, _PERIOD // 8, dtype=torch.int64, device=device)
    return draws.random_(-(2**63), None).view(torch.uint8)
