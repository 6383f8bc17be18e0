"""Attention whose weights are few beside its values, as those that all rows of an alignment share: [L, L] for a head.

It keeps queries, keys, values, the weights in fp32 at least and a byte for each; written out, because autograd would
keep the weights three times and give the gradient of keys transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.dropout import draw_kept, kept_share
from models.layers.pieces import slices

CHANNELS = 2048


def tied_attention(qkv_B3HXL: Tensor, is_key_BL: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """(v Drop(P)ᵀ [B, H, X, L], P = softmax(qᵀ k) [B, H, L, L] in fp32 at least), channels X before places L.

    Queries come scaled. ``is_key_BL`` is False for keys that none attends to, None where there are no such; where there
    are no others, weights are equal instead of NaN. ``dropout`` is 0 outside training.
    """
    found: tuple[Tensor, Tensor] = _TiedAttention.apply(qkv_B3HXL, is_key_BL, dropout)  # type: ignore[no-untyped-call]
    return found


def masked_softmax(scores_BHLL: Tensor, is_key_BL: Tensor | None) -> Tensor:
    """In fp32 at least; a finite fill, so that no row is NaN."""
    wide = scores_BHLL if scores_BHLL.dtype == torch.float64 else scores_BHLL.float()
    if is_key_BL is not None:
        wide = wide.masked_fill(~is_key_BL[:, None, None, :], torch.finfo(wide.dtype).min)
    return wide.softmax(-1)


class _TiedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, is_key_BL: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
        q, k, v = qkv.unbind(1)
        ctx.set_materialize_grads(False)
        ctx.scale = 1 / kept_share(dropout) if dropout else 1.0
        with torch.autocast(qkv.device.type, enabled=False):
            probs = masked_softmax(torch.matmul(q.mT, k), is_key_BL)
            kept = draw_kept(probs.shape, dropout, probs.device) if dropout else None
            context = torch.empty_like(v, memory_format=torch.contiguous_format)
            for v_b, used, context_b in zip(v, _used(probs, kept, ctx.scale, v.dtype), context, strict=True):
                _mix(v_b, used.mT, context_b)
        ctx.save_for_backward(qkv, probs, kept)
        return context, probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_probs: Tensor | None) -> tuple[Tensor | None, ...]:
        qkv, probs, kept = ctx.saved_tensors
        if grad is None and grad_probs is None:
            return (None,) * 3
        found = torch.empty_like(qkv) if grad is not None else torch.zeros_like(qkv)
        for b, (q, k, v) in enumerate(qkv):
            with torch.autocast(qkv.device.type, enabled=False):
                through = None if grad_probs is None else grad_probs[b]
                if grad is not None:
                    kept_b = None if kept is None else kept[b]
                    _mix(grad[b], _used(probs[b], kept_b, ctx.scale, v.dtype), found[b, 2])
                    used = _used(torch.bmm(grad[b].mT, v).to(probs.dtype), kept_b, ctx.scale, probs.dtype)
                    through = used if through is None else through + used
                assert through is not None  # one of the two gradients is there
                grad_scores = torch._softmax_backward_data(through, probs[b], -1, probs.dtype).to(q.dtype)
                _mix(k, grad_scores.mT, found[b, 0])
                _mix(q, grad_scores, found[b, 1])
        return found, None, None


def _mix(x_HXL: Tensor, weights_HLL: Tensor, out_HXL: Tensor) -> None:
    """Write x · weights. On CPU some channels at a time: a product as tall and slim as the whole takes half as long
    again."""
    if x_HXL.device.type != "cpu":
        torch.bmm(x_HXL, weights_HLL, out=out_HXL)
        return
    for x_XL, weights_LL, out_XL in zip(x_HXL, weights_HLL, out_HXL, strict=True):
        for some in slices(len(x_XL), CHANNELS):
            torch.mm(x_XL[some], weights_LL, out=out_XL[some])


def _used(weights: Tensor, kept: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """What dropout leaves of the weights, in ``dtype``."""
    return (weights if kept is None else (weights * kept).mul_(scale)).to(dtype)
