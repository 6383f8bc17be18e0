"""The pair stream z [p, L, L] of a sequence a few rows at a time: what its kernels share.

z is far larger than a processor's cache, and most of what is done to it is a few operations on each element. So the
kernels of the pair stream take some rows of z through all of their steps before the next rows: only z and the result
pass through memory, what lies between stays in the cache, and the widest tensors never exist. On accelerators, which
have many rows to run at once, a sequence is one piece.

The channels are in front. Then sums over k of triangle updates are plain matrix products, and a norm over the channels
is arithmetic on rows of a hundred and more neighbouring numbers instead of many sums over 64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NORM_EPS = 1e-5
CACHED = 2**17  # numbers of z that a CPU core takes at a time: 512 KiB of fp32, beside up to 5 times as much between


def pieces(z_pLL: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows i, the same places in [L * L]) of pieces of z."""
    pair, length, columns = z_pLL.shape
    step = length if z_pLL.device.type != "cpu" else max(CACHED // max(pair * columns, 1), 1)
    for start in range(0, length, max(step, 1)):
        stop = min(start + step, length)
        yield slice(start, stop), slice(start * columns, stop * columns)


def widened(dtype: torch.dtype) -> torch.dtype:
    """What norms are computed and gradients of weights are summed in: fp32 at least."""
    return torch.promote_types(dtype, torch.float32)


def wide_zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=widened(x.dtype), device=x.device)


def centred(z_pN: Tensor) -> tuple[Tensor, Tensor]:
    """(x, scale [N]): z less its mean over the channels, divided by its deviation; in fp32 at least."""
    wide = z_pN.to(widened(z_pN.dtype))
    x = wide - wide.mean(0)
    scale = (x * x).mean(0).add_(NORM_EPS).rsqrt_()
    return x.mul_(scale), scale


def centred_backward(grad_pN: Tensor, x_pN: Tensor, scale_N: Tensor) -> Tensor:
    """The gradient of z from that of x = `centred` (z), in fp32 at least."""
    grad = grad_pN.to(x_pN.dtype)
    along = (grad * x_pN).mean(0)
    return (grad - grad.mean(0)).addcmul_(x_pN, along, value=-1).mul_(scale_N)


def linear(weight: Tensor, bias: Tensor | None, x_pN: Tensor) -> Tensor:
    """weight · x + bias, in the dtype of the weight."""
    out = weight @ x_pN.to(weight.dtype)
    return out if bias is None else out.add_(bias[:, None])


def plain_centred(z_BpLL: Tensor) -> Tensor:
    """[B, p, L * L], `centred` for compilers, in the dtype of z."""
    wide = z_BpLL.flatten(2).to(widened(z_BpLL.dtype))
    x = wide - wide.mean(1, keepdim=True)
    return (x * ((x * x).mean(1, keepdim=True) + NORM_EPS).rsqrt()).to(z_BpLL.dtype)
