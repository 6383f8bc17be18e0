"""The two attentions of a model that reads alignments: tied over rows, and down the columns.

Both are whole residual branches, x + Drop(Out · Attention(LN(x))), and hold all their parameters themselves: a branch
is then one module call however many pieces it is computed in. (Under ZeRO stage 3 a parameter is whole only inside the
forward of the module that owns it, and all ranks must make the same calls, while their alignments differ in shape.)

Source: RNA-MSM specification 1.1 (formulas), 9 (padding), 10.3 (fast paths). Two things differ from the authors' code
where an alignment is padded by rows, and nowhere else: the tied scores are scaled by the number of real rows instead of
the padded one, and no padded row takes part in either attention.

``is_real`` [B, R, L] bool is False at padding; None where there is none, which is what training uses. x must be
[B, R, L, d] contiguous. In inference a branch works through x in pieces and changes it in place; in training it keeps
what `projections.py` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import attention, padded_attention, resolve_kernel
from models.layers.pieces import LAYER_NORM_EPS, compute_dtype, slices
from models.layers.projections import (
    CHANNELS_FIRST,
    HEADS_OF_COLUMN,
    TOKENS_BY_COLUMN,
    TOKENS_BY_ROW,
    Order,
    add_heads,
    in_token_order,
    normed_heads,
)
from models.layers.tied_attention import masked_softmax, tied_attention


class Branch(nn.Module):
    """What the branches of a block share: their layer norm, dropout, and the pieces of inference."""

    norm_parameters = ("norm_weight", "norm_bias")  # its own parameters that are a norm's

    def __init__(self, width: int, dropout: float, piece_tokens: int) -> None:
        super().__init__()
        self.width, self.dropout, self.piece_tokens = width, dropout, piece_tokens
        self.norm_weight = nn.Parameter(torch.empty(width))
        self.norm_bias = nn.Parameter(torch.empty(width))

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.norm_weight, self.norm_bias, LAYER_NORM_EPS)

    @property
    def _norm(self) -> tuple[Tensor, Tensor]:
        return self.norm_weight, self.norm_bias

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    @property
    def _in_pieces(self) -> bool:
        """Inference: nothing is kept for a backward pass, so memory is that of x and one piece."""
        return not (self.training or torch.is_grad_enabled())

    def _pieces(self, length: int, tokens_each: int) -> Iterator[slice]:
        """Slices of range(length), each of at most ``piece_tokens`` tokens, but of one element at least."""
        return slices(length, self.piece_tokens // max(tokens_each, 1))


class _Attention(Branch):
    def __init__(
        self, width: int, heads: int, attention_dropout: float, residual_dropout: float, piece_tokens: int
    ) -> None:
        super().__init__(width, residual_dropout, piece_tokens)
        self.heads, self.head_dim, self.attention_dropout = heads, width // heads, attention_dropout
        self.qkv_weight = nn.Parameter(torch.empty(3 * width, width))
        self.qkv_bias = nn.Parameter(torch.empty(3 * width))
        self.out_weight = nn.Parameter(torch.empty(width, width))
        self.out_bias = nn.Parameter(torch.empty(width))

    def _heads(self, x_BRLd: Tensor, order: Order, scale: float = 1.0, first: int = 0) -> tuple[Tensor, ...]:
        return normed_heads(x_BRLd, self._norm, (self.qkv_weight, self.qkv_bias), self.heads, order, scale, first)

    def _add(self, x_BRLd: Tensor, context: Tensor, order: Order, chosen_M: Tensor | None = None) -> Tensor:
        """x with the branch's output added: all tokens, or [M, d], those at ``chosen_M`` of the flattened ones."""
        out = (self.out_weight, self.out_bias)
        if chosen_M is None:
            return add_heads(x_BRLd, context, out, order, self._dropout)
        rows, columns = x_BRLd.shape[1:3]  # not torch.unravel_index, which waits for the device
        places = (chosen_M // (rows * columns), chosen_M // columns % rows, chosen_M % columns)
        context_MHD = in_token_order(context, order)[places]
        x_Md = x_BRLd.flatten(0, 2).index_select(0, chosen_M)
        y = add_heads(x_Md[None, :, None], context_MHD[None, :, None], out, TOKENS_BY_ROW, self._dropout)
        return y.flatten(0, 2)

    def _project(self, h: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """[..., d] -> [..., n, H, D]: n of queries (0), keys (1) and values (2)."""
        rows = slice(first * self.width, last * self.width)
        projected = F.linear(h, self.qkv_weight[rows], self.qkv_bias[rows])
        return projected.view(*h.shape[:-1], last - first, self.heads, self.head_dim)

    def _out(self, heads: Tensor) -> Tensor:
        """[..., H, D] -> [..., d]"""
        return F.linear(heads.flatten(-2), self.out_weight, self.out_bias)


class RowAttention(_Attention):
    """All rows share one attention map [L, L] per head; its scores are sums over the rows."""

    def forward(
        self, x_BRLd: Tensor, is_real: Tensor | None = None, want_map: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(x with the branch added, the map [B, H, L, L] in fp32 at least if ``want_map``).

        The map is that of the softmax, before dropout. In inference x itself is changed.
        """
        if not self._in_pieces:
            return self._trained(x_BRLd, is_real, want_map)
        scale = self._scale(x_BRLd, is_real)
        batch, rows, columns, _ = x_BRLd.shape
        scores_BHLL: Tensor | None = None
        for piece in self._pieces(rows, batch * columns):
            real = None if is_real is None else is_real[:, piece]
            q, k = self._project(self._normed(x_BRLd[:, piece]), 0, 2).unbind(-3)
            partial = _wide_product(_fold(self._queries(q, scale, real)), _fold(k).mT)
            scores_BHLL = partial if scores_BHLL is None else scores_BHLL.add_(partial)
        assert scores_BHLL is not None
        probs_BHLL = masked_softmax(scores_BHLL, None if is_real is None else is_real[:, 0])
        for piece in self._pieces(rows, batch * columns):
            (v,) = self._project(self._normed(x_BRLd[:, piece]), 2, 3).unbind(-3)
            x_BRLd[:, piece] += self._out(self._context(probs_BHLL, _fold(v), v.shape[1]))
        return x_BRLd, probs_BHLL if want_map else None

    def _trained(self, x_BRLd: Tensor, is_real: Tensor | None, want_map: bool) -> tuple[Tensor, Tensor | None]:
        scale = self._scale(x_BRLd, is_real)
        if isinstance(scale, float):
            x_BRLd, qkv = self._heads(x_BRLd, CHANNELS_FIRST, scale)
        else:
            assert is_real is not None
            x_BRLd, qkv = self._heads(x_BRLd, CHANNELS_FIRST)
            of_queries = scale.view(-1, 1, 1) * is_real
            others = torch.ones_like(of_queries)
            qkv = (qkv * torch.stack((of_queries, others, others), 1)[:, :, None, None]).to(qkv.dtype)
        is_key_BL = None if is_real is None else is_real[:, 0]  # the columns that are real in row 0: the authors' rule
        dropout = self.attention_dropout if self.training else 0.0
        context, probs_BHLL = tied_attention(qkv.flatten(3, 4), is_key_BL, dropout)
        return self._add(x_BRLd, context.view(qkv[:, 0].shape), CHANNELS_FIRST), probs_BHLL if want_map else None

    def _scale(self, x_BRLd: Tensor, is_real: Tensor | None) -> float | Tensor:
        """1 / sqrt(D · real rows), a number or [B, 1, 1, 1, 1]: on q, so that half precision cannot overflow."""
        if is_real is None:
            return 1 / math.sqrt(self.head_dim * x_BRLd.shape[1])
        real_rows_B = is_real.any(-1).sum(-1).clamp(min=1)
        wide = torch.float64 if x_BRLd.dtype == torch.float64 else torch.float32
        return (self.head_dim * real_rows_B).to(wide).rsqrt()[:, None, None, None, None]

    def _queries(self, q_BRLHD: Tensor, scale: float | Tensor, is_real: Tensor | None) -> Tensor:
        q = (q_BRLHD * scale).to(q_BRLHD.dtype)
        return q if is_real is None else q * is_real[..., None, None]  # a padded token adds nothing to the scores

    def _context(self, probs_BHLL: Tensor, v_BHLX: Tensor, rows: int) -> Tensor:
        """[B, R, L, H, D]: the values of every row, summed by the map that all rows share."""
        out_BHLX = torch.matmul(probs_BHLL.to(v_BHLX.dtype), v_BHLX)
        return out_BHLX.view(*out_BHLX.shape[:-1], rows, self.head_dim).permute(0, 3, 2, 1, 4)


class ColumnAttention(_Attention):
    """Every column is a sequence of R tokens that attend to each other, by the kernels of `layers/attention.py`."""

    def __init__(self, *sizes: Any, kernel: str = "auto") -> None:
        super().__init__(*sizes)
        self.kernel = kernel

    def forward(self, x_BRLd: Tensor, is_real: Tensor | None = None, chosen_M: Tensor | None = None) -> Tensor:
        """x with the branch added; in inference x itself, changed.

        With ``chosen_M``, places in the flattened alignments, only those tokens, [M, d]: all are attended to, but only
        these are asked for. Of one row the values are all there is: a softmax over it is 1, which is not dropped (spec
        1.1), so that queries and keys are not even projected.
        """
        batch, rows, columns, _ = x_BRLd.shape
        if not self._in_pieces:
            return self._trained(x_BRLd, is_real, chosen_M)
        for piece in self._pieces(columns, batch * rows):
            x_BNRd = x_BRLd[:, :, piece].transpose(1, 2)
            if rows == 1:
                x_BNRd += self._out(self._project(self._normed(x_BNRd), 2).squeeze(-3))
                continue
            real = None if is_real is None else is_real[:, :, piece]
            context = self._attended(self._project(self._normed(x_BNRd)).unbind(-3), real)
            x_BNRd += self._out(context)
        return x_BRLd if chosen_M is None else x_BRLd.flatten(0, 2).index_select(0, chosen_M)

    def _trained(self, x_BRLd: Tensor, is_real: Tensor | None, chosen_M: Tensor | None) -> Tensor:
        if x_BRLd.shape[1] == 1:
            x_BRLd, v = self._heads(x_BRLd, TOKENS_BY_ROW, first=2)
            return self._add(x_BRLd, v, TOKENS_BY_ROW, chosen_M)
        dropout = self.attention_dropout if self.training else 0.0
        kernel = resolve_kernel(self.kernel, x_BRLd.device, compute_dtype(x_BRLd), dropout, self.head_dim)
        if kernel == "sdpa" and is_real is None:  # heads first, as it wants them: no copies
            x_BRLd, q, k, v = self._heads(x_BRLd, HEADS_OF_COLUMN)
            context = padded_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None, dropout)
            return self._add(x_BRLd, context.view(v.shape), HEADS_OF_COLUMN, chosen_M)
        x_BRLd, q, k, v = self._heads(x_BRLd, TOKENS_BY_COLUMN)
        context = self._attended((q, k, v), is_real)
        return self._add(x_BRLd, context, TOKENS_BY_COLUMN, chosen_M)

    def _attended(self, qkv: Iterable[Tensor], is_real: Tensor | None) -> Tensor:
        """[B, L, R, H, D] x 3 -> [B, L, R, H, D]"""
        q, k, v = qkv
        batch, columns, rows = v.shape[:3]
        tokens = [x.flatten(0, 2) for x in (q, k, v)]
        if is_real is None:
            cu = torch.arange(0, batch * columns * rows + 1, rows, dtype=torch.int32, device=v.device)
            return self._attend(tokens, cu, rows).view(v.shape)
        real_NR = is_real.transpose(1, 2).reshape(-1, rows)
        lengths = real_NR.sum(-1)
        cu = F.pad(lengths[lengths > 0].cumsum(0), (1, 0)).to(torch.int32)
        place = real_NR.flatten().nonzero().squeeze(-1)
        attended = self._attend((x.index_select(0, place) for x in tokens), cu, rows)
        return attended.new_zeros(tokens[2].shape).index_copy(0, place, attended).view(v.shape)

    def _attend(self, qkv: Iterable[Tensor], cu: Tensor, longest: int) -> Tensor:
        q, k, v = qkv
        dropout = self.attention_dropout if self.training else 0.0
        return attention(q, k, v, cu, longest, dropout=dropout, kernel=self.kernel)


def _fold(x_BRLHD: Tensor) -> Tensor:
    """[B, H, L, R · D]: the rows as further head dimensions, so that scores summed over rows are one product."""
    return x_BRLHD.permute(0, 3, 2, 1, 4).flatten(3)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 at least, whatever their precision: sums of such products do not depend on how rows are cut.

    For inference only: torch's product of half-precision matrices with an fp32 result has no backward pass.
    """
    with torch.autocast(a.device.type, enabled=False):
        if a.device.type == "cuda" and a.dtype in (torch.float16, torch.bfloat16):
            product = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
            return product.view(*a.shape[:2], *product.shape[1:])
        return torch.matmul(_widened(a), _widened(b))
