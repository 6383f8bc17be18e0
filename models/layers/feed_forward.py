"""The feed-forward branch, x + Drop(down(Drop(GELU(up(LN(x)))))), keeping x, its inner units and a byte of each output.

See `pieces.py` for why. Dropout of the inner units needs no memory of its own: a dropped unit is kept as -10,000, where
GELU and its derivative are exactly zero in every precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.dropout import draw_dropped, draw_kept, kept_share
from models.layers.pieces import LAYER_NORM_EPS, Total, compute_dtype, normed, piece_tokens, slices, through_norm

DROPPED = -1e4


def feed_forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    up: tuple[Tensor, Tensor],
    down: tuple[Tensor, Tensor],
    dropout: float,
) -> Tensor:
    """[..., d] -> [..., d], x with the branch added. Pairs are weight and bias; ``dropout`` is 0 outside training."""
    if torch.compiler.is_compiling():
        inner = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], *norm, LAYER_NORM_EPS), *up))
        return x + F.dropout(F.linear(F.dropout(inner, dropout), *down), dropout)
    y: Tensor = _FeedForward.apply(x, *norm, *up, *down, dropout, compute_dtype(x))  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *parameters, dropout, dtype = arguments
        norm, (up, up_bias, down, down_bias) = parameters[:2], (p.to(dtype) for p in parameters[2:])
        x_Nd = x.reshape(-1, x.shape[-1])
        y_Nd = torch.empty_like(x_Nd)
        kept_Nd = draw_kept(x_Nd.shape, dropout, x.device) if dropout else None
        ctx.dtype, ctx.scale = dtype, 1 / kept_share(dropout) if dropout else 1.0
        inner: list[Tensor] = []
        step = piece_tokens(len(up), dtype, x.device)
        activated = up.new_empty(min(step, len(x_Nd)), len(up))
        with torch.autocast(x.device.type, enabled=False):
            for piece in slices(len(x_Nd), step):
                h_Td = normed(x_Nd[piece], *norm)[0].to(dtype)
                u_Tf, a_Tf = torch.empty_like(activated[: len(h_Td)]), activated[: len(h_Td)]
                if dropout:
                    dropped_Tf = draw_dropped(u_Tf.shape, dropout, x.device)
                    torch.add(up_bias, dropped_Tf, alpha=DROPPED, out=u_Tf).addmm_(h_Td, up.t())
                else:
                    torch.addmm(up_bias, h_Td, up.t(), out=u_Tf)
                inner.append(u_Tf)
                torch.ops.aten.gelu.out(u_Tf, out=a_Tf)
                out_Td = torch.addmm(down_bias, a_Tf, down.t(), alpha=ctx.scale)
                if kept_Nd is not None:
                    out_Td.mul_(kept_Nd[piece])
                torch.add(x_Nd[piece], out_Td.to(x.dtype), alpha=ctx.scale, out=y_Nd[piece])
        ctx.save_for_backward(x, kept_Nd, *parameters, *inner)
        return y_Nd.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept_Nd, *saved = ctx.saved_tensors
        parameters, inner = saved[:6], saved[6:]
        norm, up, down = parameters[:2], parameters[2].to(ctx.dtype), parameters[4].to(ctx.dtype)
        norm_total, norm_bias_total, up_total, up_bias_total, down_total, down_bias_total = map(Total, parameters)
        x_Nd, grad_Nd = (t.reshape(-1, x.shape[-1]) for t in (x, grad))
        grad_x_Nd = torch.empty_like(x_Nd)
        step = piece_tokens(len(up), ctx.dtype, x.device)
        activated, grad_inner = (up.new_empty(min(step, len(x_Nd)), len(up)) for _ in range(2))
        with torch.autocast(x.device.type, enabled=False):
            for piece, u_Tf in zip(slices(len(x_Nd), step), inner, strict=True):
                a_Tf, grad_u_Tf = activated[: len(u_Tf)], grad_inner[: len(u_Tf)]
                grad_Td = grad_Nd[piece] * ctx.scale
                grad_Td = (grad_Td if kept_Nd is None else grad_Td.mul_(kept_Nd[piece])).to(ctx.dtype)
                down_bias_total.add_rows(grad_Td)
                grad_Td = grad_Td * ctx.scale
                down_total.add_product(grad_Td, torch.ops.aten.gelu.out(u_Tf, out=a_Tf))
                torch.mm(grad_Td, down, out=a_Tf)
                torch.ops.aten.gelu_backward.grad_input(a_Tf, u_Tf, grad_input=grad_u_Tf)
                up_bias_total.add_rows(grad_u_Tf)
                h_Td, *statistics = normed(x_Nd[piece], *norm)
                up_total.add_product(grad_u_Tf, h_Td.to(ctx.dtype))
                through, *of_norm = through_norm(torch.mm(grad_u_Tf, up), x_Nd[piece], statistics, *norm)
                norm_total.add(of_norm[0])
                norm_bias_total.add(of_norm[1])
                torch.add(grad_Nd[piece], through, out=grad_x_Nd[piece])
        totals = (norm_total, norm_bias_total, up_total, up_bias_total, down_total, down_bias_total)
        return grad_x_Nd.view(x.shape), *(total.result() for total in totals), None, None
