"""Layers that hand their weights to a larger computation instead of computing something themselves.

ZeRO-3 holds a parameter whole only while the module that owns it runs. Where one kernel needs the weights of several
layers, as those of the pair stream do (layers/triangle_update.py), each layer hands out a copy in its own forward. The
copies are small, and names, shapes and initial values are those of the layers that they stand for.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.swish_gate import Linear


class HandedLinear(Linear):
    """() -> (weight [out, in], bias [out] if there is one), copied."""

    def forward(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (self.weight.clone(),) if self.bias is None else (self.weight.clone(), self.bias.clone())


class HandedNorm(nn.LayerNorm):
    """() -> (weight [p], bias [p]), copied."""

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.weight.clone(), self.bias.clone()
