"""The update of RibonanzaNet's pair stream z [B, p, L, L] in one layer (spec 1.3, steps 7 to 10).

    z1 = z + OuterProduct(s)
    z2 = z1 + drop(outgoing triangle update of z1)
    z3 = z2 + drop(ingoing triangle update of z2)
    z4 = z3 + drop(attention along rows), then along columns, if the configuration has them
    z5 = z4 + transition of z4

The pair streams of sequences do not meet, so everything runs sequence by sequence, and what an update needs on the way
is that of one sequence. The steps to z3 are one operation, `Triangles`. For the backward pass it keeps z, z1, z2 and the
two products of the triangle updates, or z alone and computes the others again ("checkpointing"): of a layer's
arithmetic that repeats a tenth, not a third as repeating the whole layer would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import triangle_update as triangle
from models.layers.pair import OuterProduct
from models.layers.pair_mask import PairMask
from models.layers.pair_transition import PairTransition
from models.layers.triangle_attention import TriangleAttention

if TYPE_CHECKING:
    from models.ribonanzanet import RibonanzaNetConfig


class PairUpdate(nn.Module):
    """One layer's update of z, [B, p, L, L] -> [B, p, L, L], from z and s (steps 7 to 10)."""

    def __init__(self, config: RibonanzaNetConfig) -> None:
        super().__init__()
        pair, self.dropout, self.keep = config.pair, config.dropout, not config.checkpointing
        self.in_axis = 1 if config.pair_dropout_in_axis == "row" else 2
        self.outer = OuterProduct(config.width, config.outer, pair)
        self.triangle_out = triangle.TriangleUpdate(pair)
        self.triangle_in = triangle.TriangleUpdate(pair)
        self.has_attention = config.triangle_attention
        if self.has_attention:
            self.attention_row = TriangleAttention(pair, config.triangle_heads, by_row=True)
            self.attention_column = TriangleAttention(pair, config.triangle_heads, by_row=False)
        self.transition = PairTransition(pair, 4 * pair)

    def forward(self, s_BLd: Tensor, z: Tensor, mask: PairMask) -> Tensor:
        factors = self.outer(s_BLd)
        drops = [self._drop(z, shared) for shared in (1, self.in_axis)]
        weights = (*self.triangle_out(), *self.triangle_in())
        if torch.compiler.is_compiling():
            z = plain_triangles(z, *factors, *drops, mask.product, *weights)
        else:
            z = Triangles.apply(z, *factors, *drops, mask.product, self.keep, *weights)  # type: ignore[no-untyped-call]
        if self.has_attention:
            z = self._dropped(z, self.attention_row, mask, 1)
            z = self._dropped(z, self.attention_column, mask, 2)
        out: Tensor = self.transition(z)
        return out

    def _dropped(self, z: Tensor, attention: TriangleAttention, mask: PairMask, shared: int) -> Tensor:
        change = attention(z.permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
        drop = self._drop(z, shared)
        return z + (change if drop is None else change * drop)

    def _drop(self, z: Tensor, shared: int) -> Tensor | None:
        return axis_dropout(z, self.dropout, shared) if self.training and self.dropout else None


def axis_dropout(z: Tensor, rate: float, shared: int) -> Tensor:
    """Factors of [B, p, i, j], one draw for all places along ``shared`` (1: i, "row"; 2: j, "column")."""
    batch, pair, *places = z.shape
    places[shared - 1] = 1
    return F.dropout(z.new_ones(batch, *places, pair), rate).permute(0, 3, 1, 2).contiguous()


def plain_triangles(z: Tensor, u: Tensor, x: Tensor, drop_out: Any, drop_in: Any, mask: Any, *weights: Tensor) -> Tensor:
    """The same as `Triangles`, for compilers, which choose themselves what to keep."""
    z = torch.baddbmm(z.flatten(1, 2), u, x.mT).view_as(z)
    z = triangle.plain_update(z, triangle.Weights(*weights[:6]), drop_out, mask, True)
    return triangle.plain_update(z, triangle.Weights(*weights[6:]), drop_in, mask, False)


class Triangles(torch.autograd.Function):
    """z -> z3 of [B, p, L, L], with the factors of the outer product u [B, p·L, c], x [B, L, c] (layers/pair.py).

    ``drops`` are factors of [B, p, 1 or L, 1 or L] or None, ``mask`` is [B, L, L] or None. ``weights`` are those of the
    outgoing and the ingoing update.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        u: Tensor,
        x: Tensor,
        drop_out: Tensor | None,
        drop_in: Tensor | None,
        mask: Tensor | None,
        keep: bool,
        *weights: Tensor,
    ) -> Tensor:
        mask = None if mask is None else mask.to(z.dtype)
        drops, both = (drop_out, drop_in), _in_dtype(weights, z.dtype)
        z, out = z.contiguous(), z.new_empty(z.shape)
        kept = _Kept.empty(z) if keep and any(ctx.needs_input_grad) else None
        room = triangle.Room(z[0]) if len(z) else None
        with torch.autocast(z.device.type, enabled=False):
            for b in range(z.shape[0]):
                _forward(z[b], u[b], x[b], out[b], kept and kept.of(b), room, both, _of(drops, b), _of((mask,), b)[0])
        ctx.keep = kept is not None
        ctx.save_for_backward(z, u, x, drop_out, drop_in, mask, *weights, *(kept.tensors if kept else ()))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, u, x, drop_out, drop_in, mask, *others = ctx.saved_tensors
        drops, both = (drop_out, drop_in), _in_dtype(others[:12], z.dtype)
        kept = _Kept(*others[12:]) if ctx.keep else None
        grad = grad.contiguous()
        grad_z, grad_u, grad_x = torch.empty_like(z), torch.empty_like(u), torch.empty_like(x)
        into = [triangle.Gradients.zeros(triangle.Weights(*others[i : i + 6])) for i in (0, 6)]
        room = triangle.Room(z[0], backward=True) if len(z) else None
        between = z.new_empty(z.shape[1:])
        again = None if kept else _Kept.empty(z[:1])
        for b in range(z.shape[0]):
            drop, mask_b = _of(drops, b), _of((mask,), b)[0]
            if again is not None:
                kept_b = again.of(0)
                _forward(z[b], u[b], x[b], None, kept_b, room, both, drop, mask_b)
            else:
                kept_b = kept.of(b)
            steps = ((1, grad[b], between), (0, between, grad_z[b]))
            for n, grad_in, grad_out in steps:
                z_n, o_n = kept_b[2 * n : 2 * n + 2]
                if again is None or n == 0:  # else the sides are still there from computing o again
                    triangle.make_sides(z_n, both[n], mask_b, room.sides)
                triangle.backward(grad_in, z_n, o_n, both[n], drop[n], mask_b, n == 0, room, grad_out, into[n])
            torch.mm(grad_z[b].flatten(0, 1), x[b], out=grad_u[b])
            torch.mm(grad_z[b].flatten(0, 1).mT, u[b], out=grad_x[b])
        return grad_z, grad_u, grad_x, None, None, None, None, *into[0], *into[1]


class _Kept:
    """What the backward pass needs of each sequence, beside z: z1, o1, z2, o2, each like z."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    @classmethod
    def empty(cls, z: Tensor) -> _Kept:
        return cls(*(z.new_empty(z.shape) for _ in range(4)))

    def of(self, b: int) -> tuple[Tensor, ...]:
        return tuple(x[b] for x in self.tensors)


def _forward(
    z_pLL: Tensor,
    u: Tensor,
    x: Tensor,
    out_pLL: Tensor | None,
    kept: tuple[Tensor, ...] | None,
    room: triangle.Room,
    both: list[triangle.Weights],
    drops: tuple[Tensor | None, ...],
    mask_LL: Tensor | None,
) -> None:
    """z3 of one sequence into ``out``, and z1, o1, z2, o2 into ``kept``; without ``out`` all but z3."""
    z1, o1, z2, o2 = kept if kept is not None else (out_pLL, None, out_pLL, None)
    torch.addmm(z_pLL.flatten(0, 1), u, x.mT, out=z1.flatten(0, 1))
    triangle.make_sides(z1, both[0], mask_LL, room.sides)
    triangle.finish(z1, triangle.product(room.sides, True, o1), both[0], drops[0], z2)
    triangle.make_sides(z2, both[1], mask_LL, room.sides)
    o2 = triangle.product(room.sides, False, o2)
    if out_pLL is not None:
        triangle.finish(z2, o2, both[1], drops[1], out_pLL)


def _of(tensors: tuple[Tensor | None, ...], b: int) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x[b] for x in tensors)


def _in_dtype(weights: Any, dtype: torch.dtype) -> list[triangle.Weights]:
    """Weights of both updates in the dtype of z; a norm's own in fp32 at least, as the norm is computed."""
    wide = torch.promote_types(dtype, torch.float32)
    return [
        triangle.Weights(*(w.to(wide if k in (2, 3) else dtype) for k, w in enumerate(weights[i : i + 6])))
        for i in (0, 6)
    ]
