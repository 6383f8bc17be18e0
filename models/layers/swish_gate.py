"""The gated feed-forward layer of RiNALMo: a Swish branch with a learnable slope, times a plain branch.

    u = Wswish z + bswish,  p = Wplain z + bplain,  out = Wdown (u · sigmoid(beta · u) · p) + bdown

The inner dimension may be padded with zeros to a multiple that suits tensor cores (3413 -> 3456). The pads' gradients
are exactly zero, because each factor of them meets a zero of another, and stay zero under AdamW with weight decay: the
function and its training are those of the unpadded layer. Initialisation is the model's affair: a new layer is empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import ModelError

# The tensors of one layer that carry the inner dimension, and where they carry it.
INNER_DIM = {"swish.weight": 0, "swish.bias": 0, "plain.weight": 0, "plain.bias": 0, "down.weight": 1}


class Linear(nn.Linear):
    """nn.Linear that stays empty when built: the model fills every parameter once, by its own rule."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class SwishGate(nn.Module):
    """[T, d] -> [T, d] with ``inner`` units per branch (pads included). ``dropout`` acts on the gated units."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.swish = Linear(width, inner)
        self.plain = Linear(width, inner)
        self.down = Linear(inner, width)
        self.beta = nn.Parameter(torch.empty(1))

    def forward(self, z_Td: Tensor) -> Tensor:
        u_Tf = self.swish(z_Td)
        # beta in the dtype of u: an fp32 scalar would lift the largest tensors of the block to fp32 under autocast.
        gated_Tf = u_Tf * torch.sigmoid(self.beta.to(u_Tf.dtype) * u_Tf) * self.plain(z_Td)
        return self.down(F.dropout(gated_Tf, self.dropout, self.training) if self.dropout else gated_Tf)


def pad_inner(state: dict[str, Tensor], true: int, padded: int) -> dict[str, Tensor]:
    """Copy of a model's ``state`` whose feed-forward tensors grow from ``true`` to ``padded`` units, by zeros.

    Works on anything shaped like the parameters, optimizer moments too. Raises ModelError if a size is not ``true``.
    """
    grown = {}
    for name, x in state.items():
        dim = inner_dim(name)
        if dim is not None:
            _check_size(name, x, dim, true)
            shape = list(x.shape)
            shape[dim] = padded - true
            x = torch.cat((x, x.new_zeros(shape)), dim=dim)
        grown[name] = x
    return grown


def strip_inner(state: dict[str, Tensor], true: int, padded: int) -> dict[str, Tensor]:
    """Undo `pad_inner`. Raises ModelError if a pad is not zero: cutting it off would change the model."""
    cut = {}
    for name, x in state.items():
        dim = inner_dim(name)
        if dim is not None:
            _check_size(name, x, dim, padded)
            if x.narrow(dim, true, padded - true).count_nonzero():
                raise ModelError(
                    f"the padding of {name} (units {true} to {padded - 1}) is not zero, so cutting it off would change"
                    " the model; the weights were changed outside of training or belong to another ffn size"
                )
            x = x.narrow(dim, 0, true).clone()
        cut[name] = x
    return cut


def inner_dim(name: str) -> int | None:
    """The dimension along which the parameter ``name`` of a model carries the inner width; None if it does not."""
    return next((dim for tail, dim in INNER_DIM.items() if name.endswith("ffn." + tail)), None)


def _check_size(name: str, x: Tensor, dim: int, expected: int) -> None:
    if x.shape[dim] != expected:
        raise ModelError(f"{name} has {x.shape[dim]} feed-forward units where the configuration says {expected}")
