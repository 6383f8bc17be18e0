"""The transition of the pair stream, z + down(ReLU(up(LN(z)))), whose inner tensor of 4p channels never exists whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm, after_norm
from models.layers.pair_rows import NORM_EPS, centred, centred_backward, linear, pieces, plain_centred, wide_zeros


class PairTransition(nn.Module):
    """z [B, p, L, L] -> z + down(ReLU(up(LN(z)))), the same shape; no dropout."""

    def __init__(self, pair: int, inner: int) -> None:
        super().__init__()
        self.norm = HandedNorm(pair, eps=NORM_EPS)
        self.up = HandedLinear(pair, inner)
        self.down = HandedLinear(inner, pair)

    def forward(self, z_BpLL: Tensor) -> Tensor:
        weights = (*after_norm(self.norm, self.up), *self.down())
        if torch.compiler.is_compiling():
            return plain_transition(z_BpLL, *weights)
        out: Tensor = Transition.apply(z_BpLL, *weights)  # type: ignore[no-untyped-call]
        return out


def plain_transition(z: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """The same as `Transition`, for compilers, which choose themselves what to keep."""
    inner = F.relu(up @ plain_centred(z) + up_bias[:, None])
    return z + (down @ inner + down_bias[:, None]).view_as(z)


class Transition(torch.autograd.Function):
    """z + down · ReLU(up · x + up_bias) + down_bias with x = LN(z) without weights, keeping z alone.

    The backward pass repeats the product with ``up``: that costs a sixth of the layer's arithmetic and saves four times
    the bytes of z.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        ctx.save_for_backward(z, up, up_bias, down, down_bias)
        up, up_bias, down, down_bias = (w.to(z.dtype) for w in (up, up_bias, down, down_bias))
        z, out = z.contiguous(), torch.empty_like(z, memory_format=torch.contiguous_format)
        with torch.autocast(z.device.type, enabled=False):
            for z_pLL, out_pLL in zip(z, out, strict=True):
                for _, places in pieces(z_pLL):
                    z_pN = z_pLL.flatten(1)[:, places]
                    inner = linear(up, up_bias, centred(z_pN)[0]).relu_()
                    torch.add(z_pN, linear(down, down_bias, inner), out=out_pLL.flatten(1)[:, places])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        z, *weights = ctx.saved_tensors
        up, up_bias, down, _ = (w.to(z.dtype) for w in weights)
        grad_up, grad_up_bias, grad_down, grad_down_bias = grads = [wide_zeros(w) for w in weights]
        z, grad = z.contiguous(), grad.contiguous()
        grad_z = torch.empty_like(z)
        for z_pLL, grad_pLL, grad_z_pLL in zip(z, grad, grad_z, strict=True):
            for _, places in pieces(z_pLL):
                grad_pN = grad_pLL.flatten(1)[:, places]
                x, scale = centred(z_pLL.flatten(1)[:, places])
                inner = linear(up, up_bias, x).relu_()
                grad_down += grad_pN @ inner.mT
                grad_down_bias += grad_pN.sum(1)
                grad_inner = torch.ops.aten.threshold_backward(down.mT @ grad_pN, inner, 0)
                grad_up += grad_inner @ x.to(z.dtype).mT
                grad_up_bias += grad_inner.sum(1)
                change = centred_backward(up.mT @ grad_inner, x, scale)
                torch.add(change, grad_pN, out=grad_z_pLL.flatten(1)[:, places])
        return grad_z, *grads
