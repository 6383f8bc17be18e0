"""The bias that RibonanzaNet's attention along the sequence takes from the pair stream: linear(LN(z)), one per head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.pieces import LAYER_NORM_EPS, Total, compute_dtype, piece_tokens, slices, through_norm, wide_normed


def pair_bias(z_BLLp: Tensor, norm: tuple[Tensor, Tensor], weight_hp: Tensor) -> tuple[Tensor, Tensor]:
    """(z, bias [B, h, L, L]), keeping z alone. What else needs z should take the one returned: its gradient is then
    added on the way."""
    dtype = compute_dtype(z_BLLp)
    if torch.compiler.is_compiling():  # compilers choose themselves what to keep
        bias = F.linear(F.layer_norm(z_BLLp, z_BLLp.shape[-1:], *norm, LAYER_NORM_EPS), weight_hp)
        return z_BLLp, bias.permute(0, 3, 1, 2)
    found: tuple[Tensor, Tensor] = _PairBias.apply(z_BLLp, *norm, weight_hp, dtype)  # type: ignore[no-untyped-call]
    return found


class _PairBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, norm: Tensor, norm_bias: Tensor, weight: Tensor, dtype: torch.dtype) -> Any:
        ctx.set_materialize_grads(False)  # after the last layer nobody asks for z
        ctx.dtype = dtype
        z = z.contiguous()
        ctx.save_for_backward(z, norm, norm_bias, weight)
        z_Np = z.flatten(0, 2)
        bias_hN = z.new_empty(len(weight), len(z_Np), dtype=dtype)
        with torch.autocast(z.device.type, enabled=False):
            for piece in slices(len(z_Np), piece_tokens(z.shape[-1], dtype, z.device)):
                x_Tp = wide_normed(z_Np[piece], norm, norm_bias)[1].to(dtype)
                torch.mm(weight.to(dtype), x_Tp.t(), out=bias_hN[:, piece])
        return z, bias_hN.view(len(weight), *z.shape[:3]).transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_beside: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return grad_beside, None, None, None, None
        z, *weights = ctx.saved_tensors
        *norm, weight = weights
        totals = norm_total, norm_bias_total, weight_total = [Total(w) for w in weights]
        grad_z = torch.empty_like(z)
        grad_hN = grad.transpose(0, 1).flatten(1)
        z_Np, grad_z_Np = z.flatten(0, 2), grad_z.flatten(0, 2)
        beside_Np = None if grad_beside is None else grad_beside.contiguous().flatten(0, 2)
        with torch.autocast(z.device.type, enabled=False):
            for piece in slices(len(z_Np), piece_tokens(z.shape[-1], ctx.dtype, z.device)):
                wide_Tp, x, *statistics = wide_normed(z_Np[piece], *norm)
                grad_Th = grad_hN[:, piece].t()
                weight_total.add_product(grad_Th, x.to(ctx.dtype))
                grad_x = torch.mm(grad_Th, weight.to(ctx.dtype))
                through, *of_norm = through_norm(grad_x, wide_Tp, statistics, *norm)
                norm_total.add(of_norm[0])
                norm_bias_total.add(of_norm[1])
                if beside_Np is None:
                    grad_z_Np[piece] = through
                else:
                    torch.add(beside_Np[piece], through, out=grad_z_Np[piece])
        return grad_z, *(total.result() for total in totals), None
