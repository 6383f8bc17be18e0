"""The triangle update by NVIDIA's cuEquivariance kernels, where they are installed (RibonanzaNet spec 11.5).

Their function gates AlphaFold 2's way, after its output projection. With the identity there it is LN(o) · output gate,
to which our output projection is applied. Our ingoing update is its incoming one with left and right exchanged. Their
sides are named a and b: o[i, j] = sum over k of a[i, k] b[j, k], or of a[k, i] b[k, j].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.layers.pieces import LAYER_NORM_EPS, compute_dtype

if TYPE_CHECKING:
    from models.layers.triangle_update import Weights

MULTIPLE = 32  # of the pair width, which the kernels want


def library_update(
    z_BLLp: Tensor, w: Weights, product_BLL: Tensor | None, drop: Tensor | None, outgoing: bool
) -> Tensor:
    """[B, L, L, p], z with the update added, as `triangle_update` computes it.

    Raises ModelError if the kernels are not installed.
    """
    pair, dtype = z_BLLp.shape[-1], compute_dtype(z_BLLp)
    sides, gates = slice(0, 2 * pair), slice(2 * pair, 4 * pair)
    parts = [w.proj[sides], w.proj_bias[sides], w.proj[gates], w.proj_bias[gates]]
    if not outgoing:
        parts = [torch.cat(part.chunk(2)[::-1]) for part in parts]
    p_in, p_in_bias, g_in, g_in_bias = (part.to(dtype) for part in parts)
    with torch.autocast(z_BLLp.device.type, enabled=False):
        gated = _kernel()(
            z_BLLp.to(dtype),
            direction="outgoing" if outgoing else "incoming",
            mask=z_BLLp.new_ones(z_BLLp.shape[:3], dtype=dtype) if product_BLL is None else product_BLL.to(dtype),
            norm_in_weight=w.norm.to(dtype),
            norm_in_bias=w.norm_bias.to(dtype),
            p_in_weight=p_in,
            p_in_bias=p_in_bias,
            g_in_weight=g_in,
            g_in_bias=g_in_bias,
            norm_out_weight=w.out_norm.to(dtype),
            norm_out_bias=w.out_norm_bias.to(dtype),
            p_out_weight=torch.eye(pair, dtype=dtype, device=z_BLLp.device),
            p_out_bias=torch.zeros(pair, dtype=dtype, device=z_BLLp.device),
            g_out_weight=w.proj[4 * pair :].to(dtype),
            g_out_bias=w.proj_bias[4 * pair :].to(dtype),
            eps=LAYER_NORM_EPS,
        )
        change = F.linear(gated, w.out.to(dtype), w.out_bias.to(dtype))
        return z_BLLp + (change if drop is None else change * drop.to(dtype))


def _kernel() -> Callable[..., Tensor]:
    try:
        from cuequivariance_torch import triangle_multiplicative_update
    except ImportError as error:
        raise _missing(error) from error

    def kernel(*arguments: Any, **settings: Any) -> Tensor:
        try:
            found: Tensor = triangle_multiplicative_update(*arguments, **settings)
        except ImportError as error:  # the package is there, but not its cuequivariance-ops-torch for this CUDA
            raise _missing(error) from error
        return found

    return kernel


def _missing(error: ImportError) -> ModelError:
    return ModelError(
        f"model.triangle_kernel is cuequivariance, which cannot be used here ({error}); install rnafoundry[kernels] on "
        "a machine with an NVIDIA GPU, in the variant for torch's CUDA, or set it to own"
    )
