"""Attention whose weights are few beside its values, as those that all rows of an alignment share: [L, L] for a head.

It keeps queries, keys, values, the weights in fp32 at least and a byte for each; written out, because autograd would
keep the weights three times and give the gradient of keys transposed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.dropout import draw_kept, kept_share


def tied_attention(
    q_BHXL: Tensor, k_BHXL: Tensor, v_BHXL: Tensor, is_key_BL: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """(v Drop(P)ᵀ [B, H, X, L], P = softmax(qᵀ k) [B, H, L, L] in fp32 at least), channels X before places L.

    Queries come scaled. ``is_key_BL`` is False for keys that none attends to, None where there are no such; where there
    are no others, weights are equal instead of NaN. ``dropout`` is 0 outside training.
    """
    found: tuple[Tensor, Tensor] = _TiedAttention.apply(  # type: ignore[no-untyped-call]
        q_BHXL, k_BHXL, v_BHXL, is_key_BL, dropout
    )
    return found


def masked_softmax(scores_BHLL: Tensor, is_key_BL: Tensor | None) -> Tensor:
    """In fp32 at least; a finite fill, so that no row is NaN."""
    wide = scores_BHLL if scores_BHLL.dtype == torch.float64 else scores_BHLL.float()
    if is_key_BL is not None:
        wide = wide.masked_fill(~is_key_BL[:, None, None, :], torch.finfo(wide.dtype).min)
    return wide.softmax(-1)


class _TiedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_key_BL: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.scale = 1 / kept_share(dropout) if dropout else 1.0
        with torch.autocast(q.device.type, enabled=False):
            probs = masked_softmax(torch.matmul(q.mT, k), is_key_BL)
            kept = draw_kept(probs.shape, dropout, probs.device) if dropout else None
            context = torch.matmul(v, _used(probs, kept, ctx.scale, v.dtype).mT)
        ctx.save_for_backward(q, k, v, probs, kept)
        return context, probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_probs: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, probs, kept = ctx.saved_tensors
        grad_v = None
        with torch.autocast(q.device.type, enabled=False):
            if grad is not None:
                grad_v = torch.matmul(grad, _used(probs, kept, ctx.scale, v.dtype))
                through = _used(torch.matmul(grad.mT, v).to(probs.dtype), kept, ctx.scale, probs.dtype)
                grad_probs = through if grad_probs is None else grad_probs + through
            if grad_probs is None:
                return (None,) * 5
            grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype).to(q.dtype)
            return torch.matmul(k, grad_scores.mT), torch.matmul(q, grad_scores), grad_v, None, None


def _used(weights: Tensor, kept: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    """What dropout leaves of the weights, in ``dtype``."""
    return (weights if kept is None else (weights * kept).mul_(scale)).to(dtype)
