"""Rotary position embedding in the half-split layout (pairs are dimension j and j + D/2, the NeoX convention).

The angles are computed once per forward pass and shared by all blocks. Does not scale, interpolate or cache positions:
any length runs, and packed sequences restart at position 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions_T: Tensor, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, D/2] in fp32 for positions [T] (any integer type). Source: specs, rinalmo 1.2."""
    exponent = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
    # A product of columns, not a matmul: autocast would run a matmul in half precision and blur far positions.
    angle_TD = positions_T.to(torch.float32)[:, None] * (base**-exponent)[None, :]
    return angle_TD.cos(), angle_TD.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, ..., D] by the angles cos, sin [T, D/2]; computed in fp32, returned in the dtype of x."""
    spread = (x.shape[0], *([1] * (x.dim() - 2)), cos.shape[-1])
    cos, sin = cos.view(spread), sin.view(spread)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
