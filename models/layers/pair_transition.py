"""The transition of the pair stream, z + down(ReLU(up(LN(z)))), whose inner tensor of 4p channels never exists whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm, after_norm
from models.layers.pair_rows import NORM_EPS, centred, centred_backward, row_slices, wide_zeros


class PairTransition(nn.Module):
    """z [B, L, L, p] -> z + down(ReLU(up(LN(z)))), the same shape; no dropout."""

    def __init__(self, pair: int, inner: int) -> None:
        super().__init__()
        self.norm = HandedNorm(pair, eps=NORM_EPS)
        self.up = HandedLinear(pair, inner)
        self.down = HandedLinear(inner, pair)

    def forward(self, z_BLLp: Tensor) -> Tensor:
        weights = (*after_norm(self.norm, self.up), *self.down())
        if torch.compiler.is_compiling():
            return plain_transition(z_BLLp, *weights)
        out: Tensor = Transition.apply(z_BLLp, *weights)  # type: ignore[no-untyped-call]
        return out


def plain_transition(z: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """The same as `Transition`, for compilers, which choose themselves what to keep."""
    x = F.layer_norm(z, z.shape[-1:], eps=NORM_EPS).to(z.dtype)
    return z + F.linear(F.relu(F.linear(x, up, up_bias)), down, down_bias)


class Transition(torch.autograd.Function):
    """z + down · ReLU(up · x + up_bias) + down_bias with x = LN(z) without weights, keeping z alone.

    The backward pass repeats the product with ``up``: that costs a sixth of the layer's arithmetic and saves four times
    the bytes of z.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        ctx.save_for_backward(z, up, up_bias, down, down_bias)
        up, up_bias, down, down_bias = (w.to(z.dtype) for w in (up, up_bias, down, down_bias))
        out = torch.empty_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for b in range(z.shape[0]):
                for rows, _ in row_slices(z[b]):
                    z_Np = z[b, rows].flatten(0, 1)
                    inner = torch.addmm(up_bias, centred(z_Np)[0], up.mT).relu_()
                    change = torch.addmm(down_bias, inner, down.mT)
                    torch.add(z_Np, change, out=out[b, rows].flatten(0, 1))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, *weights = ctx.saved_tensors
        up, up_bias, down, _ = (w.to(z.dtype) for w in weights)
        grad_up, grad_up_bias, grad_down, grad_down_bias = (wide_zeros(w) for w in weights)
        grad_z = torch.empty_like(z)
        grad = grad.contiguous()
        for b in range(z.shape[0]):
            for rows, _ in row_slices(z[b]):
                z_Np, grad_Np = z[b, rows].flatten(0, 1), grad[b, rows].flatten(0, 1)
                x, mean, scale = centred(z_Np)
                inner = torch.addmm(up_bias, x, up.mT).relu_()
                grad_down += grad_Np.mT @ inner
                grad_down_bias += grad_Np.sum(0)
                grad_inner = torch.ops.aten.threshold_backward(grad_Np @ down, inner, 0)
                grad_up += grad_inner.mT @ x
                grad_up_bias += grad_inner.sum(0)
                change = centred_backward(grad_inner @ up, z_Np, mean, scale)
                torch.add(grad_Np, change, out=grad_z[b, rows].flatten(0, 1)) if change.dtype == z.dtype else (
                    grad_z[b, rows].flatten(0, 1).copy_(change.add_(grad_Np))
                )
        return grad_z, grad_up, grad_up_bias, grad_down, grad_down_bias
