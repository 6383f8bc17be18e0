"""What RibonanzaNet's pair stream z [B, p, L, L] is made of: outer products and relative positions.

Every module uses only its own parameters in its own forward: ZeRO-3 gathers parameters module by module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.swish_gate import Linear


class OuterProduct(nn.Module):
    """The pairwise product of a projected sequence stream, [B, L, d] -> its factors u, x (spec 1.3, OPM).

    out[p, i, j] = b[p] + sum over c, d of W[p, c·outer + d] · x[j, c] · x[i, d], with x = down(s). There is no mean and
    no mask. The [L, L, outer²] product of the plain form never exists: see `_PairwiseForm`. Who uses the factors adds
    their product u xᵀ to z as it is made.
    """

    def __init__(self, width: int, outer: int, pair: int) -> None:
        super().__init__()
        self.down = Linear(width, outer)
        self.up = _PairwiseForm(outer * outer, pair)

    def forward(self, s_BLd: Tensor) -> tuple[Tensor, Tensor]:
        return self.up(self.down(s_BLd))


class _PairwiseForm(Linear):
    """The linear layer of the plain form, applied in another order: first to x[i] alone, then to x[j].

    u[p, i, c] = sum over d of W[p, c, d] x[i, d] costs L instead of L²; the rest is one matrix product per sequence,
    [p·L, outer] · [outer, L], about a thirtieth of the work at L = 200 (spec 11.2). Equal up to rounding. The bias is
    one more column of u, beside ones in x: adding it to the product would be another pass over z.
    """

    def forward(self, x_BLd: Tensor) -> tuple[Tensor, Tensor]:
        """u [B, p·L, outer + 1] and x [B, L, outer + 1]."""
        batch, length, outer = x_BLd.shape
        pair = self.out_features
        u_BpLc = (x_BLd @ self.weight.view(pair * outer, outer).mT).view(batch, length, pair, outer).transpose(1, 2)
        bias = self.bias.to(u_BpLc.dtype)[:, None, None].expand(batch, pair, length, 1)
        ones = x_BLd.new_ones(batch, length, 1)
        return torch.cat((u_BpLc, bias), -1).flatten(1, 2), torch.cat((x_BLd, ones), -1)


class RelativePosition(Linear):
    """The embedding of i - j, clamped to ±reach: [p, L, L], as a look-up in the table of all 2·reach + 1 offsets.

    The authors multiply one-hot vectors by a linear layer; its rows plus its bias are the same numbers.
    """

    def __init__(self, reach: int, pair: int) -> None:
        super().__init__(2 * reach + 1, pair)
        self.reach = reach

    def forward(self, length: int) -> Tensor:
        place = torch.arange(length, device=self.weight.device)
        offset = (place[:, None] - place[None, :]).clamp(-self.reach, self.reach) + self.reach
        return F.embedding(offset, self.weight.mT + self.bias).permute(2, 0, 1)
