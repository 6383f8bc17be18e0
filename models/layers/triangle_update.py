"""The triangle multiplicative update of one sequence, forward and backward, a few rows of z at a time.

With x = LN(z), l and r gated projections of x, and M the mask of pairs (spec 1.3):

    outgoing   o[i, j] = sum over k of l[i, k] r[j, k]
    ingoing    o[i, j] = sum over k of l[k, j] r[k, i], AlphaFold 2's with its operands swapped
    z + drop(out(LN(o) · output gate)): the gate acts before the output projection, and nothing divides by the length

The sums over k are matrix products with the channels in front, so the projections are written in that order, and o is
turned back a few rows at a time. Of one update only z and o need to be kept; the rest is computed again from them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm, after_norm
from models.layers.pair_rows import NORM_EPS, centred, centred_backward, row_slices, wide_zeros


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


def plain_update(z: Tensor, weights: Weights, drop: Tensor | None, mask: Tensor | None, outgoing: bool) -> Tensor:
    """[B, L, L, p], the same as below for a batch, for compilers, which choose themselves what to keep."""
    pair = z.shape[-1]
    x = F.layer_norm(z, (pair,), eps=NORM_EPS).to(z.dtype)
    fields, gates, gate = F.linear(x, weights.proj, weights.proj_bias).split((2 * pair, 2 * pair, pair), dim=-1)
    sides = fields * gates.sigmoid()
    if mask is not None:
        sides = sides * mask[..., None].to(z.dtype)
    left, right = sides.permute(0, 3, 1, 2).chunk(2, dim=1)
    o = (left @ right.mT if outgoing else right.mT @ left).permute(0, 2, 3, 1)
    norm, norm_bias = (w.to(o.dtype) for w in (weights.norm, weights.norm_bias))
    change = F.linear(F.layer_norm(o, (pair,), norm, norm_bias, NORM_EPS) * gate.sigmoid(), weights.out, weights.out_bias)
    return z + (change if drop is None else change * drop)


def product(sides_cLL: Tensor, outgoing: bool, out_pLL: Tensor | None = None) -> Tensor:
    """o [p, L, L] of the sides l and r [2p, L, L]."""
    left, right = sides_cLL.chunk(2)
    return torch.bmm(left, right.mT, out=out_pLL) if outgoing else torch.bmm(right.mT, left, out=out_pLL)


def make_sides(z_LLp: Tensor, w: Weights, mask_LL: Tensor | None, sides_cLL: Tensor, parts_cN: Tensor | None) -> None:
    """Write l and r [2p, L, L] of a sequence, and before gating with their open gates, [4p, L * L], if asked for."""
    pair = z_LLp.shape[-1]
    weight, bias = w.proj[: 4 * pair], w.proj_bias[: 4 * pair, None]
    sides_cN = sides_cLL.flatten(1)
    for rows, places in row_slices(z_LLp):
        parts = torch.addmm(bias, weight, centred(z_LLp[rows].flatten(0, 1))[0].mT)
        fields, gates = parts.chunk(2)
        gates.sigmoid_()
        torch.mul(fields, gates, out=sides_cN[:, places])
        if mask_LL is not None:
            sides_cN[:, places].mul_(mask_LL[rows].flatten())
        if parts_cN is not None:
            parts_cN[:, places] = parts


def finish(z_LLp: Tensor, o_pLL: Tensor, w: Weights, drop: Tensor | None, out_LLp: Tensor) -> None:
    """Write z + drop(out(LN(o) · gate)); ``out_LLp`` may be z itself. ``drop`` is [1 or L, 1 or L, p]."""
    pair = z_LLp.shape[-1]
    o_pN = o_pLL.flatten(1)
    for rows, places in row_slices(z_LLp):
        z_Np = z_LLp[rows].flatten(0, 1)
        gate = torch.addmm(w.proj_bias[4 * pair :], centred(z_Np)[0], w.proj[4 * pair :].mT).sigmoid_()
        o_Np = _turned(o_pN[:, places], w.norm.dtype)
        gated = F.layer_norm(o_Np, (pair,), w.norm, w.norm_bias, NORM_EPS).to(z_LLp.dtype).mul_(gate)
        change = torch.addmm(w.out_bias, gated, w.out.mT).view_as(z_LLp[rows])
        if drop is None:
            torch.add(z_LLp[rows], change, out=out_LLp[rows])
        else:
            torch.addcmul(z_LLp[rows], change, _of_rows(drop, rows), out=out_LLp[rows])


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


def backward(
    grad_LLp: Tensor,
    z_LLp: Tensor,
    o_pLL: Tensor,
    sides_cLL: Tensor,
    parts_cN: Tensor,
    w: Weights,
    drop: Tensor | None,
    mask_LL: Tensor | None,
    outgoing: bool,
    into: Gradients,
) -> Tensor:
    """The gradient of z; those of the weights are added to ``into``. ``sides`` and ``parts`` are those of z."""
    grad_o, grad_x = _finish_backward(grad_LLp, z_LLp, o_pLL, w, drop, into)
    left, right = sides_cLL.chunk(2)
    grad_sides = torch.empty_like(sides_cLL)
    grad_left, grad_right = grad_sides.chunk(2)
    if outgoing:
        torch.bmm(grad_o, right, out=grad_left)
        torch.bmm(grad_o.mT, left, out=grad_right)
    else:
        torch.bmm(right, grad_o, out=grad_left)
        torch.bmm(left, grad_o.mT, out=grad_right)
    _sides_backward(grad_sides, grad_LLp, grad_x, z_LLp, parts_cN, w, mask_LL, into)
    return grad_x


def _finish_backward(
    grad_LLp: Tensor, z_LLp: Tensor, o_pLL: Tensor, w: Weights, drop: Tensor | None, into: Gradients
) -> tuple[Tensor, Tensor]:
    """(gradient of o [p, L, L], that of x through the output gate [L, L, p]) of `finish`."""
    pair = z_LLp.shape[-1]
    grad_x, grad_o = torch.empty_like(z_LLp), torch.empty_like(o_pLL)
    o_pN, grad_o_pN = o_pLL.flatten(1), grad_o.flatten(1)
    weight, bias = w.proj[4 * pair :], w.proj_bias[4 * pair :]
    for rows, places in row_slices(z_LLp):
        x = centred(z_LLp[rows].flatten(0, 1))[0]
        gate = torch.addmm(bias, x, weight.mT).sigmoid_()
        o_Np = _turned(o_pN[:, places], w.norm.dtype)
        normal, mean, scale = torch.native_layer_norm(o_Np, (pair,), w.norm, w.norm_bias, NORM_EPS)
        normal = normal.to(z_LLp.dtype)
        grad = grad_LLp[rows] if drop is None else grad_LLp[rows] * _of_rows(drop, rows)
        grad = grad.flatten(0, 1)
        into.out.add_(grad.mT @ (normal * gate))
        into.out_bias.add_(grad.sum(0))
        grad_gated = grad @ w.out
        grad_gate = torch.ops.aten.sigmoid_backward(grad_gated * normal, gate)
        into.proj[4 * pair :].add_(grad_gate.mT @ x)
        into.proj_bias[4 * pair :].add_(grad_gate.sum(0))
        grad_x[rows] = (grad_gate @ weight).view_as(z_LLp[rows])
        grad_o_Np, grad_norm, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_gated.mul_(gate).to(o_Np.dtype), o_Np, (pair,), mean, scale, w.norm, w.norm_bias, (True, True, True)
        )
        into.norm.add_(grad_norm)
        into.norm_bias.add_(grad_norm_bias)
        grad_o_pN[:, places] = grad_o_Np.mT
    return grad_o, grad_x


def _sides_backward(
    grad_sides: Tensor,
    grad_LLp: Tensor,
    grad_x: Tensor,
    z_LLp: Tensor,
    parts_cN: Tensor,
    w: Weights,
    mask_LL: Tensor | None,
    into: Gradients,
) -> None:
    """Turn ``grad_x``, what came through the output gate, into the gradient of z."""
    pair = z_LLp.shape[-1]
    weight, grad_sides_cN = w.proj[: 4 * pair], grad_sides.flatten(1)
    for rows, places in row_slices(z_LLp):
        z_Np = z_LLp[rows].flatten(0, 1)
        x, mean, scale = centred(z_Np)
        grad = grad_sides_cN[:, places]
        if mask_LL is not None:
            grad = grad * mask_LL[rows].flatten()
        fields, gates = parts_cN[:, places].chunk(2)
        grad_parts = torch.empty(4 * pair, x.shape[0], dtype=z_LLp.dtype, device=z_LLp.device)
        torch.mul(grad, gates, out=grad_parts[: 2 * pair])
        torch.ops.aten.sigmoid_backward.grad_input(grad * fields, gates, grad_input=grad_parts[2 * pair :])
        into.proj[: 4 * pair].add_(grad_parts @ x)
        into.proj_bias[: 4 * pair].add_(grad_parts.sum(1))
        total = grad_x[rows].flatten(0, 1) + grad_parts.mT @ weight
        change = centred_backward(total, z_Np, mean, scale)
        grad_x[rows] = change.add_(grad_LLp[rows].flatten(0, 1)).view_as(z_LLp[rows])


def _turned(o_pN: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, p], contiguous."""
    return o_pN.mT.contiguous().to(dtype)


def _of_rows(drop: Tensor, rows: slice) -> Tensor:
    """The part of axis dropout [1 or L, 1 or L, p] that belongs to ``rows``."""
    return drop if drop.shape[0] == 1 else drop[rows]
