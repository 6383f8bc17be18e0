"""RibonanzaNet: a transformer of RNA with a pair stream, which predicts chemical reactivity at every nucleotide.

Source: the facts in the RibonanzaNet specification (architecture 1, quirks 2), taken from the authors' released code.
A batch is [B, L] nucleotides of similar lengths with a mask of the real positions. It knows nothing of losses, of
profiles or of optimizers. Two streams: s [B, L, d] of the sequence and z [B, L, L, p] of its pairs. One layer:

    s = LN(s + Conv(s))                          Conv over 5 positions, over 1 in the last layer
    a = LN(s + Attention(s, bias from z))        the authors add and normalise twice over the same s:
    s = LN(s + a)                                `attention_residual` keeps or drops this line
    s = LN(s + FFN(s))
    z = z + OuterProduct(s) + triangle updates + transition

By default padding changes nothing; the authors' three ways of treating it are `mask_mode` (layers/pair_mask.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checks
from models.errors import ModelError
from models.layers import recompute
from models.layers.handed import HandedLinear, HandedNorm
from models.layers.pair import OuterProduct, RelativePosition, axis_dropout
from models.layers.pair_bias import pair_bias
from models.layers.pair_mask import MASK_MODES, PairMask, masked_softmax, pair_mask
from models.layers.pair_transition import PairTransition
from models.layers.swish_gate import Linear
from models.layers.triangle_attention import TriangleAttention
from models.layers.triangle_library import MULTIPLE
from models.layers.triangle_update import FusedProjection, TriangleUpdate
from models.ribonanzanet_cost import activation_bytes, backward_bytes, count_parameters, flops

__all__ = [
    "RibonanzaNet",
    "RibonanzaNetConfig",
    "activation_bytes",
    "backward_bytes",
    "count_parameters",
    "flops",
]

LETTERS = "ACGUN"  # ids 0 to 4; N is also what padding is made of (spec 1.2)
N = 4  # its embedding is zero and never learns
ATTENTION_NORM_EPS = 1e-6  # of the norm inside attention; 1e-5 everywhere else

_SIZES = {  # layers, width, heads, ffn, pair; base is the published model (spec 1.1), nano ours for tests and trials
    "base": (9, 256, 8, 1024, 64),
    "nano": (4, 128, 4, 512, 32),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "attention_residual": ("double", "single"),
    "pair_dropout_in_axis": ("row", "column"),
    "mask_mode": MASK_MODES,
    "triangle_kernel": ("own", "cuequivariance"),
}


@dataclass(frozen=True, kw_only=True)
class RibonanzaNetConfig:
    """What fixes a RibonanzaNet model. Raises ModelError if the numbers do not describe one.

    The last block of fields are the quirks of the published code, by name (spec 2); the defaults compute what the
    published weights were trained for, wherever there is no padding.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    pair: int  # width of the pair stream; a transition's inner width is four times that
    outer: int = 32  # width of the outer product's factors
    kernel_size: int = 5  # of the convolutions, but 1 in the last layer
    reach: int = 8  # relative positions are clamped to ±reach
    channels: int = 2  # of the output; the published order is 2A3, DMS
    triangle_attention: bool = False  # off in the published weights
    triangle_heads: int = 4
    dropout: float = 0.05
    checkpointing: bool = False  # keep of each layer twice z and once s for the backward pass, recompute the rest
    triangle_kernel: str = "own"  # of triangle updates; cuequivariance: NVIDIA's, if installed (triangle_library.py)

    attention_dropout: float = 0.1  # hard-coded by the authors, beside their configured 0.05
    attention_residual: str = "double"  # single: without the second sum and norm over the same s
    mask_mode: str = "fixed"  # see layers/pair_mask.py; the others are for reproduction and for reading old results
    pair_dropout_in_axis: str = "row"  # of the ingoing update; column is what the outgoing one suggests
    special_tokens: bool = False  # two more letters, <cls> and <eos>, as MultiMolecule's default tokenizer adds
    # The output does not depend on the last layer's update of z, so leaving it out is exact and saves the pair work of
    # one layer. Its parameters stay, with gradients that are exactly zero either way (spec 1.4).
    skip_last_pair_update: bool = True

    @classmethod
    def named(cls, size: str, **overrides: Any) -> RibonanzaNetConfig:
        """The published size base, or the small nano; ``overrides`` replace single fields."""
        layers, width, heads, ffn, pair = checks.published("RibonanzaNet", _SIZES, size)
        return replace(cls(layers=layers, width=width, heads=heads, ffn=ffn, pair=pair), **overrides)

    def __post_init__(self) -> None:
        names = ("layers", "width", "heads", "ffn", "pair", "outer", "kernel_size", "channels", "triangle_heads")
        checks.whole_numbers("RibonanzaNet", self, names)
        checks.whole_numbers("RibonanzaNet", self, ("reach",), least=0)
        if self.kernel_size % 2 == 0:
            raise ModelError(f"RibonanzaNet: kernel_size must be odd to keep the length, not {self.kernel_size}")
        for whole, parts in (("width", "heads"), ("pair", "triangle_heads")):
            if getattr(self, whole) % getattr(self, parts):
                raise ModelError(
                    f"RibonanzaNet: {whole} {getattr(self, whole)} must be a multiple of the"
                    f" {getattr(self, parts)} {parts}"
                )
        checks.dropouts("RibonanzaNet", self, ("dropout", "attention_dropout"))
        for name, choices in _CHOICES.items():
            checks.one_of("RibonanzaNet", self, name, choices)
        if self.triangle_kernel == "cuequivariance" and (self.pair % MULTIPLE or self.mask_mode == "signed"):
            raise ModelError(
                f"RibonanzaNet: triangle_kernel cuequivariance wants a pair width that is a multiple of {MULTIPLE} and"
                f" a mask without signs, not pair {self.pair} and mask_mode {self.mask_mode}; choose own"
            )
        if self.mask_mode == "zero_logit" and self.triangle_attention:
            raise ModelError(
                "RibonanzaNet: mask_mode zero_logit with triangle_attention was never published in a usable form (the"
                " mask changed its meaning from layer 1 on); choose another mask_mode"
            )

    @property
    def vocab(self) -> int:
        """Letters that the model knows: A, C, G, U, N, and <cls>, <eos> with ``special_tokens``."""
        return len(LETTERS) + 2 * self.special_tokens

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class RibonanzaNet(nn.Module):
    """Nucleotides [B, L] -> reactivities [B, L, channels]. Names and shapes beside others' are in layouts/."""

    shapes_recur = True  # of products, from batch to batch: lengths repeat

    def __init__(self, config: RibonanzaNetConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width, padding_idx=N)
        self.outer = OuterProduct(config.width, config.outer, config.pair)
        self.position = RelativePosition(config.reach, config.pair)
        self.blocks = nn.ModuleList(
            Block(config, 1 if i == config.layers - 1 else config.kernel_size) for i in range(config.layers)
        )
        self.head = Linear(config.width, config.channels)
        self.reset_parameters()

    def forward(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Predicted reactivities [B, L, channels] of ``tokens`` [B, L] int64, unbounded.

        ``is_real`` [B, L] bool marks the nucleotides; None means that there is no padding, and is faster than a mask
        that is true everywhere. It must come from lengths: an N (id 4) inside a sequence is real. It is not changed.
        The dtype is that of the computation; a loss should cast to fp32. Every parameter is connected to the output,
        whatever is masked, so that every backward pass gives every parameter a gradient.
        """
        s, z = self.states(tokens, is_real)
        # The authors' "+ 0 · mean(z)", which connects the last update of z, but safe where z overflows.
        output: Tensor = self.head(s) + (z[:1, :1, :1] * 0).nan_to_num().sum()
        return output

    def states(self, tokens: Tensor, is_real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(s [B, L, d], z [B, L, L, p]) after the last layer; arguments as above.

        With ``skip_last_pair_update`` z is a placeholder [1, 1, 1, p] through which the parameters of the update that
        is left out stay connected.
        """
        config = self.config
        mask = pair_mask(config.mask_mode, None if is_real is None else is_real.bool())
        s = self.embed(tokens)
        z = self.outer(s, self.position(tokens.shape[1]))
        for i, block in enumerate(self.blocks):
            kept = mask.later if i else mask.first
            skip = config.skip_last_pair_update and i == config.layers - 1
            s, z = block(s, z, kept, mask, skip)
        return s, z

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter as the authors do, by PyTorch's defaults (spec 1.3), with the triangle gates at 0.73.

        Call it after `to_empty` on a model built on meta.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(generator=generator)
                module.weight[N].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1)
                module.bias.zero_()
            elif isinstance(module, (nn.Linear, nn.Conv1d)):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
                if isinstance(module, FusedProjection):
                    module.reset_gates()


class Block(nn.Module):
    """One layer, (s [B, L, d], z [B, L, L, p]) -> the same (spec 1.3, steps 1 to 10)."""

    def __init__(self, config: RibonanzaNetConfig, kernel_size: int) -> None:
        super().__init__()
        width, self.dropout, self.checkpointing = config.width, config.dropout, config.checkpointing
        self.conv = Conv(width, width, kernel_size, padding=kernel_size // 2)
        self.conv_norm = nn.LayerNorm(width)
        self.attn = SelfAttention(config)
        self.attn_norm = nn.LayerNorm(width, eps=ATTENTION_NORM_EPS)
        self.second_norm = nn.LayerNorm(width) if config.attention_residual == "double" else None
        self.up = Linear(width, config.ffn)
        self.down = Linear(config.ffn, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.pair = PairUpdate(config)

    def forward(
        self, s_BLd: Tensor, z_BLLp: Tensor, kept_BL1: Tensor | None, mask: PairMask, skip_pair: bool
    ) -> tuple[Tensor, Tensor]:
        """``kept_BL1`` multiplies s before the convolution. ``skip_pair``: z is updated at one made-up place only."""
        steps = (s_BLd, z_BLLp, kept_BL1, mask, skip_pair)
        # The transition keeps no more than its input, and is not computed again.
        s, z = recompute.run(self._to_transition, *steps, recompute=self.checkpointing)
        return s, self.pair.transition(z)

    def _to_transition(
        self, s_BLd: Tensor, z_BLLp: Tensor, kept_BL1: Tensor | None, mask: PairMask, skip_pair: bool
    ) -> tuple[Tensor, Tensor]:
        """All but step 10."""
        s = s_BLd if kept_BL1 is None else s_BLd * kept_BL1.to(s_BLd.dtype)
        s = self.conv_norm(s + self.conv(s.mT).mT)
        z, attended = self.attn(s, z_BLLp, mask)
        a = self.attn_norm(s + self._drop(attended))
        s = a if self.second_norm is None else self.second_norm(s + self._drop(a))
        inner = self._drop(F.gelu(self.up(s)))
        s = self.ffn_norm(s + self._drop(self.down(inner)))
        if skip_pair:
            nothing = z.new_zeros(1, 1, 1, z.shape[-1])
            return s, self.pair(s.new_zeros(1, 1, s.shape[-1]), nothing, PairMask())
        return s, self.pair(s, z, mask)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class SelfAttention(nn.Module):
    """Attention along the sequence with a bias from z, [B, L, d] -> [B, L, d]; no linear layer has a bias.

    Written out: its [B, heads, L, L] tensors are small beside one pair tensor, and of a layer's arithmetic it is less
    than a hundredth. So every rule of `mask_mode` needs no kernel of its own.
    """

    def __init__(self, config: RibonanzaNetConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = config.heads, config.head_dim, config.attention_dropout
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.bias_norm = HandedNorm(config.pair)
        self.bias = HandedLinear(config.pair, config.heads, bias=False)
        self.out = Linear(config.width, config.width, bias=False)

    def forward(self, s_BLd: Tensor, z_BLLp: Tensor, mask: PairMask) -> tuple[Tensor, Tensor]:
        """(z, the attended s)"""
        qkv = self.qkv(s_BLd).view(*s_BLd.shape[:2], 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, L, D] each
        z_BLLp, bias_BHLL = pair_bias(z_BLLp, self.bias_norm(), *self.bias())
        weights = masked_softmax((q @ k.mT) * self.head_dim**-0.5 + bias_BHLL, mask)
        if self.training and self.dropout:
            weights = F.dropout(weights, self.dropout)
        return z_BLLp, self.out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class PairUpdate(nn.Module):
    """One layer's update of z, [B, L, L, p] -> [B, L, L, p], from z and s (steps 7 to 9); the transition after it."""

    def __init__(self, config: RibonanzaNetConfig) -> None:
        super().__init__()
        pair, self.dropout = config.pair, config.dropout
        self.in_axis = 1 if config.pair_dropout_in_axis == "row" else 2
        self.outer = OuterProduct(config.width, config.outer, pair)
        self.triangle_out = TriangleUpdate(pair, outgoing=True, kernel=config.triangle_kernel)
        self.triangle_in = TriangleUpdate(pair, outgoing=False, kernel=config.triangle_kernel)
        self.has_attention = config.triangle_attention
        if self.has_attention:
            self.attention_row = TriangleAttention(pair, config.triangle_heads, by_row=True)
            self.attention_column = TriangleAttention(pair, config.triangle_heads, by_row=False)
        self.transition = PairTransition(pair, 4 * pair)

    def forward(self, s_BLd: Tensor, z: Tensor, mask: PairMask) -> Tensor:
        """Steps 7 to 9; the transition, step 10, is called by the block."""
        z = self.outer(s_BLd, z)
        z = self.triangle_out(z, mask.product, self._drop(z, 1))
        z = self.triangle_in(z, mask.product, self._drop(z, self.in_axis))
        if self.has_attention:
            for attention, shared in ((self.attention_row, 1), (self.attention_column, 2)):
                drop, change = self._drop(z, shared), attention(z, mask)
                z = z + (change if drop is None else change * drop)
        return z

    def _drop(self, z: Tensor, shared: int) -> Tensor | None:
        return axis_dropout(z, self.dropout, shared) if self.training and self.dropout else None


class Conv(nn.Conv1d):
    """nn.Conv1d that stays empty when built: RibonanzaNet.reset_parameters fills it."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""
