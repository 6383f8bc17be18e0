"""Attention with dropout on CPU, written out: torch's own is many times slower there (benchmarks/results.md).

Only for the CPU, in eager mode, with dropout above 0; `layers/attention.py` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.layers.dropout import draw_kept, kept_share

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
        ctx.kept_share, ctx.scale = kept_share(dropout), head_dim**-0.5
        q_NLD, k_NLD, v_NLD = (_flattened(x) for x in (q, k, v))
        bias_N1L = None
        if is_key_BL is not None:
            bias_BL = torch.zeros(is_key_BL.shape, dtype=q_NLD.dtype).masked_fill_(~is_key_BL, -torch.inf)
            bias_N1L = bias_BL.repeat_interleave(heads, 0)[:, None, :]
        out_NLD, kept = torch.empty_like(q_NLD), []
        with torch.autocast("cpu", enabled=False):
            for n in _cached_rows(batch * heads, length):
                weights = _softmax_weights(q_NLD[n], k_NLD[n], None if bias_N1L is None else bias_N1L[n], ctx.scale)
                kept.append(draw_kept(weights.shape, dropout, weights.device))
                weights.mul_(kept[-1])
                torch.baddbmm(out_NLD[n], weights, v_NLD[n], beta=0, alpha=1 / ctx.kept_share, out=out_NLD[n])
        ctx.save_for_backward(q_NLD, k_NLD, v_NLD, bias_N1L, out_NLD, *kept)
        return out_NLD.view(q.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q_NLD, k_NLD, v_NLD, bias_N1L, out_NLD, *kept = ctx.saved_tensors
        grad_NLD = _flattened(grad_out)
        grad_q, grad_k, grad_v = grads = [torch.empty_like(x) for x in (q_NLD, k_NLD, v_NLD)]
        # Σ_j dP_ij P_ij of the softmax's derivative, as it comes out of the output alone.
        inner_NL1 = (grad_NLD * out_NLD).sum(-1, keepdim=True)
        share, scale = 1 / ctx.kept_share, ctx.scale
        with torch.autocast("cpu", enabled=False):
            for n, kept_nLL in zip(_cached_rows(*q_NLD.shape[:2]), kept, strict=True):
                weights = _softmax_weights(q_NLD[n], k_NLD[n], None if bias_N1L is None else bias_N1L[n], scale)
                used = weights * kept_nLL
                torch.baddbmm(grad_v[n], used.mT, grad_NLD[n], beta=0, alpha=share, out=grad_v[n])
                grad_used = torch.baddbmm(used, grad_NLD[n], v_NLD[n].mT, beta=0, alpha=share)
                grad_scores = used.mul_(grad_used).addcmul_(weights, inner_NL1[n], value=-1)
                torch.baddbmm(grad_q[n], grad_scores, k_NLD[n], beta=0, alpha=scale, out=grad_q[n])
                torch.baddbmm(grad_k[n], grad_scores.mT, q_NLD[n], beta=0, alpha=scale, out=grad_k[n])
        return *(x.view(grad_out.shape) for x in grads), None, None


def _flattened(x_BHLD: Tensor) -> Tensor:
    """[B * H, L, D], contiguous."""
    return x_BHLD.reshape(-1, *x_BHLD.shape[2:]).contiguous()


def _cached_rows(rows: int, length: int) -> Iterator[slice]:
    """Slices of [N, L, L] attention weights that hold at most ``CACHED`` of them, but at least one row of N."""
    step = max(CACHED // length**2, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _softmax_weights(q_NLD: Tensor, k_NLD: Tensor, bias_N1L: Tensor | None, scale: float) -> Tensor:
    k_NDL = k_NLD.transpose(1, 2)
    if bias_N1L is None:
        scores = q_NLD.new_empty(*q_NLD.shape[:2], k_NDL.shape[2])
        return torch.baddbmm(scores, q_NLD, k_NDL, beta=0, alpha=scale, out=scores).softmax(-1)
    return torch.baddbmm(bias_N1L, q_NLD, k_NDL, alpha=scale).softmax(-1)
