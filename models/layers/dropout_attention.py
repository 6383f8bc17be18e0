"""Attention with dropout on CPU, written out: torch's own is many times slower there (benchmarks/results.md).

Only for the CPU, in eager mode, with dropout above 0; `layers/attention.py` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CACHED = 2**19  # attention weights that a CPU core works on at a time: 2 MiB of fp32


class DropoutAttention(torch.autograd.Function):
    """Attention with dropout on CPU, a few heads at a time, so that their weights stay in the processor's cache.

    torch computes it through whole [B, H, L, L] tensors in memory and keeps three of them for the backward pass; this
    recomputes the weights there and keeps one byte for each. Computes in fp32 at least. The drop probability is
    rounded to a multiple of 2**-16 (16 random bits per weight), and the kept weights are scaled by just that.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_key_BL: Tensor | None, dropout: float) -> Tensor:
        batch, heads, length, head_dim = q.shape
        levels = min(max(round(dropout * 2**16), 1), 2**16 - 1)
        ctx.kept_share, ctx.scale = 1 - levels / 2**16, head_dim**-0.5
        q_NLD, k_NLD, v_NLD = (_flattened(x) for x in (q, k, v))
        bias_N1L = None
        if is_key_BL is not None:
            bias_BL = torch.zeros(is_key_BL.shape, dtype=q_NLD.dtype).masked_fill_(~is_key_BL, -torch.inf)
            bias_N1L = bias_BL.repeat_interleave(heads, 0)[:, None, :]
        out_NLD = torch.empty_like(q_NLD)
        kept_NLL = torch.empty(batch * heads, length, length, dtype=torch.bool)
        with torch.autocast("cpu", enabled=False):
            for n in _cached_rows(batch * heads, length):
                weights = _softmax_weights(q_NLD[n], k_NLD[n], None if bias_N1L is None else bias_N1L[n], ctx.scale)
                _draw(kept_NLL[n], levels)
                torch.bmm(weights.mul_(kept_NLL[n]), v_NLD[n], out=out_NLD[n])
            out_NLD.div_(ctx.kept_share)
        ctx.save_for_backward(q_NLD, k_NLD, v_NLD, bias_N1L, out_NLD, kept_NLL)
        return out_NLD.view(q.shape).to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q_NLD, k_NLD, v_NLD, bias_N1L, out_NLD, kept_NLL = ctx.saved_tensors
        grad_NLD = _flattened(grad_out)
        grads = [torch.empty_like(x) for x in (q_NLD, k_NLD, v_NLD)]
        grad_q, grad_k, grad_v = grads
        # Σ_j dP_ij P_ij of the softmax's derivative, as it comes out of the output alone.
        inner_NL1 = (grad_NLD * out_NLD).sum(-1, keepdim=True)
        grad_NLD = grad_NLD / ctx.kept_share
        with torch.autocast("cpu", enabled=False):
            for n in _cached_rows(*kept_NLL.shape[:2]):
                weights = _softmax_weights(q_NLD[n], k_NLD[n], None if bias_N1L is None else bias_N1L[n], ctx.scale)
                used = weights * kept_NLL[n]
                torch.bmm(used.transpose(1, 2), grad_NLD[n], out=grad_v[n])
                grad_scores = used.mul_(torch.bmm(grad_NLD[n], v_NLD[n].transpose(1, 2)))
                grad_scores.sub_(weights.mul_(inner_NL1[n]))
                torch.bmm(grad_scores, k_NLD[n], out=grad_q[n])
                torch.bmm(grad_scores.transpose(1, 2), q_NLD[n], out=grad_k[n])
            grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale)
        return *(x.view(grad_out.shape).to(grad_out.dtype) for x in grads), None, None


def _flattened(x_BHLD: Tensor) -> Tensor:
    """[B * H, L, D], contiguous, in fp32 at least."""
    wide = x_BHLD if x_BHLD.dtype == torch.float64 else x_BHLD.float()
    return wide.reshape(-1, *x_BHLD.shape[2:]).contiguous()


def _cached_rows(rows: int, length: int) -> Iterator[slice]:
    """Slices of [N, L, L] attention weights that hold at most ``CACHED`` of them, but at least one row of N."""
    step = max(CACHED // length**2, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _softmax_weights(q_NLD: Tensor, k_NLD: Tensor, bias_N1L: Tensor | None, scale: float) -> Tensor:
    k_NDL = k_NLD.transpose(1, 2)
    if bias_N1L is None:
        return torch.bmm(q_NLD * scale, k_NDL).softmax(-1)
    return torch.baddbmm(bias_N1L, q_NLD, k_NDL, alpha=scale).softmax(-1)


def _draw(kept: Tensor, levels: int) -> None:
    """Fill a contiguous boolean tensor: False with probability levels / 2**16. One 64-bit draw serves four places."""
    draws = torch.empty((kept.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    torch.ge(draws.view(torch.int16)[: kept.numel()], levels - 2**15, out=kept.view(-1))
