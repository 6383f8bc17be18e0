"""The triangle multiplicative update of RibonanzaNet's pair stream (spec 1.3), keeping z and one product.

With x = LN(z), l and r gated projections of x, and M the mask of pairs:

    outgoing   o[i, j] = sum over k of l[i, k] r[j, k]
    ingoing    o[i, j] = sum over k of l[k, j] r[k, i], AlphaFold 2's with its operands swapped
    z + drop(out(LN(o) · output gate)): the gate acts before the output projection, and nothing divides by the length

Autograd would keep twelve tensors like z of an update. Here z and o are kept, and the rest is computed again, a fifth
of an update's arithmetic at 177 nucleotides; on CPU a piece at a time (see `pieces.py`), for the sums over k a sequence
at a time. Sides and o have their channels in front, as the sums over k want them: products write that order themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.handed import HandedLinear, HandedNorm
from models.layers.pieces import (
    LAYER_NORM_EPS,
    WHOLE,
    Total,
    compute_dtype,
    piece_tokens,
    slices,
    through_norm,
    wide_normed,
)
from models.layers.triangle_library import library_update

Piece = tuple[slice, slice]  # of the sequences of a group, and of the rows i of each


class Weights(NamedTuple):
    norm: Tensor  # [p]
    norm_bias: Tensor
    proj: Tensor  # [5p, p]: left, right, left gate, right gate, output gate
    proj_bias: Tensor
    out_norm: Tensor  # [p]
    out_norm_bias: Tensor
    out: Tensor  # [p, p]
    out_bias: Tensor

    def cast(self, dtype: torch.dtype) -> Weights:
        """Those of products in ``dtype``; those of norms stay as they are."""
        products = ("proj", "proj_bias", "out", "out_bias")
        return self._replace(**{name: getattr(self, name).to(dtype) for name in products})


class TriangleUpdate(nn.Module):
    """[B, L, L, p] -> [B, L, L, p], z with the update added."""

    def __init__(self, pair: int, outgoing: bool, kernel: str = "own") -> None:
        super().__init__()
        self.outgoing, self.kernel = outgoing, kernel
        self.norm = HandedNorm(pair)
        self.proj = FusedProjection(pair)
        self.out_norm = HandedNorm(pair)
        self.out = HandedLinear(pair, pair)

    def forward(self, z_BLLp: Tensor, product_BLL: Tensor | None, drop: Tensor | None) -> Tensor:
        """``product`` is the mask M of pairs, ``drop`` [B, 1 or L, 1 or L, p] factors of the update; None for ones."""
        w = Weights(*self.norm(), *self.proj(), *self.out_norm(), *self.out())
        if self.kernel == "cuequivariance":
            return library_update(z_BLLp, w, product_BLL, drop, self.outgoing)
        if torch.compiler.is_compiling():
            return plain_update(z_BLLp, w, product_BLL, drop, self.outgoing)
        out: Tensor = _Update.apply(  # type: ignore[no-untyped-call]
            z_BLLp, product_BLL, drop, self.outgoing, compute_dtype(z_BLLp), *w
        )
        return out


class FusedProjection(HandedLinear):
    """The five projections of a triangle update in one tensor, see `Weights`."""

    def __init__(self, pair: int) -> None:
        super().__init__(pair, 5 * pair)
        self.pair = pair

    def reset_gates(self) -> None:
        """The authors' start of all gates: weight 0 and bias 1, that is 0.73 everywhere."""
        self.weight[2 * self.pair :].zero_()
        self.bias[2 * self.pair :].fill_(1)


def plain_update(z: Tensor, w: Weights, product: Tensor | None, drop: Tensor | None, outgoing: bool) -> Tensor:
    """The same, for compilers, which choose themselves what to keep."""
    pair = z.shape[-1]
    x = F.layer_norm(z, (pair,), w.norm, w.norm_bias, LAYER_NORM_EPS)
    fields, gates, gate = F.linear(x, w.proj, w.proj_bias).split((2 * pair, 2 * pair, pair), -1)
    sides = fields * gates.sigmoid()
    if product is not None:
        sides = sides * product[..., None].to(sides.dtype)
    left, right = sides.permute(3, 0, 1, 2).chunk(2)
    o = (left @ right.mT if outgoing else right.mT @ left).permute(1, 2, 3, 0)
    normal = F.layer_norm(o, (pair,), w.out_norm, w.out_norm_bias, LAYER_NORM_EPS)
    change = F.linear(normal * gate.sigmoid(), w.out, w.out_bias)
    return z + (change if drop is None else change * drop)


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        product: Tensor | None,
        drop: Tensor | None,
        outgoing: bool,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        z, product = z.contiguous(), None if product is None else product.to(dtype)
        ctx.outgoing, ctx.dtype = outgoing, dtype
        w, y, kept = Weights(*weights).cast(dtype), torch.empty_like(z), []
        with torch.autocast(z.device.type, enabled=False):
            for group in _Group.all(z, product, drop, dtype):
                o_pGLL = group.forward(w, outgoing, y)
                if any(ctx.needs_input_grad):
                    kept.append(o_pGLL)
        ctx.save_for_backward(z, product, drop, *weights, *kept)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, product, drop, *others = ctx.saved_tensors
        weights, kept = Weights(*others[:8]), others[8:]
        w, totals = weights.cast(ctx.dtype), [Total(weight) for weight in weights]
        grad, grad_z = grad.contiguous(), torch.empty_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for group, o_pGLL in zip(_Group.all(z, product, drop, ctx.dtype), kept, strict=True):
                group.backward(w, ctx.outgoing, o_pGLL, grad, grad_z, totals)
        return grad_z, None, None, None, None, *(total.result() for total in totals)


def sequences_together(z_BLLp: Tensor, dtype: torch.dtype) -> int:
    """One on CPU; elsewhere as many as `WHOLE` has room for with all that the backward pass makes, sixteen like z."""
    return 1 if z_BLLp.device.type == "cpu" else WHOLE // max(16 * z_BLLp[:1].numel() * dtype.itemsize, 1)


class _Group:
    """Some sequences of a batch, whose sums over k are made together: all that have room, on CPU one."""

    def __init__(
        self, of: slice, z: Tensor, product: Tensor | None, drop: Tensor | None, room: dict[str, Tensor]
    ) -> None:
        self.of, self.z = of, z[of]
        self.product, self.drop = (None if t is None else t[of] for t in (product, drop))
        self.room = room  # of the group before: memory that is new to a process costs more than filling it

    @classmethod
    def all(cls, z: Tensor, product: Tensor | None, drop: Tensor | None, dtype: torch.dtype) -> Iterator[_Group]:
        room: dict[str, Tensor] = {}
        for of in slices(len(z), sequences_together(z, dtype)):
            yield cls(of, z, product, drop, room)

    def forward(self, w: Weights, outgoing: bool, y: Tensor) -> Tensor:
        """Write z and the update to ``y`` of all sequences; o [p, G, L, L]."""
        pair, y = self.z.shape[-1], y[self.of]
        sides = self._room("sides", 2 * pair, w.proj.dtype)
        for piece in self._pieces(w):
            x_Tp = self._normed(w, piece)[1].to(w.proj.dtype)
            fields, gates = torch.addmm(w.proj_bias[: 4 * pair, None], w.proj[: 4 * pair], x_Tp.t()).chunk(2)
            self._gated(fields, gates.sigmoid_(), piece, sides)
        left, right = sides.flatten(1, 2).view(2, -1, *sides.shape[2:])
        o = (torch.bmm(left, right.mT) if outgoing else torch.bmm(right.mT, left)).view(pair, *sides.shape[1:])
        for piece in self._pieces(w):
            x_Tp = self._normed(w, piece)[1].to(w.proj.dtype)
            gate_Tp = torch.addmm(w.proj_bias[4 * pair :], x_Tp, w.proj[4 * pair :].t()).sigmoid_()
            normal_Tp = self._normed_product(w, o, piece)[1]
            change = torch.addmm(w.out_bias, gate_Tp.mul_(normal_Tp), w.out.t()).view(self.z[piece].shape)
            drop = self._drop(piece)
            if drop is None:
                torch.add(self.z[piece], change, out=y[piece])
            else:
                torch.addcmul(self.z[piece], change, drop.to(change.dtype), out=y[piece])
        return o

    def backward(
        self, w: Weights, outgoing: bool, o: Tensor, grad: Tensor, grad_z: Tensor, totals: list[Total]
    ) -> None:
        """Write the gradient of z to ``grad_z``, given that of the result, and add up those of the weights."""
        pair, grad, grad_z = self.z.shape[-1], grad[self.of], grad_z[self.of]
        parts, sides, grad_sides, grad_o = (
            self._room(name, n * pair, w.proj.dtype)
            for name, n in (("parts", 4), ("sides", 2), ("grad_sides", 2), ("grad_o", 1))
        )
        for piece in self._pieces(w):
            x_Tp = self._normed(w, piece)[1].to(w.proj.dtype)
            part_cT = _channels_first(parts, piece)
            torch.addmm(w.proj_bias[: 4 * pair, None], w.proj[: 4 * pair], x_Tp.t(), out=part_cT)
            fields, gates = part_cT.chunk(2)
            self._gated(fields, gates.sigmoid_(), piece, sides)
            self._through_output(w, piece, x_Tp, o, grad, grad_o, grad_z, totals)
        left, right, grad_left, grad_right = (t.flatten(0, 1) for two in (sides, grad_sides) for t in two.chunk(2))
        grad_NLL = grad_o.flatten(0, 1)
        if outgoing:
            torch.bmm(grad_NLL, right, out=grad_left), torch.bmm(grad_NLL.mT, left, out=grad_right)
        else:
            torch.bmm(right, grad_NLL, out=grad_left), torch.bmm(left, grad_NLL.mT, out=grad_right)
        for piece in self._pieces(w):
            through = self._through_sides(w, piece, parts, grad_sides, grad_z, totals)
            torch.add(grad[piece], through.view(grad[piece].shape), out=grad_z[piece])

    def _through_output(
        self,
        w: Weights,
        piece: Piece,
        x_Tp: Tensor,
        o: Tensor,
        grad: Tensor,
        grad_o: Tensor,
        grad_x: Tensor,
        totals: list[Total],
    ) -> None:
        """Write the gradient of o, and of x what comes through the output gate."""
        *_, of_proj, of_proj_bias, of_norm, of_norm_bias, of_out, of_out_bias = totals
        dtype, gate_rows, drop = x_Tp.dtype, slice(4 * x_Tp.shape[1], None), self._drop(piece)
        gate_Tp = torch.addmm(w.proj_bias[gate_rows], x_Tp, w.proj[gate_rows].t()).sigmoid_()
        o_Tp, normal, *statistics = self._normed_product(w, o, piece)
        normal_Tp = normal.to(dtype)
        grad_Tp = (grad[piece] if drop is None else grad[piece] * drop).to(dtype).flatten(0, 2)
        of_out.add_product(grad_Tp, normal_Tp * gate_Tp)
        of_out_bias.add_rows(grad_Tp)
        grad_gated = torch.mm(grad_Tp, w.out)
        grad_gate = torch.ops.aten.sigmoid_backward(normal_Tp.mul_(grad_gated), gate_Tp)
        of_proj.add_product(grad_gate, x_Tp, gate_rows)
        of_proj_bias.add_rows(grad_gate, gate_rows)
        through, *rest = through_norm(grad_gated.mul_(gate_Tp), o_Tp, statistics, w.out_norm, w.out_norm_bias)
        of_norm.add(rest[0])
        of_norm_bias.add(rest[1])
        _channels_first(grad_o, piece).copy_(through.t())
        grad_x_Tp = grad_x[piece].flatten(0, 2)
        if grad_x.dtype == dtype:
            torch.mm(grad_gate, w.proj[gate_rows], out=grad_x_Tp)
        else:
            grad_x_Tp.copy_(torch.mm(grad_gate, w.proj[gate_rows]))

    def _through_sides(
        self, w: Weights, piece: Piece, parts: Tensor, grad_sides: Tensor, grad_x: Tensor, totals: list[Total]
    ) -> Tensor:
        """The gradient [T, p] of z through its norm, of l, r and of ``grad_x``, which came through the output gate."""
        of_norm, of_norm_bias, of_proj, of_proj_bias, *_ = totals
        z_Tp, x, *statistics = self._normed(w, piece)
        x_Tp, grad_cT = x.to(w.proj.dtype), _channels_first(grad_sides, piece)
        fields, gates = _channels_first(parts, piece).chunk(2)
        if self.product is not None:
            grad_cT = grad_cT * self.product[piece].flatten()
        front, grad_parts_cT = slice(0, 2 * len(fields)), grad_cT.new_empty(2 * len(fields), len(x_Tp))
        grad_fields, grad_gates = grad_parts_cT.chunk(2)
        torch.mul(grad_cT, gates, out=grad_fields)
        torch.ops.aten.sigmoid_backward.grad_input(grad_cT * fields, gates, grad_input=grad_gates)
        of_proj.add_product(grad_parts_cT.t(), x_Tp, front)
        of_proj_bias.add_rows(grad_parts_cT.t(), front)
        grad_Tp = torch.addmm(grad_x[piece].flatten(0, 2).to(x_Tp.dtype), grad_parts_cT.t(), w.proj[front])
        through, *rest = through_norm(grad_Tp, z_Tp, statistics, w.norm, w.norm_bias)
        of_norm.add(rest[0])
        of_norm_bias.add(rest[1])
        return through

    def _pieces(self, w: Weights) -> Iterator[Piece]:
        """Some rows i of a sequence each, or of several sequences all."""
        sequences, length = self.z.shape[:2]
        rows = piece_tokens(len(w.proj), w.proj.dtype, self.z.device) // max(length, 1)
        if rows >= length:
            return ((of, slice(0, length)) for of in slices(sequences, rows // max(length, 1)))
        return ((slice(b, b + 1), of) for b in range(sequences) for of in slices(length, rows))

    def _room(self, name: str, channels: int, dtype: torch.dtype) -> Tensor:
        shape = (channels, *self.z.shape[:3])
        if name not in self.room or self.room[name].shape != shape:
            self.room[name] = self.z.new_empty(shape, dtype=dtype)
        return self.room[name]

    def _normed(self, w: Weights, piece: Piece) -> tuple[Tensor, ...]:
        return wide_normed(self.z[piece].flatten(0, 2), w.norm, w.norm_bias)

    def _normed_product(self, w: Weights, o: Tensor, piece: Piece) -> tuple[Tensor, ...]:
        return wide_normed(_channels_first(o, piece).t().contiguous(), w.out_norm, w.out_norm_bias)

    def _gated(self, fields_cT: Tensor, gates_cT: Tensor, piece: Piece, sides: Tensor) -> None:
        """Write l and r of a piece."""
        side_cT = _channels_first(sides, piece)
        torch.mul(fields_cT, gates_cT, out=side_cT)
        if self.product is not None:
            side_cT.mul_(self.product[piece].flatten())

    def _drop(self, piece: Piece) -> Tensor | None:
        if self.drop is None:
            return None
        return self.drop[piece[0]] if self.drop.shape[1] == 1 else self.drop[piece]


def _channels_first(x_cGLL: Tensor, piece: Piece) -> Tensor:
    """[c, T], a view."""
    part = x_cGLL[:, piece[0], piece[1]]
    return part.view(len(part), part.shape[1:].numel())
