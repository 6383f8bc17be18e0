"""The pair stream z [B, L, L, p] of RibonanzaNet: outer product, relative positions, axis dropout.

Every module uses only its own parameters in its own forward: ZeRO-3 gathers parameters module by module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.swish_gate import Linear


class OuterProduct(nn.Module):
    """The pairwise product of a projected sequence stream [B, L, d], added to z [B, L, L, p] (spec 1.3, OPM).

    out[i, j, p] = b[p] + sum over c, d of W[p, c·outer + d] · x[j, c] · x[i, d], with x = down(s). There is no mean and
    no mask. The [L, L, outer²] product of the plain form never exists: see `_PairwiseForm`.
    """

    def __init__(self, width: int, outer: int, pair: int) -> None:
        super().__init__()
        self.down = Linear(width, outer)
        self.up = _PairwiseForm(outer * outer, pair)

    def forward(self, s_BLd: Tensor, z_BLLp: Tensor) -> Tensor:
        """z with the product added; z may be [L, L, p] for all."""
        return self.up(self.down(s_BLd), z_BLLp)


class _PairwiseForm(Linear):
    """The linear layer of the plain form, applied in another order: first to x[j] alone, then to x[i].

    u[j, p, d] = sum over c of W[p, c, d] x[j, c] costs L instead of L²; the rest is one matrix product per sequence,
    [L, outer] · [outer, L·p], about a thirtieth of the work at L = 200 (spec 11.2). Equal up to rounding. The bias is
    one more column of u, beside ones in x: adding it to the product would be another pass over z.
    """

    def forward(self, x_BLc: Tensor, z_BLLp: Tensor) -> Tensor:  # type: ignore[override]
        batch, length, outer = x_BLc.shape
        pair = self.out_features
        weight_cpd = self.weight.view(pair, outer, outer).permute(1, 0, 2).reshape(outer, pair * outer)
        u_BLpd = (x_BLc @ weight_cpd).view(batch, length, pair, outer)
        bias = self.bias.to(u_BLpd.dtype)[:, None].expand(batch, length, pair, 1)
        u_BNd = torch.cat((u_BLpd, bias), -1).flatten(1, 2)
        x_BLd = torch.cat((x_BLc, x_BLc.new_ones(batch, length, 1)), -1)
        return torch.baddbmm(z_BLLp.flatten(-2), x_BLd, u_BNd.mT).view(batch, length, length, pair)


class RelativePosition(Linear):
    """The embedding of i - j, clamped to ±reach: [L, L, p], as a look-up in the table of all 2·reach + 1 offsets.

    The authors multiply one-hot vectors by a linear layer; its rows plus its bias are the same numbers.
    """

    def __init__(self, reach: int, pair: int) -> None:
        super().__init__(2 * reach + 1, pair)
        self.reach = reach

    def forward(self, length: int) -> Tensor:  # type: ignore[override]
        place = torch.arange(length, device=self.weight.device)
        offset = (place[:, None] - place[None, :]).clamp(-self.reach, self.reach) + self.reach
        return F.embedding(offset, self.weight.mT + self.bias)


def axis_dropout(z: Tensor, rate: float, shared: int) -> Tensor:
    """Factors of z [B, i, j, p], one draw for all places along dimension ``shared`` (1: i, "row"; 2: j, "column")."""
    shape = list(z.shape)
    shape[shared] = 1
    return F.dropout(z.new_ones(shape), rate)
