"""What RibonanzaNet's pair stream z [B, L, L, p] is made of: outer products and relative positions.

Every module uses only its own parameters in its own forward: ZeRO-3 gathers parameters module by module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.swish_gate import Linear


class OuterProduct(nn.Module):
    """The pairwise product of a projected sequence stream, [B, L, d] -> its factors x, u (spec 1.3, OPM).

    out[i, j, p] = b[p] + sum over c, d of W[p, c·outer + d] · x[j, c] · x[i, d], with x = down(s). There is no mean and
    no mask. The [L, L, outer²] product of the plain form never exists: see `_PairwiseForm`. Who uses the factors adds
    their product x uᵀ to z as it is made.
    """

    def __init__(self, width: int, outer: int, pair: int) -> None:
        super().__init__()
        self.down = Linear(width, outer)
        self.up = _PairwiseForm(outer * outer, pair)

    def forward(self, s_BLd: Tensor) -> tuple[Tensor, Tensor]:
        return self.up(self.down(s_BLd))


class _PairwiseForm(Linear):
    """The linear layer of the plain form, applied in another order: first to x[j] alone, then to x[i].

    u[j, p, d] = sum over c of W[p, c, d] x[j, c] costs L instead of L²; the rest is one matrix product per sequence,
    [L, outer] · [outer, L·p], about a thirtieth of the work at L = 200 (spec 11.2). Equal up to rounding. The bias is
    one more column of u, beside ones in x: adding it to the product would be another pass over z.
    """

    def forward(self, x_BLc: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, outer + 1] and u [B, L·p, outer + 1]."""
        batch, length, outer = x_BLc.shape
        pair = self.out_features
        weight_cpd = self.weight.view(pair, outer, outer).permute(1, 0, 2).reshape(outer, pair * outer)
        u_BLpd = (x_BLc @ weight_cpd).view(batch, length, pair, outer)
        bias_BLp1 = self.bias.to(u_BLpd.dtype)[:, None].expand(batch, length, pair, 1)
        ones = x_BLc.new_ones(batch, length, 1)
        return torch.cat((x_BLc, ones), -1), torch.cat((u_BLpd, bias_BLp1), -1).flatten(1, 2)


class RelativePosition(Linear):
    """The embedding of i - j, clamped to ±reach: [L, L, p], as a look-up in the table of all 2·reach + 1 offsets.

    The authors multiply one-hot vectors by a linear layer; its rows plus its bias are the same numbers.
    """

    def __init__(self, reach: int, pair: int) -> None:
        super().__init__(2 * reach + 1, pair)
        self.reach = reach

    def forward(self, length: int) -> Tensor:
        place = torch.arange(length, device=self.weight.device)
        offset = (place[:, None] - place[None, :]).clamp(-self.reach, self.reach) + self.reach
        return F.embedding(offset, self.weight.mT + self.bias)
