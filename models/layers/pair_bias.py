"""The bias that RibonanzaNet's attention along the sequence takes from the pair stream: linear(LN(z)), one per head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.pair_rows import NORM_EPS, centred, centred_backward, row_slices, wide_zeros


def pair_bias(z_BLLp: Tensor, weight_hp: Tensor, shift_h: Tensor) -> Tensor:
    """[B, h, L, L] of z; the norm's own weights are already in ``weight`` and ``shift`` (layers/handed.py)."""
    if torch.compiler.is_compiling():  # compilers choose themselves what to keep
        x = F.layer_norm(z_BLLp, z_BLLp.shape[-1:], eps=NORM_EPS).to(z_BLLp.dtype)
        return F.linear(x, weight_hp, shift_h).permute(0, 3, 1, 2)
    out: Tensor = PairBias.apply(z_BLLp, weight_hp, shift_h)  # type: ignore[no-untyped-call]
    return out


class PairBias(torch.autograd.Function):
    """weight · LN(z) + shift without keeping LN(z), written with the heads in front."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        weight, shift = weight.to(z.dtype), shift.to(z.dtype)[:, None]
        out = z.new_empty(z.shape[0], weight.shape[0], *z.shape[1:3])
        with torch.autocast(z.device.type, enabled=False):
            for b in range(z.shape[0]):
                for rows, places in row_slices(z[b]):
                    x = centred(z[b, rows].flatten(0, 1))[0]
                    out[b].flatten(1)[:, places] = torch.addmm(shift, weight, x.mT)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, weight = ctx.saved_tensors
        grad_z, grad_weight = torch.empty_like(z), wide_zeros(weight)
        grad = grad.contiguous()
        weight = weight.to(z.dtype)
        for b in range(z.shape[0]):
            grad_hN = grad[b].flatten(1)
            for rows, places in row_slices(z[b]):
                z_Np = z[b, rows].flatten(0, 1)
                x, mean, scale = centred(z_Np)
                grad_weight += grad_hN[:, places] @ x
                grad_x = grad_hN[:, places].mT @ weight
                grad_z[b, rows] = centred_backward(grad_x, z_Np, mean, scale).view_as(z[b, rows])
        return grad_z, grad_weight, grad.sum((0, 2, 3))
