"""Packed rows: several sequences laid end to end in one row of T tokens, with `cu_seqlens` [B+1] marking their starts.

Holds the one question that every packed layer asks: which sequence does a token belong to. Does not build packed rows;
that is the loader's part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_of_token(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """[T] int64: the index in 0..B-1 of the sequence that holds each of the T tokens.

    ``cu_seqlens`` is [B+1] int32 with cu_seqlens[0] = 0 and cu_seqlens[B] = T. A search over the boundaries, because
    unlike `repeat_interleave` on lengths it never waits for the device.
    """
    index = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(index, cu_seqlens[1:], right=True)
