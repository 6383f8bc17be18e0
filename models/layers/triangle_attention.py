"""Triangle attention on the pair stream, as RibonanzaNet has it (spec 1.3); off in the published weights.

It differs from AlphaFold 2's: attention along columns takes the bias b[i, j] and not b[j, i].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.pair_mask import PairMask, masked_softmax
from models.layers.swish_gate import Linear


class TriangleAttention(nn.Module):
    """Gated attention within every row (or column) of the pair stream, biased by it, [B, L, L, p] -> [B, L, L, p].

    Row r: element (r, i) attends to (r, j). Column l: element (i, l) attends to (j, l). Both with the bias of (i, j).
    """

    def __init__(self, pair: int, heads: int, by_row: bool) -> None:
        super().__init__()
        self.heads, self.by_row = heads, by_row
        self.norm = nn.LayerNorm(pair)
        self.qkv = Linear(pair, 3 * pair, bias=False)
        self.bias = Linear(pair, heads, bias=False)
        self.gate = Linear(pair, pair)
        self.out = Linear(pair, pair)

    def forward(self, z_BLLp: Tensor, mask: PairMask) -> Tensor:
        batch, length, _, pair = z_BLLp.shape
        x = self.norm(z_BLLp)
        fields = self.qkv(x).view(batch, length, length, 3, self.heads, pair // self.heads)
        if not self.by_row:
            fields = fields.transpose(1, 2)
        q, k, v = fields.permute(3, 0, 1, 4, 2, 5)  # [B, R, H, L, D] each
        bias_BHLL = self.bias(x).permute(0, 3, 1, 2)
        out = _attend(q, k, v, bias_BHLL, mask).transpose(2, 3).flatten(3)
        if not self.by_row:
            out = out.transpose(1, 2)
        return self.out(torch.sigmoid(self.gate(x)) * out)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias_BHLL: Tensor, mask: PairMask) -> Tensor:
    """[B, R, H, L, D]: attention along L with one bias for all R. A fused kernel wherever the mask is additive."""
    additive = mask.additive(bias_BHLL)
    if additive is None or not len(q):
        logits = (q @ k.mT) * q.shape[-1] ** -0.5 + bias_BHLL[:, None]
        return masked_softmax(logits, mask).to(v.dtype) @ v
    additive = additive.to(q.dtype)
    # One sequence at a time: the bias then needs no copy per row.
    return torch.stack(
        [
            F.scaled_dot_product_attention(q[b], k[b], v[b], attn_mask=additive[b].expand(q.shape[1], -1, -1, -1))
            for b in range(q.shape[0])
        ]
    )
