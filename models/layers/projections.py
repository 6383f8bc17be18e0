"""The two ends of an attention branch: x -> queries, keys, values of LN(x), and x + Drop(Out(context)).

See `pieces.py` for why. The first keeps x, the second the context and a byte of each output. Between token order,
[B, R, L, H, D], and the order in which an attention multiplies, they go a piece at a time too: ``order`` names the
dimensions of that order by their place in token order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.layers.dropout import draw_kept, kept_share
from models.layers.pieces import Total, compute_dtype, normed, piece_tokens, slices, through_norm

Order = tuple[int, int, int, int, int]
TOKENS_BY_ROW: Order = (0, 1, 2, 3, 4)  # [B, R, L, H, D]
TOKENS_BY_COLUMN: Order = (0, 2, 1, 3, 4)  # [B, L, R, H, D]
HEADS_OF_ALIGNMENT: Order = (0, 3, 2, 1, 4)  # [B, H, L, R, D]: the rows as further dimensions of a head
HEADS_OF_COLUMN: Order = (0, 2, 3, 1, 4)  # [B, L, H, R, D]


def normed_heads(
    x_BRLd: Tensor,
    norm: tuple[Tensor, Tensor],
    qkv: tuple[Tensor, Tensor],
    heads: int,
    order: Order,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, queries times ``scale``, keys, values), the three of LN(x) and each contiguous in ``order``.

    Pairs are weight and bias. What else needs x should take the one returned: its gradient is then added on the way.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _NormedHeads.apply(  # type: ignore[no-untyped-call]
        x_BRLd, *norm, *qkv, heads, order, scale, compute_dtype(x_BRLd)
    )
    return found


def add_heads(x_BRLd: Tensor, context: Tensor, out: tuple[Tensor, Tensor], order: Order, dropout: float) -> Tensor:
    """x + Drop(Out(context)) of a context in ``order``; ``out`` is weight and bias, ``dropout`` 0 outside training."""
    y: Tensor = _AddHeads.apply(  # type: ignore[no-untyped-call]
        x_BRLd, context, *out, order, dropout, compute_dtype(x_BRLd)
    )
    return y


def in_token_order(x: Tensor, order: Order) -> Tensor:
    """The view [B, R, L, H, D] of a tensor in ``order``."""
    return x.permute([order.index(i) for i in range(5)])


class _NormedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *parameters, heads, order, scale, dtype = arguments
        *norm, weight, bias = parameters
        ctx.order, ctx.scale, ctx.dtype = order, scale, dtype
        ctx.save_for_backward(x, *parameters)
        weight, bias = weight.to(dtype), bias.to(dtype)
        shape = (*x.shape[:3], heads, x.shape[3] // heads)
        found = tuple(x.new_empty([shape[i] for i in order], dtype=dtype) for _ in range(3))
        views = [in_token_order(t, order) for t in found]
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), dtype):
                h_Td = normed(x[part], *norm)[0].to(dtype).flatten(0, -2)
                qkv = torch.addmm(bias, h_Td, weight.t()).view(*x[part].shape[:-1], 3, *shape[3:])
                for view, piece, factor in zip(views, qkv.unbind(-3), (scale, 1, 1), strict=True):
                    torch.mul(piece, factor, out=view[part]) if factor != 1 else view[part].copy_(piece)
        return x, *found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_beside: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        *norm, weight, _ = parameters
        weight = weight.to(ctx.dtype)
        norm_total, norm_bias_total, total, bias_total = map(Total, parameters)
        views = [in_token_order(g, ctx.order) for g in grads]
        grad_x = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), ctx.dtype):
                shape = views[0][part].shape
                grad_Tn = weight.new_empty(shape[:-2].numel(), len(weight))
                pieces = grad_Tn.view(*shape[:-2], 3, *shape[-2:]).unbind(-3)
                for piece, view, factor in zip(pieces, views, (ctx.scale, 1, 1), strict=True):
                    torch.mul(view[part], factor, out=piece) if factor != 1 else piece.copy_(view[part])
                h, *statistics = normed(x[part], *norm)
                bias_total.add_rows(grad_Tn)
                total.add_product(grad_Tn, h.to(ctx.dtype).flatten(0, -2))
                grad_h = torch.mm(grad_Tn, weight).view(h.shape)
                through, *of_norm = through_norm(grad_h, x[part], statistics, *norm)
                norm_total.add(of_norm[0]), norm_bias_total.add(of_norm[1])
                torch.add(grad_beside[part], through, out=grad_x[part])
        totals = (norm_total, norm_bias_total, total, bias_total)
        return grad_x, *(t.result() for t in totals), None, None, None, None


class _AddHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: Tensor, *arguments: Any) -> Tensor:
        weight, bias, order, dropout, dtype = arguments
        ctx.order, ctx.dtype = order, dtype
        ctx.scale = 1 / kept_share(dropout) if dropout else 1.0
        kept = draw_kept(x.shape, dropout, x.device) if dropout else None
        ctx.save_for_backward(context, kept, weight, bias)
        weight, bias = weight.to(dtype), bias.to(dtype)
        view, y = in_token_order(context, order), torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), dtype):
                out = torch.addmm(bias, view[part].reshape(-1, len(weight)), weight.t()).view(x[part].shape)
                if kept is not None:
                    out.mul_(kept[part])
                torch.add(x[part], out.to(x.dtype), alpha=ctx.scale, out=y[part])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        context, kept, *parameters = ctx.saved_tensors
        weight = parameters[0].to(ctx.dtype)
        total, bias_total = map(Total, parameters)
        grad_context = torch.empty_like(context)
        view, grad_view = (in_token_order(t, ctx.order) for t in (context, grad_context))
        with torch.autocast(grad.device.type, enabled=False):
            for part in _parts(grad, len(weight), ctx.dtype):
                out = grad[part] * ctx.scale
                out_Td = (out if kept is None else out.mul_(kept[part])).to(ctx.dtype).flatten(0, -2)
                bias_total.add_rows(out_Td)
                total.add_product(out_Td, view[part].reshape(-1, len(weight)))
                grad_view[part].copy_(torch.mm(out_Td, weight).view(view[part].shape))
        return grad, grad_context, total.result(), bias_total.result(), None, None, None


def _parts(x_BRLd: Tensor, width: int, dtype: torch.dtype) -> Iterator[tuple[int, slice]]:
    """Index of every alignment with a few of its rows each."""
    batch, rows, columns, _ = x_BRLd.shape
    step = piece_tokens(width, dtype, x_BRLd.device) // columns
    return ((b, piece) for b in range(batch) for piece in slices(rows, step))
