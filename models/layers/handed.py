"""Layers that hand their weights to a larger computation instead of computing something themselves.

ZeRO-3 holds a parameter whole only while the module that owns it runs. Where one kernel needs the weights of several
layers, as those of the pair stream do (layers/pair_update.py), each layer hands out a copy in its own forward. The
copies are small, and names, shapes and initial values are those of the layers that they stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.swish_gate import Linear


class HandedLinear(Linear):
    """() -> (weight [out, in], bias [out] or None), copied."""

    def forward(self) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        return self.weight.clone(), None if self.bias is None else self.bias.clone()


class HandedNorm(nn.LayerNorm):
    """() -> (weight [p], bias [p]), copied."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.weight.clone(), self.bias.clone()


def after_norm(norm: HandedNorm, linear: HandedLinear) -> tuple[Tensor, Tensor]:
    """(weight, bias) of ``linear`` with the norm's own put into them, in the parameters' dtype.

    linear(LN(z)) then is this linear layer of z merely centred and scaled, which saves two passes over z.
    """
    scale, shift = norm()
    weight, bias = linear()
    with torch.autocast(weight.device.type, enabled=False):
        moved = weight @ shift
        return weight * scale, moved if bias is None else moved + bias
