"""The pair stream a few rows at a time: what its kernels share.

z [L, L, p] of a sequence is far larger than a processor's cache, and most of what is done to it is a few operations on
each element. So the kernels of the pair stream take some rows of z through all of their steps before the next rows:
only z and the result pass through memory, what lies between stays in the cache, and the widest tensors never exist.
On accelerators, which have many rows to run at once, a sequence is one piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NORM_EPS = 1e-5
CACHED = 2**17  # numbers of z that a CPU core takes at a time: 512 KiB of fp32, beside up to 5 times as much between


def row_slices(z_LLp: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, the same places in [L * L]) of pieces of z."""
    length, columns, pair = z_LLp.shape
    step = length if z_LLp.device.type != "cpu" else max(CACHED // max(columns * pair, 1), 1)
    for start in range(0, length, max(step, 1)):
        stop = min(start + step, length)
        yield slice(start, stop), slice(start * columns, stop * columns)


def centred(z_Np: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(LN(z) without weights, in the dtype of z; mean; 1 / deviation), computed in fp32 at least."""
    x, mean, scale = torch.native_layer_norm(_wide(z_Np), z_Np.shape[-1:], None, None, NORM_EPS)
    return x.to(z_Np.dtype), mean, scale


def centred_backward(grad_Np: Tensor, z_Np: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The gradient of z from that of `centred`, in fp32 at least."""
    grad, _, _ = torch.ops.aten.native_layer_norm_backward(
        _wide(grad_Np), _wide(z_Np), z_Np.shape[-1:], mean, scale, None, None, (True, False, False)
    )
    return grad


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_zeros(x: Tensor) -> Tensor:
    """Zeros to add up the gradient of a weight in: fp32 at least."""
    return torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
