"""The triangle multiplicative update of one sequence, forward and backward, a few rows of z at a time.

With x = LN(z), l and r gated projections of x, and M the mask of pairs (spec 1.3):

    outgoing   o[i, j] = sum over k of l[i, k] r[j, k]
    ingoing    o[i, j] = sum over k of l[k, j] r[k, i], AlphaFold 2's with its operands swapped
    z + drop(out(LN(o) · output gate)): the gate acts before the output projection, and nothing divides by the length

Of one update only z and o need to be kept; the rest is computed again from them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm, after_norm
from models.layers.pair_rows import NORM_EPS, centred, centred_backward, linear, pieces, plain_centred, wide_zeros


class Weights(NamedTuple):
    """Of one update, the first norm put into the projections."""

    proj: Tensor  # [5p, p]: left, right, left gate, right gate, output gate
    proj_bias: Tensor
    norm: Tensor  # [p], of the norm of o
    norm_bias: Tensor
    out: Tensor  # [p, p]
    out_bias: Tensor


class TriangleUpdate(nn.Module):
    """() -> `Weights` as a tuple; layers/pair_update.py computes with them."""

    def __init__(self, pair: int) -> None:
        super().__init__()
        self.norm = HandedNorm(pair, eps=NORM_EPS)
        self.proj = FusedProjection(pair)
        self.out_norm = HandedNorm(pair, eps=NORM_EPS)
        self.out = HandedLinear(pair, pair)

    def forward(self) -> tuple[Tensor, ...]:
        return (*after_norm(self.norm, self.proj), *self.out_norm(), *self.out())


class FusedProjection(HandedLinear):
    """The five projections of a triangle update in one tensor: left, right, left gate, right gate, output gate."""

    def __init__(self, pair: int) -> None:
        super().__init__(pair, 5 * pair)
        self.pair = pair

    def reset_gates(self) -> None:
        """The authors' start of all gates: weight 0 and bias 1, that is 0.73 everywhere."""
        self.weight[2 * self.pair :].zero_()
        self.bias[2 * self.pair :].fill_(1)


def plain_update(z: Tensor, w: Weights, drop: Tensor | None, mask: Tensor | None, outgoing: bool) -> Tensor:
    """[B, p, L, L], the same as below for a batch, for compilers, which choose themselves what to keep."""
    pair = z.shape[1]
    parts = (w.proj @ plain_centred(z) + w.proj_bias[:, None]).view(z.shape[0], -1, *z.shape[2:])
    fields, gates, gate = parts.split((2 * pair, 2 * pair, pair), dim=1)
    sides = fields * gates.sigmoid()
    if mask is not None:
        sides = sides * mask[:, None].to(z.dtype)
    left, right = sides.chunk(2, dim=1)
    o = plain_centred(left @ right.mT if outgoing else right.mT @ left)
    gated = (o * w.norm[:, None] + w.norm_bias[:, None]).to(z.dtype) * gate.sigmoid().flatten(2)
    change = (w.out @ gated + w.out_bias[:, None]).view_as(z)
    return z + (change if drop is None else change * drop)


def product(sides_cLL: Tensor, outgoing: bool, out_pLL: Tensor | None = None) -> Tensor:
    """o [p, L, L] of the sides l and r [2p, L, L]."""
    left, right = sides_cLL.chunk(2)
    return torch.bmm(left, right.mT, out=out_pLL) if outgoing else torch.bmm(right.mT, left, out=out_pLL)


def make_sides(z_pLL: Tensor, w: Weights, mask_LL: Tensor | None, sides_cLL: Tensor) -> None:
    """Write l and r [2p, L, L] of a sequence."""
    for rows, places in pieces(z_pLL):
        fields, gates = _fields_and_gates(centred(z_pLL.flatten(1)[:, places])[0], w)
        if mask_LL is not None:
            fields.mul_(mask_LL[rows].flatten())
        torch.mul(fields, gates, out=sides_cLL.flatten(1)[:, places])


def _fields_and_gates(x_pN: Tensor, w: Weights) -> tuple[Tensor, ...]:
    """l and r before gating, and their open gates, [2p, N] each."""
    pair = w.out.shape[0]
    fields, gates = linear(w.proj[: 4 * pair], w.proj_bias[: 4 * pair], x_pN).chunk(2)
    return fields, gates.sigmoid_()


def finish(z_pLL: Tensor, o_pLL: Tensor, w: Weights, drop: Tensor | None, out_pLL: Tensor) -> None:
    """Write z + drop(out(LN(o) · gate)); ``out_pLL`` may be z itself. ``drop`` is [p, 1 or L, 1 or L]."""
    pair = z_pLL.shape[0]
    for rows, places in pieces(z_pLL):
        z = z_pLL[:, rows]
        gate = linear(w.proj[4 * pair :], w.proj_bias[4 * pair :], centred(z.flatten(1))[0]).sigmoid_()
        normal = centred(o_pLL.flatten(1)[:, places])[0].mul_(w.norm[:, None]).add_(w.norm_bias[:, None])
        change = linear(w.out, w.out_bias, gate.mul_(normal)).view_as(z)
        if drop is None:
            torch.add(z, change, out=out_pLL[:, rows])
        else:
            torch.addcmul(z, change, _of_rows(drop, rows), out=out_pLL[:, rows])


class Gradients(NamedTuple):
    """Sums over all sequences, shaped like `Weights`."""

    proj: Tensor
    proj_bias: Tensor
    norm: Tensor
    norm_bias: Tensor
    out: Tensor
    out_bias: Tensor

    @classmethod
    def zeros(cls, weights: Weights) -> Gradients:
        return cls(*(wide_zeros(w) for w in weights))


class Room:
    """Space for what the update of a sequence z [p, L, L] needs on its way, used again for the next.

    Memory that is new to a process costs about as much as filling it several times over.
    """

    def __init__(self, z_pLL: Tensor, backward: bool = False) -> None:
        pair, *places = z_pLL.shape
        self.sides = z_pLL.new_empty(2 * pair, *places)
        if backward:
            self.grad_left, self.grad_o = (torch.empty_like(z_pLL) for _ in range(2))


def backward(
    grad_pLL: Tensor,
    z_pLL: Tensor,
    o_pLL: Tensor,
    w: Weights,
    drop: Tensor | None,
    mask_LL: Tensor | None,
    outgoing: bool,
    room: Room,
    grad_z: Tensor,
    into: Gradients,
) -> None:
    """Write the gradient of z to ``grad_z``, and add those of the weights to ``into``.

    ``room`` has the sides of z, which are lost.
    """
    _finish_backward(grad_pLL, z_pLL, o_pLL, w, drop, room.grad_o, grad_z, into)
    left, right = room.sides.chunk(2)
    grad_o, grad_left, grad_right = room.grad_o, room.grad_left, right  # r is free once l has its gradient
    if outgoing:
        torch.bmm(grad_o, right, out=grad_left)
        torch.bmm(grad_o.mT, left, out=grad_right)
    else:
        torch.bmm(right, grad_o, out=grad_left)
        torch.bmm(left, grad_o.mT, out=grad_right)
    _sides_backward((grad_left, grad_right), grad_pLL, z_pLL, w, mask_LL, grad_z, into)


def _finish_backward(
    grad_pLL: Tensor,
    z_pLL: Tensor,
    o_pLL: Tensor,
    w: Weights,
    drop: Tensor | None,
    grad_o: Tensor,
    grad_x: Tensor,
    into: Gradients,
) -> None:
    """Of `finish`: write the gradient of o, and of x what comes through the output gate."""
    pair, dtype = z_pLL.shape[0], z_pLL.dtype
    weight, bias = w.proj[4 * pair :], w.proj_bias[4 * pair :]
    for rows, places in pieces(z_pLL):
        x = centred(z_pLL[:, rows].flatten(1))[0].to(dtype)
        gate = linear(weight, bias, x).sigmoid_()
        o, scale = centred(o_pLL.flatten(1)[:, places])
        normal = torch.addcmul(w.norm_bias[:, None], o, w.norm[:, None]).to(dtype)
        grad = grad_pLL[:, rows] if drop is None else grad_pLL[:, rows] * _of_rows(drop, rows)
        grad = grad.flatten(1)
        into.out.add_(grad @ (normal * gate).mT)
        into.out_bias.add_(grad.sum(1))
        grad_gated = w.out.mT @ grad
        grad_gate = torch.ops.aten.sigmoid_backward(normal.mul_(grad_gated), gate)
        into.proj[4 * pair :].add_(grad_gate @ x.mT)
        into.proj_bias[4 * pair :].add_(grad_gate.sum(1))
        grad_x.flatten(1)[:, places] = weight.mT @ grad_gate
        grad_normal = grad_gated.mul_(gate).to(o.dtype)
        into.norm.add_((grad_normal * o).sum(1))
        into.norm_bias.add_(grad_normal.sum(1))
        grad_o.flatten(1)[:, places] = centred_backward(grad_normal.mul_(w.norm[:, None]), o, scale)


def _sides_backward(
    grad_sides: tuple[Tensor, Tensor],
    grad_pLL: Tensor,
    z_pLL: Tensor,
    w: Weights,
    mask_LL: Tensor | None,
    grad_z: Tensor,
    into: Gradients,
) -> None:
    """Turn ``grad_z``, the gradient of x that came through the output gate, into the gradient of z."""
    pair = z_pLL.shape[0]
    for rows, places in pieces(z_pLL):
        x, scale = centred(z_pLL.flatten(1)[:, places])
        fields, gates = _fields_and_gates(x, w)
        grad = torch.cat([side.flatten(1)[:, places] for side in grad_sides])
        if mask_LL is not None:
            grad.mul_(mask_LL[rows].flatten())
        grad_parts = torch.empty(4 * pair, x.shape[1], dtype=z_pLL.dtype, device=z_pLL.device)
        torch.mul(grad, gates, out=grad_parts[: 2 * pair])
        torch.ops.aten.sigmoid_backward.grad_input(grad.mul_(fields), gates, grad_input=grad_parts[2 * pair :])
        into.proj[: 4 * pair].add_(grad_parts @ x.to(z_pLL.dtype).mT)
        into.proj_bias[: 4 * pair].add_(grad_parts.sum(1))
        place = grad_z.flatten(1)[:, places]
        change = centred_backward((w.proj[: 4 * pair].mT @ grad_parts).add_(place), x, scale)
        torch.add(change, grad_pLL[:, rows].flatten(1), out=place)


def _of_rows(drop: Tensor, rows: slice) -> Tensor:
    """The part of axis dropout [p, 1 or L, 1 or L] that belongs to ``rows``."""
    return drop if drop.shape[1] == 1 else drop[:, rows]
