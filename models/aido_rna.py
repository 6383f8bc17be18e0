"""AIDO.RNA: a BERT-like encoder of RNA with rotary positions and SwiGLU feed-forward layers, trained by masked tokens.

Source: the facts in the AIDO.RNA specification (sizes 1.1, forward pass 1.2, names 7.1), read in the authors' published
model class and configurations. The model reads packed rows (several sequences end to end, see `layers/packing.py`): no
linear layer ever meets padding, and the head runs on the target positions only. It knows nothing of masking, losses or
optimizers.

An ordinary pre-norm block, every linear layer with a bias, and a decoder that is the embedding itself:

    a = x + Drop(Wo · Attention(LN(x)) + bo);   y = a + Drop(SwiGLU(LN(a)))
    logits = E · LN(GELU(W · r + b)) + b_vocab

The size 1m has RMSNorm instead of LayerNorm, and no biases but that of the head's dense layer and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checks
from models.aido_rna_cost import activation_bytes, count_parameters, flops
from models.layers import recompute
from models.layers.attention import KERNELS, attention
from models.layers.rotary import apply_rotary, rotary_angles
from models.layers.swish_gate import Linear
from models.layers.tied_embedding import TiedEmbedding, VocabularyBias

__all__ = ["AidoRNA", "AidoRNAConfig", "activation_bytes", "count_parameters", "flops", "swiglu_width"]

PAD, LAST_SPECIAL = 0, 4  # ids in the 16-token vocabulary (spec 2.1)
NORM_EPS = 1e-5
INIT_STD = 0.02

_SIZES: dict[str, dict[str, Any]] = {  # spec 1.1
    "1m": {"layers": 6, "width": 128, "heads": 8, "ffn": 320, "norm": "rms", "bias": False},
    "25m": {"layers": 8, "width": 512, "heads": 16, "ffn": 1344},
    "650m": {"layers": 33, "width": 1280, "heads": 20, "ffn": 3392},
    "1b6": {"layers": 32, "width": 2048, "heads": 32, "ffn": 5440},
}


def swiglu_width(width: int) -> int:
    """The inner width that belongs to a model width in every published size: 8/3 of it, down to a multiple of 64."""
    return 8 * width // 3 // 64 * 64


@dataclass(frozen=True, kw_only=True)
class AidoRNAConfig:
    """What fixes an AIDO.RNA model. Raises ModelError if the numbers do not describe one.

    ``norm`` is "layer" or "rms"; ``bias``: do the linear layers of attention and feed-forward have one. ``init`` is
    "scaled" (N(0, 0.02), the projections that end a branch divided by sqrt(2 · layers), as Megatron-core does) or
    "normal" (N(0, 0.02) throughout, as the authors' Hugging Face class does).
    """

    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int = 16  # tokens; that of objective.alphabet
    norm: str = "layer"
    bias: bool = True
    attention_dropout: float = 0.0  # on the probabilities of attention
    residual_dropout: float = 0.0  # on the embedding and on the output of both branches of a block
    init: str = "scaled"
    checkpointing: bool = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: str = "auto"  # of attention: auto, flash, varlen or sdpa; see layers/attention.py

    @classmethod
    def named(cls, size: str, **overrides: Any) -> AidoRNAConfig:
        """The published sizes 1m, 25m, 650m and 1b6; ``overrides`` replace single fields."""
        return replace(cls(**checks.published("AIDO.RNA", _SIZES, size)), **overrides)

    def __post_init__(self) -> None:
        checks.whole_numbers("AIDO.RNA", self, ("layers", "width", "heads", "ffn", "vocab"))
        checks.heads("AIDO.RNA", self, rotary=True)
        checks.special_tokens("AIDO.RNA", self.vocab, LAST_SPECIAL)
        checks.dropouts("AIDO.RNA", self, ("attention_dropout", "residual_dropout"))
        checks.one_of("AIDO.RNA", self, "norm", ("layer", "rms"))
        checks.one_of("AIDO.RNA", self, "init", ("scaled", "normal"))
        checks.one_of("AIDO.RNA", self, "kernel", ("auto", *KERNELS))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class AidoRNA(nn.Module):
    """Packed tokens -> logits over the vocabulary. Parameter names are the "Ours" column of spec 7.1."""

    def __init__(self, config: AidoRNAConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TiedEmbedding(config.vocab, config.width, padding_idx=PAD)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = _norm(config)
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
        return self.head(r_Td if target_index is None else r_Td.index_select(0, target_index), self.embed)

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor, positions: Tensor, max_seqlen: int) -> Tensor:
        """The representation [T, d]: the output of the last block after the final norm. Arguments as above."""
        config = self.config
        x_Td = self.embed(tokens)
        if config.residual_dropout:
            x_Td = F.dropout(x_Td, config.residual_dropout, self.training)
        cos, sin = rotary_angles(positions, config.head_dim)
        for block in self.blocks:
            x_Td = recompute.run(block, x_Td, cos, sin, cu_seqlens, max_seqlen, recompute=config.checkpointing)
        return self.final_norm(x_Td)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter by ``config.init`` (spec 6): call it after `to_empty` on a model built on meta."""
        branch_end = INIT_STD / (2 * self.config.layers) ** 0.5 if self.config.init == "scaled" else INIT_STD
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            else:
                ends_branch = name.endswith((".attn.out.weight", ".ffn.down.weight"))
                parameter.normal_(0, branch_end if ends_branch else INIT_STD, generator=generator)
        self.embed.weight[PAD].zero_()


class Block(nn.Module):
    """One encoder block, [T, d] -> [T, d]."""

    def __init__(self, config: AidoRNAConfig) -> None:
        super().__init__()
        self.residual_dropout = config.residual_dropout
        self.attn_norm = _norm(config)
        self.attn = SelfAttention(config)
        self.ffn_norm = _norm(config)
        self.ffn = SwiGLU(config)

    def forward(self, x_Td: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        a_Td = x_Td + self._drop(self.attn(self.attn_norm(x_Td), cos, sin, cu_seqlens, max_seqlen))
        return a_Td + self._drop(self.ffn(self.ffn_norm(a_Td)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout, self.training) if self.residual_dropout else x


class SelfAttention(nn.Module):
    """Rotary self-attention within each sequence, [T, d] -> [T, d]; scale 1/sqrt(head dimension)."""

    def __init__(self, config: AidoRNAConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.dropout, self.kernel = config.attention_dropout, config.kernel
        self.qkv = Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = Linear(config.width, config.width, bias=config.bias)

    def forward(self, h_Td: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        qkv = self.qkv(h_Td).view(-1, 3, self.heads, self.head_dim)
        q, k = apply_rotary(qkv[:, :2], cos, sin).unbind(1)
        dropout = self.dropout if self.training else 0.0
        out_THD = attention(q, k, qkv[:, 2], cu_seqlens, max_seqlen, dropout=dropout, kernel=self.kernel)
        return self.out(out_THD.flatten(1))


class SwiGLU(nn.Module):
    """The gated feed-forward layer, [T, d] -> [T, d]: down(SiLU(swish(z)) · plain(z)). No learnable slope."""

    def __init__(self, config: AidoRNAConfig) -> None:
        super().__init__()
        self.swish = Linear(config.width, config.ffn, bias=config.bias)
        self.plain = Linear(config.width, config.ffn, bias=config.bias)
        self.down = Linear(config.ffn, config.width, bias=config.bias)

    def forward(self, z_Td: Tensor) -> Tensor:
        return self.down(F.silu(self.swish(z_Td)) * self.plain(z_Td))


class Head(nn.Module):
    """The language-model head, [M, d] -> [M, V]; exact (erf) GELU; its dense layer always has a bias."""

    def __init__(self, config: AidoRNAConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = _norm(config)
        self.out = VocabularyBias(config.vocab)

    def forward(self, r_Md: Tensor, embed: Callable[..., Tensor]) -> Tensor:
        """``embed`` is the model's `TiedEmbedding`."""
        return self.out(embed(self.norm(F.gelu(self.dense(r_Md))), decode=True))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in fp32, cast back, then times the weight: the authors' order (spec 1.2)."""

    norm_parameters = ("weight",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


def _norm(config: AidoRNAConfig) -> nn.Module:
    return nn.LayerNorm(config.width, eps=NORM_EPS) if config.norm == "layer" else RMSNorm(config.width)
