"""The bias that RibonanzaNet's attention along the sequence takes from the pair stream: linear(LN(z)), one per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.pair_rows import centred, centred_backward, linear, pieces, plain_centred, wide_zeros


def pair_bias(z_BpLL: Tensor, weight_hp: Tensor, shift_h: Tensor) -> Tensor:
    """[B, h, L, L] of z; the norm's own weights are already in ``weight`` and ``shift`` (layers/handed.py)."""
    if torch.compiler.is_compiling():  # compilers choose themselves what to keep
        bias = weight_hp @ plain_centred(z_BpLL) + shift_h[:, None]
        return bias.view(z_BpLL.shape[0], -1, *z_BpLL.shape[2:])
    out: Tensor = PairBias.apply(z_BpLL, weight_hp, shift_h)  # type: ignore[no-untyped-call]
    return out


class PairBias(torch.autograd.Function):
    """weight · LN(z) + shift, keeping z alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        weight, shift, z = weight.to(z.dtype), shift.to(z.dtype), z.contiguous()
        out = z.new_empty(z.shape[0], weight.shape[0], *z.shape[2:])
        with torch.autocast(z.device.type, enabled=False):
            for z_pLL, out_hLL in zip(z, out, strict=True):
                for _, places in pieces(z_pLL):
                    x, _ = centred(z_pLL.flatten(1)[:, places])
                    out_hLL.flatten(1)[:, places] = linear(weight, shift, x)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, weight = ctx.saved_tensors
        z, grad, grad_weight = z.contiguous(), grad.contiguous(), wide_zeros(weight)
        grad_z, weight = torch.empty_like(z), weight.to(z.dtype)
        for z_pLL, grad_hLL, grad_z_pLL in zip(z, grad, grad_z, strict=True):
            for _, places in pieces(z_pLL):
                x, scale = centred(z_pLL.flatten(1)[:, places])
                grad_hN = grad_hLL.flatten(1)[:, places]
                grad_weight += grad_hN @ x.to(z.dtype).mT
                grad_z_pLL.flatten(1)[:, places] = centred_backward(weight.mT @ grad_hN, x, scale)
        return grad_z, grad_weight, grad.sum((0, 2, 3))
