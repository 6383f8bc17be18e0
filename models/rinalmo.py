"""RiNALMo: a BERT-like encoder of RNA with rotary positions and gated feed-forward layers, trained by masked tokens.

Source: the facts in the RiNALMo specification (architecture 1.1 to 1.4, names 7.1), taken from the authors' released
code. The model reads packed rows (several sequences end to end, see `layers/packing.py`): no linear layer ever meets
padding, and the head runs on the target positions only. It knows nothing of masking, losses or optimizers.

The authors' block differs from an ordinary pre-norm block in one place that their weights depend on:

    h = LN(x);  a = h + Drop(Wo · Attention(h))        # the residual is the normalised h, not x
    y = a + Drop(FFN(LN(a)))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checks
from models.layers import recompute
from models.layers.attention import KERNELS, attention
from models.layers.packing import sequence_of_token
from models.layers.rotary import apply_rotary, rotary_angles
from models.layers.swish_gate import Linear, SwishGate, inner_dim, pad_inner, strip_inner
from models.rinalmo_cost import activation_bytes, count_parameters, flops

__all__ = [
    "RiNALMo",
    "RiNALMoConfig",
    "activation_bytes",
    "add_padding",
    "count_parameters",
    "flops",
    "strip_padding",
]

PAD, MASK = 1, 4  # ids in the 22-letter alphabet (spec 2.1)
# Token dropout rescales by what is kept when 15 % of tokens are selected and 80 % of those masked. A constant of the
# released weights: it stays when a recipe changes the masking rates (spec 4).
KEPT_IN_TRAINING = 1 - 0.15 * 0.8
LAYER_NORM_EPS = 1e-5

_SIZES = {  # blocks, width, heads, inner width of the feed-forward layer (spec 1.1)
    "giga": (33, 1280, 20, 3413),
    "mega": (30, 640, 20, 1706),
    "micro": (12, 480, 20, 1280),
    "nano": (6, 320, 20, 853),
}


@dataclass(frozen=True, kw_only=True)
class RiNALMoConfig:
    """What fixes a RiNALMo model. Raises ModelError if the numbers do not describe one.

    ``ffn`` is the true inner width; ``ffn_pad_to`` rounds the module's width up to a multiple with zeros, which
    changes speed and nothing else. ``init`` is "torch" (PyTorch's defaults, as in the authors' code) or "normal"
    (N(0, 0.02), as in MultiMolecule's class).
    """

    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int = 22  # tokens; that of objective.alphabet or objective.tokenizer
    attention_dropout: float = 0.1  # on the probabilities of attention
    residual_dropout: float = 0.1  # on the output of both branches of a block
    transition_dropout: float = 0.0  # inside the feed-forward layer
    ffn_pad_to: int = 1  # 64 suits tensor cores
    init: str = "torch"
    # The attention residual adds LN(x) instead of x. The authors call it an oversight; the released weights were
    # trained with it, so False gives an ordinary pre-norm block that cannot use them (spec 0, point 2).
    normalised_residual: bool = True
    checkpointing: bool = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: str = "auto"  # of attention: auto, flash, varlen or sdpa; see layers/attention.py

    @classmethod
    def named(cls, size: str, **overrides: Any) -> RiNALMoConfig:
        """The published sizes giga, mega, micro and nano; ``overrides`` replace single fields."""
        layers, width, heads, ffn = checks.published("RiNALMo", _SIZES, size)
        return replace(cls(layers=layers, width=width, heads=heads, ffn=ffn), **overrides)

    def __post_init__(self) -> None:
        checks.whole_numbers("RiNALMo", self, ("layers", "width", "heads", "ffn", "vocab", "ffn_pad_to"))
        checks.heads("RiNALMo", self, rotary=True)
        checks.special_tokens("RiNALMo", self.vocab, MASK)
        checks.dropouts("RiNALMo", self, ("attention_dropout", "residual_dropout", "transition_dropout"))
        checks.one_of("RiNALMo", self, "init", ("torch", "normal"))
        checks.one_of("RiNALMo", self, "kernel", ("auto", *KERNELS))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def ffn_padded(self) -> int:
        """The inner width that the module allocates."""
        return math.ceil(self.ffn / self.ffn_pad_to) * self.ffn_pad_to


class RiNALMo(nn.Module):
    """Packed tokens -> logits over the vocabulary. Parameter names are the "Ours" column of spec 7.1."""

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Embedding(config.vocab, config.width, padding_idx=PAD)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.head = Head(config)
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        positions: Tensor,
        max_seqlen: int,
        target_index: Tensor | None = None,
    ) -> Tensor:
        """Logits [M, V] at the rows ``target_index`` [M] of the packed row, or [T, V] without it.

        ``tokens`` [T] int64 without padding, ``cu_seqlens`` [B+1] int32, ``positions`` [T] restarting at 0 in every
        sequence, ``max_seqlen`` at least the longest length. M may be 0: the empty logits are still connected to
        every parameter and give zero gradients. The dtype is that of the computation; a loss should cast to fp32.
        """
        r_Td = self.hidden(tokens, cu_seqlens, positions, max_seqlen)
        return self.head(r_Td if target_index is None else r_Td.index_select(0, target_index))

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor, positions: Tensor, max_seqlen: int) -> Tensor:
        """The representation [T, d]: the output of the last block after the final layer norm. Arguments as above."""
        x_Td = self.embed(tokens) * self._token_dropout(tokens, cu_seqlens)
        cos, sin = rotary_angles(positions, self.config.head_dim)
        for block in self.blocks:
            x_Td = recompute.run(block, x_Td, cos, sin, cu_seqlens, max_seqlen, recompute=self.config.checkpointing)
        return self.final_norm(x_Td)

    def _token_dropout(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Factors [T, 1] on the embeddings: 0 at <mask>, and 0.88 / (1 - masked share of the sequence) elsewhere.

        Always on, in evaluation too (spec 1.3). The factor barely matters at an embedding scale of 1, because the
        first block normalises, but it does at 0.02.
        """
        is_mask_T = tokens == MASK
        sequence_T = sequence_of_token(cu_seqlens, tokens.shape[0])
        length_B = (cu_seqlens[1:] - cu_seqlens[:-1]).float()
        masked_B = torch.zeros_like(length_B).index_add(0, sequence_T, is_mask_T.float())
        # At least one token counts as kept: a wholly masked sequence is zero whatever the factor, and not 0 · inf.
        factor_B = KEPT_IN_TRAINING * length_B / (length_B - masked_B).clamp(min=1)
        factor_T = factor_B[sequence_T].masked_fill(is_mask_T, 0.0)
        return factor_T.to(self.embed.weight.dtype)[:, None]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter by ``config.init`` (spec 1.2): call it after `to_empty` on a model built on meta.

        Feed-forward layers are drawn at their true width and then padded with zeros, so that ``ffn_pad_to`` changes
        neither the values nor the random numbers that later parameters get.
        """
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith("beta"):
                parameter.fill_(1)
            elif "norm" in name:
                parameter.fill_(1 if name.endswith("weight") else 0)
            elif name == "embed.weight":
                parameter.normal_(0, 1 if config.init == "torch" else 0.02, generator=generator)
                parameter[PAD].zero_()
            else:
                dim = inner_dim(name)
                true = parameter if dim is None else parameter.narrow(dim, 0, config.ffn)
                drawn = torch.empty(true.shape, dtype=parameter.dtype, device=parameter.device)
                if config.init == "normal":
                    drawn.normal_(0, 0.02, generator=generator) if name.endswith("weight") else drawn.zero_()
                else:  # PyTorch's linear layers: U(±1/sqrt(fan_in)) for weight and bias alike
                    bound = (config.ffn if ".down." in name else config.width) ** -0.5
                    drawn.uniform_(-bound, bound, generator=generator)
                parameter.zero_()
                true.copy_(drawn)


class Block(nn.Module):
    """One encoder block, [T, d] -> [T, d] (spec 1.2)."""

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__()
        self.residual_dropout = config.residual_dropout
        self.normalised_residual = config.normalised_residual
        self.attn_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.ffn = SwishGate(config.width, config.ffn_padded, config.transition_dropout)

    def forward(self, x_Td: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        h_Td = self.attn_norm(x_Td)
        residual_Td = h_Td if self.normalised_residual else x_Td
        a_Td = residual_Td + self._drop(self.attn(h_Td, cos, sin, cu_seqlens, max_seqlen))
        return a_Td + self._drop(self.ffn(self.ffn_norm(a_Td)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout, self.training) if self.residual_dropout else x


class SelfAttention(nn.Module):
    """Rotary self-attention within each sequence, [T, d] -> [T, d]; no biases, scale 1/sqrt(head dimension)."""

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.dropout, self.kernel = config.attention_dropout, config.kernel
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.out = Linear(config.width, config.width, bias=False)

    def forward(self, h_Td: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        qkv = self.qkv(h_Td).view(-1, 3, self.heads, self.head_dim)
        q, k = apply_rotary(qkv[:, :2], cos, sin).unbind(1)
        dropout = self.dropout if self.training else 0.0
        out_THD = attention(q, k, qkv[:, 2], cu_seqlens, max_seqlen, dropout=dropout, kernel=self.kernel)
        return self.out(out_THD.flatten(1))


class Head(nn.Module):
    """The language-model head, [M, d] -> [M, V]; exact (erf) GELU; not tied to the embedding (spec 1.2)."""

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.out = Linear(config.width, config.vocab)

    def forward(self, r_Md: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.dense(r_Md))))


class _Embedding(nn.Embedding):
    """nn.Embedding that stays empty when built: RiNALMo.reset_parameters fills it."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


def add_padding(state: dict[str, Tensor], config: RiNALMoConfig) -> dict[str, Tensor]:
    """State with true feed-forward width -> the shapes of the module that ``config.ffn_pad_to`` builds."""
    return pad_inner(state, config.ffn, config.ffn_padded)


def strip_padding(state: dict[str, Tensor], config: RiNALMoConfig) -> dict[str, Tensor]:
    """The inverse of `add_padding`, for everything that is published. Raises ModelError if a pad is not zero."""
    return strip_inner(state, config.ffn, config.ffn_padded)
