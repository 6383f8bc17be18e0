"""Bidirectional attention over packed sequences of different lengths: one signature, three kernels.

A sequence attends to itself only; there is no causal mask, no bias and no window. The kernels give the same result:

- ``flash``: the flash-attn package; CUDA, half precision, attention dropout. Taken first where it is installed.
- ``varlen``: torch's own variable-length kernel; CUDA, half precision, no attention dropout.
- ``sdpa``: torch's scaled_dot_product_attention on padded sequences; every device and precision, with dropout. Its
  cost grows with the padding. On CPU, where lengths can be read for free, a micro-batch is cut into groups of similar
  lengths first: as fast where lengths are alike, 1.3 to 34 times faster where they differ (measured). Attention with
  dropout on CPU is written out (`layers/dropout_attention.py`), because torch's is many times slower there.

Nothing outside this file knows which kernel runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.layers.dropout_attention import DropoutAttention
from models.layers.packing import sequence_of_token

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # an optional package: without it the other kernels serve
    flash_attn_varlen_func = None
varlen_attn: Callable[..., Tensor | tuple[Tensor, Tensor]] | None = None
if torch.backends.cuda.is_built():  # for CPU alone, torch.compile's tracer need not be imported: half of a start's time
    with contextlib.suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn  # torch 2.11 and later

KERNELS = ("flash", "varlen", "sdpa")
SHORTEST_IN_GROUP = 0.9  # of the longest; measured between 0.5 and 1.0
_HALF = (torch.float16, torch.bfloat16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v within each sequence.

    ``q, k, v`` [T, H, D] hold B >= 1 sequences end to end, sequence b in rows cu_seqlens[b] : cu_seqlens[b+1];
    ``cu_seqlens`` [B+1] int32 on the same device; ``max_seqlen`` at least the longest length, a plain int so that no
    kernel has to wait for the device. ``dropout`` is the probability of dropping an attention weight: 0 outside
    training. Returns [T, H, D]. Raises ModelError if ``kernel`` cannot run here.
    """
    name = resolve_kernel(kernel, q.device, q.dtype, dropout, q.shape[-1])
    if name == "flash":
        return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p=dropout)
    if name == "varlen":
        assert varlen_attn is not None
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return cast(Tensor, out)  # a pair only where more than the output is asked for
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        return _sdpa_in_groups(q, k, v, cu_seqlens, max_seqlen, dropout)
    return _sdpa(q, k, v, cu_seqlens, max_seqlen, dropout)


def resolve_kernel(kernel: str, device: torch.device, dtype: torch.dtype, dropout: float, head_dim: int) -> str:
    """The kernel that `attention` will run: ``kernel`` itself, or for "auto" the fastest that can do what is asked.

    Raises ModelError if ``kernel`` is unknown, or named but unable to run on ``device`` in ``dtype`` with ``dropout``
    and ``head_dim``: a named kernel is never replaced, and attention dropout is never left out.
    """
    if kernel == "auto":
        return next(name for name in KERNELS if _obstacle(name, device, dtype, dropout, head_dim) is None)
    if kernel not in KERNELS:
        raise ModelError(f"the attention kernel {kernel!r} is unknown; choose auto, {', '.join(KERNELS)}")
    obstacle = _obstacle(kernel, device, dtype, dropout, head_dim)
    if obstacle is not None:
        raise ModelError(f"the attention kernel {kernel!r} cannot run here: {obstacle}; choose another, or auto")
    return kernel


def _obstacle(kernel: str, device: torch.device, dtype: torch.dtype, dropout: float, head_dim: int) -> str | None:
    """Why ``kernel`` cannot run, or None if it can."""
    if kernel == "sdpa":
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device and the tensors are on {device.type}"
    if kernel == "flash" and flash_attn_varlen_func is None:
        return "the flash-attn package is not installed"
    if kernel == "varlen" and varlen_attn is None:
        return f"torch {torch.__version__} has no variable-length attention (2.11 and later have)"
    if dtype not in _HALF:
        return f"it needs float16 or bfloat16 and the queries are {str(dtype).removeprefix('torch.')}"
    if _compute_capability(device.index) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or later"
    if head_dim % 8 or head_dim > 256:
        return f"it needs a head dimension that is a multiple of 8 and at most 256, not {head_dim}"
    if kernel == "varlen" and dropout > 0:
        return f"it has no attention dropout and the recipe asks for {dropout}"
    return None


def _compute_capability(device_index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


if torch.backends.cuda.is_built():  # a constant of the machine: torch.compile should not trace the query
    _compute_capability = torch.compiler.assume_constant_result(_compute_capability)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    tokens, heads, head_dim = q.shape
    sequences = cu_seqlens.shape[0] - 1
    if tokens == sequences * max_seqlen:  # all lengths equal: a view, and no mask
        q, k, v = (x.view(sequences, max_seqlen, heads, head_dim).transpose(1, 2) for x in (q, k, v))
        out_BHLD = padded_attention(q, k, v, None, dropout)
        return out_BHLD.transpose(1, 2).reshape(tokens, heads, head_dim)
    sequence_T = sequence_of_token(cu_seqlens, tokens)
    offset_T = torch.arange(tokens, device=q.device) - cu_seqlens[sequence_T]
    slot_T = sequence_T * max_seqlen + offset_T  # where each token lies in the padded rows

    def pad(x: Tensor) -> Tensor:  # [T, H, D] -> [B, H, L, D]
        rows = x.new_zeros(sequences * max_seqlen, heads, head_dim).index_copy(0, slot_T, x)
        return rows.view(sequences, max_seqlen, heads, head_dim).transpose(1, 2)

    length_B = cu_seqlens[1:] - cu_seqlens[:-1]
    # Keys are masked, queries are not: a padding query sees real keys, so no row of the softmax is empty (NaN), and
    # its output is dropped below.
    is_key_BL = torch.arange(max_seqlen, device=q.device) < length_B[:, None]
    out_BHLD = padded_attention(pad(q), pad(k), pad(v), is_key_BL, dropout)
    return out_BHLD.transpose(1, 2).reshape(sequences * max_seqlen, heads, head_dim).index_select(0, slot_T)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, is_key_BL: Tensor | None, dropout: float) -> Tensor:
    """The kernel ``sdpa`` itself: [B, H, L, D] x 3 -> [B, H, L, D].

    ``is_key_BL`` is False at padding, None where there is none: sequences of one length may be given so at once.
    """
    if dropout > 0 and q.device.type == "cpu" and not torch.compiler.is_compiling():
        out: Tensor = DropoutAttention.apply(q, k, v, is_key_BL, dropout)  # type: ignore[no-untyped-call]
        return out
    mask = None if is_key_BL is None else is_key_BL[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _sdpa_in_groups(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    starts = cu_seqlens.tolist()
    groups = length_groups([end - start for start, end in pairwise(starts)])
    if len(groups) == 1:
        return _sdpa(q, k, v, cu_seqlens, max_seqlen, dropout)
    rows, outs = [], []
    for group in groups:
        spans = [torch.arange(starts[b], starts[b + 1]) for b in group]
        row_G = torch.cat(spans)
        lengths = torch.tensor([0, *map(len, spans)], dtype=torch.int32)
        q_G, k_G, v_G = (x.index_select(0, row_G) for x in (q, k, v))
        outs.append(_sdpa(q_G, k_G, v_G, lengths.cumsum(0, dtype=torch.int32), int(lengths.max()), dropout))
        rows.append(row_G)
    return torch.cat(outs).index_select(0, torch.cat(rows).argsort())


def computed_tokens(lengths: list[int], kernel: str, device: torch.device, compiled: bool = False) -> int:
    """Tokens that ``kernel`` (a resolved name) computes on for sequences of these lengths, padding included."""
    if kernel != "sdpa":
        return sum(lengths)
    grouped = device.type == "cpu" and not compiled
    groups = length_groups(lengths) if grouped else [list(range(len(lengths)))]
    return sum(len(group) * max(lengths[b] for b in group) for group in groups)


def length_groups(lengths: list[int], shortest: float = SHORTEST_IN_GROUP) -> list[list[int]]:
    """Indices of ``lengths`` cut into groups whose shortest member is at least ``shortest`` of the longest."""
    groups: list[list[int]] = []
    for b in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not groups or lengths[b] < shortest * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(b)
    return groups
