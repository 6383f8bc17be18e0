"""The transition of RibonanzaNet's pair stream, z + down(ReLU(up(LN(z)))) (spec 1.3, step 10), keeping z alone.

The backward pass repeats the product with ``up``: a twentieth of a layer's arithmetic at 177 nucleotides, for five
times the bytes of z (see `pieces.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm
from models.layers.pieces import LAYER_NORM_EPS, Total, compute_dtype, piece_tokens, slices, through_norm, wide_normed


class PairTransition(nn.Module):
    """[B, L, L, p] -> [B, L, L, p], z with the transition added; no dropout."""

    def __init__(self, pair: int, inner: int) -> None:
        super().__init__()
        self.norm = HandedNorm(pair)
        self.up = HandedLinear(pair, inner)
        self.down = HandedLinear(inner, pair)

    def forward(self, z: Tensor) -> Tensor:
        weights = (*self.norm(), *self.up(), *self.down())
        if torch.compiler.is_compiling():
            return plain_transition(z, *weights)
        out: Tensor = _Transition.apply(z, *weights, compute_dtype(z))  # type: ignore[no-untyped-call]
        return out


def plain_transition(z: Tensor, norm: Tensor, norm_bias: Tensor, *layers: Tensor) -> Tensor:
    """The same, for compilers, which choose themselves what to keep."""
    up, up_bias, down, down_bias = layers
    x = F.layer_norm(z, z.shape[-1:], norm, norm_bias, LAYER_NORM_EPS)
    return z + F.linear(F.relu(F.linear(x, up, up_bias)), down, down_bias)


class _Transition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *arguments: Any) -> Tensor:
        *weights, ctx.dtype = arguments
        norm, (up, up_bias, down, down_bias) = weights[:2], (w.to(ctx.dtype) for w in weights[2:])
        z = z.contiguous()
        ctx.save_for_backward(z, *weights)
        out = torch.empty_like(z)
        z_Np, out_Np = z.flatten(0, -2), out.flatten(0, -2)
        with torch.autocast(z.device.type, enabled=False):
            for piece in slices(len(z_Np), piece_tokens(len(up), ctx.dtype, z.device)):
                x_Tp = wide_normed(z_Np[piece], *norm)[1].to(ctx.dtype)
                inner_Tf = torch.addmm(up_bias, x_Tp, up.t()).relu_()
                torch.add(z_Np[piece], torch.addmm(down_bias, inner_Tf, down.t()), out=out_Np[piece])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, *weights = ctx.saved_tensors
        norm, (up, up_bias, down, _) = weights[:2], (w.to(ctx.dtype) for w in weights[2:])
        totals = norm_total, norm_bias_total, up_total, up_bias_total, down_total, down_bias_total = [
            Total(weight) for weight in weights
        ]
        grad = grad.contiguous()
        grad_z = torch.empty_like(z)
        z_Np, grad_Np, grad_z_Np = (t.flatten(0, -2) for t in (z, grad, grad_z))
        with torch.autocast(z.device.type, enabled=False):
            for piece in slices(len(z_Np), piece_tokens(len(up), ctx.dtype, z.device)):
                wide_Tp, x, *statistics = wide_normed(z_Np[piece], *norm)
                x_Tp, grad_Tp = x.to(ctx.dtype), grad_Np[piece].to(ctx.dtype)
                inner_Tf = torch.addmm(up_bias, x_Tp, up.t()).relu_()
                down_total.add_product(grad_Tp, inner_Tf)
                down_bias_total.add_rows(grad_Tp)
                grad_Tf = torch.ops.aten.threshold_backward(torch.mm(grad_Tp, down), inner_Tf, 0)
                up_total.add_product(grad_Tf, x_Tp)
                up_bias_total.add_rows(grad_Tf)
                through, *of_norm = through_norm(torch.mm(grad_Tf, up), wide_Tp, statistics, *norm)
                norm_total.add(of_norm[0])
                norm_bias_total.add(of_norm[1])
                torch.add(grad_Np[piece], through, out=grad_z_Np[piece])
        return grad_z, *(total.result() for total in totals), None
