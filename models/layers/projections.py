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
CHANNELS_FIRST: Order = (0, 3, 4, 1, 2)  # [B, H, D, R, L]: of a head [D · R, L], the rows as further dimensions
HEADS_OF_COLUMN: Order = (0, 2, 3, 1, 4)  # [B, L, H, R, D]


def normed_heads(
    x_BRLd: Tensor,
    norm: tuple[Tensor, Tensor],
    qkv: tuple[Tensor, Tensor],
    heads: int,
    order: Order,
    scale: float = 1.0,
    first: int = 0,
) -> tuple[Tensor, ...]:
    """(x, queries times ``scale``, keys, values), the three of LN(x) and each contiguous in ``order``.

    With channels first (x, all three in one tensor [B, 3, H, D, R, L]). Pairs are weight and bias. What else needs x
    should take the one returned: its gradient is then added on the way. ``first`` 2: (x, values) alone. The gradients
    of the parameters are whole all the same, and come in the same order: ZeRO sums over ranks in the order in which
    they come.
    """
    found: tuple[Tensor, ...] = _NormedHeads.apply(  # type: ignore[no-untyped-call]
        x_BRLd, *norm, *qkv, heads, order, scale, first, compute_dtype(x_BRLd)
    )
    return found


def add_heads(x_BRLd: Tensor, context: Tensor, out: tuple[Tensor, Tensor], order: Order, dropout: float) -> Tensor:
    """x + Drop(Out(context)) of a context in ``order``; ``out`` is weight and bias, ``dropout`` 0 outside training."""
    y: Tensor = _AddHeads.apply(  # type: ignore[no-untyped-call]
        x_BRLd, context.contiguous(), *out, order, dropout, compute_dtype(x_BRLd)
    )
    return y


def in_token_order(x: Tensor, order: Order) -> Tensor:
    """The view [B, R, L, H, D] of a tensor in ``order``."""
    return x.permute([order.index(i) for i in range(5)])


class _NormedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *parameters, heads, order, scale, first, dtype = arguments
        *norm, weight, bias = parameters
        ctx.order, ctx.scale, ctx.dtype = order, scale, dtype
        ctx.wanted = slice(first * x.shape[3], None)
        ctx.save_for_backward(x, *parameters)
        weight, bias = (_scaled(p, scale)[ctx.wanted].to(dtype) for p in (weight, bias))
        shape = (*x.shape[:3], heads, x.shape[3] // heads)
        ordered = [shape[i] for i in order]
        if order == CHANNELS_FIRST:
            found: tuple[Tensor, ...] = (x.new_empty(ordered[0], 3 - first, *ordered[1:], dtype=dtype),)
        else:
            found = tuple(x.new_empty(ordered, dtype=dtype) for _ in range(3 - first))
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), dtype):
                h_Td = normed(x[part], *norm)[0].to(dtype).flatten(0, -2)
                if order == CHANNELS_FIRST:
                    torch.addmm(bias, h_Td, weight.t(), out=_matrix(found[0], order, part))
                    continue
                qkv = torch.addmm(bias, h_Td, weight.t()).view(*x[part].shape[:-1], 3 - first, *shape[3:])
                for tensor, piece in zip(found, qkv.unbind(-3), strict=True):
                    in_token_order(tensor, order)[part].copy_(piece)
        return x, *found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_beside: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        norm, weight = parameters[:2], _scaled(parameters[2], ctx.scale)[ctx.wanted].to(ctx.dtype)
        norm_total, norm_bias_total, total, bias_total = map(Total, parameters)
        grads = tuple(grad.contiguous() for grad in grads)
        grad_x = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), ctx.dtype):
                grad_Tn = _read_all(grads, ctx.order, part)
                h, *statistics = normed(x[part], *norm)
                bias_total.add_rows(grad_Tn, ctx.wanted)
                total.add_product(grad_Tn, h.to(ctx.dtype).flatten(0, -2), ctx.wanted)
                grad_h = torch.mm(grad_Tn, weight).view(h.shape)
                through, *of_norm = through_norm(grad_h, x[part], statistics, *norm)
                norm_total.add(of_norm[0])
                norm_bias_total.add(of_norm[1])
                torch.add(grad_beside[part], through, out=grad_x[part])
        found = (_scaled(t.sum, ctx.scale).to(t.dtype) for t in (total, bias_total))
        return grad_x, norm_total.result(), norm_bias_total.result(), *found, None, None, None, None, None


class _AddHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: Tensor, *arguments: Any) -> Tensor:
        weight, bias, order, dropout, dtype = arguments
        ctx.order, ctx.dtype = order, dtype
        ctx.scale = 1 / kept_share(dropout) if dropout else 1.0
        kept = draw_kept(x.shape, dropout, x.device) if dropout else None
        ctx.save_for_backward(context, kept, weight, bias)
        weight, bias = weight.to(dtype), bias.to(dtype)
        y = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for part in _parts(x, len(weight), dtype):
                out = torch.addmm(bias, _read(context, order, part), weight.t()).view(x[part].shape)
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
        grad_context = torch.empty_like(context, memory_format=torch.contiguous_format)
        with torch.autocast(grad.device.type, enabled=False):
            for part in _parts(grad, len(weight), ctx.dtype):
                out = grad[part] * ctx.scale
                out_Td = (out if kept is None else out.mul_(kept[part])).to(ctx.dtype).flatten(0, -2)
                bias_total.add_rows(out_Td)
                total.add_product(out_Td, _read(context, ctx.order, part))
                _write_product(grad_context, ctx.order, part, out_Td, weight)
        return grad, grad_context, total.result(), bias_total.result(), None, None, None


def _scaled(qkv: Tensor, scale: float) -> Tensor:
    """Weight or bias, the queries' third of it times ``scale``: that spares a pass over queries."""
    if scale == 1:
        return qkv
    q, *others = qkv.chunk(3)
    return torch.cat((q * scale, *others))


def _matrix(x: Tensor, order: Order, part: tuple[int, slice]) -> Tensor | None:
    """[T, n], a view of a part of a tensor in ``order``, where that is a matrix in its memory."""
    alignment, rows = part
    if order == CHANNELS_FIRST:
        piece = x[alignment][..., rows, :]
        return piece.view(piece.shape[:-2].numel(), -1).t()
    if order == TOKENS_BY_ROW:
        return x[part].view(-1, x.shape[-2:].numel())
    return None


def _read_all(qkv: tuple[Tensor, ...], order: Order, part: tuple[int, slice]) -> Tensor:
    """[T, 3d] of a part of queries, keys and values."""
    if order == CHANNELS_FIRST:
        return _read(qkv[0], order, part)
    views = [in_token_order(x, order)[part] for x in qkv]
    return torch.stack(views, -3).view(views[0].shape[:-2].numel(), -1)


def _read(x: Tensor, order: Order, part: tuple[int, slice]) -> Tensor:
    """[T, d] of a part of a tensor in ``order``."""
    matrix = _matrix(x, order, part)
    return in_token_order(x, order)[part].flatten(2).flatten(0, 1) if matrix is None else matrix


def _write_product(x: Tensor, order: Order, part: tuple[int, slice], a_Tn: Tensor, b_nd: Tensor) -> None:
    """a · b into a part of a tensor in ``order``."""
    matrix = _matrix(x, order, part)
    if matrix is not None:
        torch.mm(a_Tn, b_nd, out=matrix)
        return
    view = in_token_order(x, order)[part]
    view.copy_(torch.mm(a_Tn, b_nd).view(view.shape))


def _parts(x_BRLd: Tensor, width: int, dtype: torch.dtype) -> Iterator[tuple[int, slice]]:
    """Index of every alignment with a few of its rows each."""
    batch, rows, columns, _ = x_BRLd.shape
    step = piece_tokens(width, dtype, x_BRLd.device) // columns
    return ((b, piece) for b in range(batch) for piece in slices(rows, step))
