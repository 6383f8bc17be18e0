"""What padding does to RibonanzaNet, in the four ways that its authors' code and this project do it.

The published code changes its mask in place while it runs, so that the same call means different things with a bool and
with a number (RibonanzaNet spec 2.1). Here each of these behaviours is a mode with a name, computed once per batch, and
the caller's mask is never touched. All four agree where a batch has no padding.

    fixed       pads are zeroed before every convolution, left out as keys of attention, and zero in the triangle sums:
                padding changes nothing at the real positions
    none        only the embeddings of pads are zeroed (a bool mask in the final published code)
    signed      from layer 1 on pads are multiplied by -1; logits between real and pad positions become -1e-9, that is
                about 0 and not masked; triangle sums carry the signs (a number mask in the final published code)
    zero_logit  pads are zeroed; every logit that involves a pad becomes -1e-9, except the diagonal (the first published
                code)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MASK_MODES = ("fixed", "none", "signed", "zero_logit")
NEARLY_ZERO = -1e-9  # the authors' fill value; the sign of the exponent reads like a slip for -1e9


class PairMask(NamedTuple):
    """None stands for "nothing to do"."""

    first: Tensor | None = None  # [B, L, 1] factor of the sequence stream before the convolution of layer 0
    later: Tensor | None = None  # the same of all later layers
    product: Tensor | None = None  # [B, L, L] factor of what triangle updates sum over
    fill: Tensor | None = None  # [B, 1 or L, L] bool (query, key): attention logits that are set to `value`
    value: float = 0.0

    def additive(self, bias_BHLL: Tensor) -> Tensor | None:
        """The bias with what is left out set to its dtype's minimum, if this mask can be written so; else None."""
        if self.fill is None:
            return bias_BHLL
        if self.value == NEARLY_ZERO:  # replaces the logit, q·k included, which adding to the bias cannot
            return None
        return bias_BHLL.masked_fill(self.fill[:, None], torch.finfo(bias_BHLL.dtype).min)


def pair_mask(mode: str, is_real: Tensor | None) -> PairMask:
    """The mask of ``mode`` for a batch whose real positions are ``is_real`` [B, L] bool; None means no padding."""
    if is_real is None:
        return PairMask()
    kept = is_real.float()[..., None]
    if mode == "none":
        return PairMask(first=kept)
    if mode == "signed":
        sign = 2 * kept - 1
        product = sign @ sign.mT
        return PairMask(kept, sign, product, product < 0, NEARLY_ZERO)
    product = kept @ kept.mT
    if mode == "zero_logit":
        off_diagonal = ~torch.eye(is_real.shape[1], dtype=torch.bool, device=is_real.device)
        return PairMask(kept, kept, product, (product == 0) & off_diagonal, NEARLY_ZERO)
    # The smallest finite number instead of -inf: a row that is padding alone stays finite.
    return PairMask(kept, kept, product, ~is_real[:, None, :], torch.finfo(torch.float32).min)


def masked_softmax(logits: Tensor, mask: PairMask) -> Tensor:
    """Attention weights of ``logits`` [B, ..., L, L] in fp32 at least, after the mask's rule."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask.fill is not None:
        fill = mask.fill.view(mask.fill.shape[0], *[1] * (logits.dim() - 3), *mask.fill.shape[1:])
        logits = logits.masked_fill(fill, mask.value)
    return torch.softmax(logits, dim=-1)
