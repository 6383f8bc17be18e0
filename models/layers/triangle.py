"""Triangle updates and triangle attention on the pair stream, as RibonanzaNet has them (spec 1.3).

Both differ from AlphaFold 2's: the output gate acts before the output projection, the "ingoing" update swaps its
operands, attention along columns takes the bias b[i, j] and not b[j, i], and nothing divides by the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.pair_mask import PairMask, masked_softmax
from models.layers.swish_gate import Linear


class TriangleUpdate(nn.Module):
    """The triangle multiplicative update, [B, L, L, p] -> [B, L, L, p].

    With l and r the gated projections of LN(z), outgoing: o[i, j] = sum over k of l[i, k] r[j, k]; ingoing:
    o[i, j] = sum over k of l[k, j] r[k, i]. The result is out(LN(o) · output gate).
    """

    def __init__(self, pair: int, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm = nn.LayerNorm(pair)
        self.proj = _FusedProjection(pair)
        self.out_norm = nn.LayerNorm(pair)
        self.out = Linear(pair, pair)

    def forward(self, z_BLLp: Tensor, mask: PairMask) -> Tensor:
        sides_cBLL, gate_BLLp = self.proj(self.norm(z_BLLp), mask.product)
        left, right = sides_cBLL.view(2, z_BLLp.shape[0] * z_BLLp.shape[3], *z_BLLp.shape[1:3])  # [p·B, L, L] each
        o = torch.bmm(left, right.mT) if self.outgoing else torch.bmm(right.mT, left)
        o_BLLp = o.view(z_BLLp.shape[3], *z_BLLp.shape[:3]).permute(1, 2, 3, 0).contiguous()
        return self.out(self.out_norm(o_BLLp) * gate_BLLp)


class _FusedProjection(Linear):
    """The five projections of a triangle update in one tensor: left, right, left gate, right gate, output gate.

    The first four come out with channels in front, as the sums over k need them: the matrix product writes that order
    itself. The result is left·M·sigmoid(left gate) and the same of the right, [2p, B, L, L], and the output gate
    [B, L, L, p]. What can is done in place: these are the largest tensors of the model.
    """

    def __init__(self, pair: int) -> None:
        super().__init__(pair, 5 * pair)
        self.pair = pair

    def forward(self, x_BLLp: Tensor, product_BLL: Tensor | None) -> tuple[Tensor, Tensor]:
        sizes = (2 * self.pair, 2 * self.pair, self.pair)
        weights, biases = self.weight.split(sizes), self.bias.split(sizes)
        x_pN = x_BLLp.reshape(-1, self.pair).mT
        fields_cN, gates_cN = (torch.addmm(biases[i][:, None], weights[i], x_pN) for i in range(2))
        sides_cBLL = (fields_cN * gates_cN.sigmoid_()).view(2 * self.pair, *x_BLLp.shape[:3])
        if product_BLL is not None:
            sides_cBLL.mul_(product_BLL)
        return sides_cBLL, F.linear(x_BLLp, weights[2], biases[2]).sigmoid_()

    def reset_gates(self) -> None:
        """The authors' start of all gates: weight 0 and bias 1, that is 0.73 everywhere."""
        self.weight[2 * self.pair :].zero_()
        self.bias[2 * self.pair :].fill_(1)


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
