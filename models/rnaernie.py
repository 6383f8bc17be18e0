"""RNAErnie: a post-norm encoder of RNA with learned positions, trained by masked bases, spans and motifs.

Source: the facts in the RNAErnie specification (architecture 1, parameter counts 12), read in the code of PaddleNLP's
ERNIE, which the authors used. The model reads packed rows (several sequences end to end, see `layers/packing.py`): no
linear layer ever meets padding, and the head runs on the target positions only. It knows nothing of masking, losses or
optimizers.

    x0 = Drop(LN(word[token] + position[i] + type[0]))
    a = LN(x + Drop(Wo · Attention(x) + bo));   y = LN(a + Drop(W2 · relu(W1 · a + b1) + b2))
    logits = word · LN(relu(W · y + b)) + b_vocab

An epsilon of 1e-12 in every layer norm, relu where BERT has GELU, and the embedding as decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checks
from models.errors import ModelError
from models.layers import recompute
from models.layers.attention import KERNELS, attention
from models.layers.swish_gate import Linear
from models.layers.tied_embedding import TiedEmbedding, VocabularyBias
from models.rnaernie_cost import activation_bytes, count_parameters, flops

__all__ = ["RNAErnie", "RNAErnieConfig", "activation_bytes", "count_parameters", "flops"]

LAST_SPECIAL = 4  # <pad> 0, <cls> 1, <eos> 2, <unk> 3, <mask> 4 (spec 2.3)
NORM_EPS = 1e-12
INIT_STD = 0.02
TOKEN_TYPES = 2  # rows of the token-type table; only row 0 is ever read (spec 1)

_SIZES = {  # blocks, width, heads, inner width of the feed-forward layer
    "base": (12, 768, 12, 3072),  # the published model (spec 1)
    "nano": (4, 128, 4, 512),  # ours, for tests and demonstrations
}


@dataclass(frozen=True, kw_only=True)
class RNAErnieConfig:
    """What fixes an RNAErnie model. Raises ModelError if the numbers do not describe one.

    ``vocab`` is 28 (MultiMolecule's tokens), or 57 with [IND] and the 28 RNA types (spec 2.4). ``max_positions`` are
    the rows of the position table. ``pooler``: does the model hold the dense layer on the first token that releases
    have; masked-token training never reads it, so it would get no gradient.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int = 57
    max_positions: int = 513
    attention_dropout: float = 0.1  # on the probabilities of attention
    residual_dropout: float = 0.1  # on the embedding and on the output of both branches of a block
    pooler: bool = False
    checkpointing: bool = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: str = "auto"  # of attention: auto, flash, varlen or sdpa; see layers/attention.py

    @classmethod
    def named(cls, size: str, **overrides: Any) -> RNAErnieConfig:
        """The published size base, and nano for tests; ``overrides`` replace single fields."""
        layers, width, heads, ffn = checks.published("RNAErnie", _SIZES, size)
        return replace(cls(layers=layers, width=width, heads=heads, ffn=ffn), **overrides)

    def __post_init__(self) -> None:
        checks.whole_numbers("RNAErnie", self, ("layers", "width", "heads", "ffn", "vocab"))
        checks.whole_numbers("RNAErnie", self, ("max_positions",), least=2)
        checks.heads("RNAErnie", self)
        checks.special_tokens("RNAErnie", self.vocab, LAST_SPECIAL)
        checks.dropouts("RNAErnie", self, ("attention_dropout", "residual_dropout"))
        checks.one_of("RNAErnie", self, "kernel", ("auto", *KERNELS))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def max_tokens(self) -> int:
        """The longest row, special tokens included: 512, for the original never uses the last of its 513 positions."""
        return self.max_positions - 1


class RNAErnie(nn.Module):
    """Packed tokens -> logits over the vocabulary."""

    def __init__(self, config: RNAErnieConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TiedEmbedding(config.vocab, config.width)
        self.positions = _Embedding(config.max_positions, config.width)
        self.token_type = _TokenType(config.width)
        self.embed_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.pooler = Linear(config.width, config.width) if config.pooler else None
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
        every parameter but the pooler's and give zero gradients. The dtype is that of the computation; a loss should
        cast to fp32. Raises ModelError if ``max_seqlen`` is larger than ``config.max_tokens``.
        """
        r_Td = self.hidden(tokens, cu_seqlens, positions, max_seqlen)
        return self.head(r_Td if target_index is None else r_Td.index_select(0, target_index), self.embed)

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor, positions: Tensor, max_seqlen: int) -> Tensor:
        """The representation [T, d]: the output of the last block. Arguments and errors as above."""
        config = self.config
        if max_seqlen > config.max_tokens:
            raise ModelError(
                f"a sequence of {max_seqlen} tokens does not fit RNAErnie's learned positions, which end at"
                f" {config.max_tokens} tokens with <cls> and <eos>; crop or truncate sequences to that length"
            )
        x_Td = self.embed_norm(self.token_type(self.embed(tokens) + self.positions(positions)))
        if config.residual_dropout:
            x_Td = F.dropout(x_Td, config.residual_dropout, self.training)
        for block in self.blocks:
            x_Td = recompute.run(block, x_Td, cu_seqlens, max_seqlen, recompute=config.checkpointing)
        return x_Td

    def pooled(self, r_Td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T, d] -> [B, d]: tanh of a dense layer on the first token of each sequence. ModelError without a pooler."""
        if self.pooler is None:
            raise ModelError("this RNAErnie has no pooler; build it with pooler = true")
        return torch.tanh(self.pooler(r_Td.index_select(0, cu_seqlens[:-1].long())))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter (spec 1): call it after `to_empty` on a model built on meta.

        N(0, 0.02) for every linear and embedding weight, the padding row included; biases 0, layer norms 1 and 0.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("norm.weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, INIT_STD, generator=generator)


class Block(nn.Module):
    """One encoder block, [T, d] -> [T, d], normalised after each residual sum."""

    def __init__(self, config: RNAErnieConfig) -> None:
        super().__init__()
        self.residual_dropout = config.residual_dropout
        self.attn = SelfAttention(config)
        self.attn_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.ffn = FeedForward(config)
        self.ffn_norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, x_Td: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        a_Td = self.attn_norm(x_Td + self._drop(self.attn(x_Td, cu_seqlens, max_seqlen)))
        return self.ffn_norm(a_Td + self._drop(self.ffn(a_Td)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout, self.training) if self.residual_dropout else x


class SelfAttention(nn.Module):
    """Self-attention within each sequence, [T, d] -> [T, d]; scale 1/sqrt(head dimension)."""

    def __init__(self, config: RNAErnieConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.dropout, self.kernel = config.attention_dropout, config.kernel
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x_Td: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        q, k, v = self.qkv(x_Td).view(-1, 3, self.heads, self.head_dim).unbind(1)
        dropout = self.dropout if self.training else 0.0
        out_THD = attention(q, k, v, cu_seqlens, max_seqlen, dropout=dropout, kernel=self.kernel)
        return self.out(out_THD.flatten(1))


class FeedForward(nn.Module):
    """[T, d] -> [T, d]: down(relu(up(a)))."""

    def __init__(self, config: RNAErnieConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.ffn)
        self.down = Linear(config.ffn, config.width)

    def forward(self, a_Td: Tensor) -> Tensor:
        return self.down(F.relu(self.up(a_Td)))


class Head(nn.Module):
    """The language-model head, [M, d] -> [M, V]; its decoder is the embedding, with a bias of its own."""

    def __init__(self, config: RNAErnieConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.out = VocabularyBias(config.vocab)

    def forward(self, r_Md: Tensor, embed: Callable[..., Tensor]) -> Tensor:
        """``embed`` is the model's `TiedEmbedding`."""
        return self.out(embed(self.norm(F.relu(self.dense(r_Md))), decode=True))


class _TokenType(nn.Module):
    """[T, d] -> [T, d]: adds row 0 of the token-type table to every token.

    The original has two types and always says 0. Both rows are one parameter, so that the second has a gradient too
    (zero; weight decay shrinks it, as in the original), and no form of data parallelism meets an unused parameter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(TOKEN_TYPES, width))

    def forward(self, x_Td: Tensor) -> Tensor:
        return x_Td + self.weight[0]


class _Embedding(nn.Embedding):
    """nn.Embedding that stays empty when built: RNAErnie.reset_parameters fills it."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""
