"""RNA-MSM: an encoder of RNA alignments with tied row attention and column attention, trained by masked tokens.

Source: the facts in the RNA-MSM specification (architecture 1.1 and 1.2, names 7.3). The model reads alignments
[B, R, L] of R rows and L columns, the first of which is `<cls>`; training gives it one alignment at a time, whole and
without padding. It knows nothing of masking, losses or optimizers.

A block is three pre-norm residual branches, x + Drop(f(LN(x))): row attention, column attention, feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checks
from models.errors import ModelError
from models.layers import recompute
from models.layers.attention import KERNELS
from models.layers.axial_attention import Branch, ColumnAttention, RowAttention
from models.layers.dropout import dropout
from models.layers.feed_forward import feed_forward
from models.layers.pieces import LAYER_NORM_EPS
from models.layers.swish_gate import Linear
from models.layers.tied_embedding import TiedEmbedding, VocabularyBias
from models.rnamsm_cost import activation_bytes, backward_bytes, count_parameters, flops

__all__ = ["RNAMSM", "Outputs", "RNAMSMConfig", "activation_bytes", "backward_bytes", "count_parameters", "flops"]

PAD, CLS, MASK = 0, 1, 4  # ids in the 28-token vocabulary (spec 2)
ANSWERS = (6, 7, 8, 9, 22, 26)  # A, C, G, U, X and the gap: what a cleaned alignment holds, so what is ever predicted
MAX_ROWS = 1024
INIT_STD, ROW_STD = 0.02, 0.01
# Output bias of tokens that are never an answer: their probability is zero from the start (e**-30).
NEVER = -30.0

_SIZES = {  # layers, width, heads, feed-forward width
    "base": (10, 768, 12, 3072),  # the published size (spec 1)
    "nano": (4, 128, 4, 512),  # ours, for demonstrations and tests
}


@dataclass(frozen=True, kw_only=True)
class RNAMSMConfig:
    """What fixes an RNA-MSM model. Raises ModelError if the numbers do not describe one."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int = 28
    max_positions: int = 1024  # columns, `<cls>` included
    attention_dropout: float = 0.1  # on the probabilities of both attentions
    residual_dropout: float = 0.1  # on the embedding, every branch, and the inner units of the feed-forward layer
    checkpointing: bool = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: str = "auto"  # of column attention, see layers/attention.py
    piece_tokens: int = 65536  # inference computes at most so many tokens of an alignment at a time; memory only

    @classmethod
    def named(cls, size: str, **overrides: Any) -> RNAMSMConfig:
        """The published size base, and nano of ours; ``overrides`` replace single fields."""
        layers, width, heads, ffn = checks.published("RNA-MSM", _SIZES, size)
        return replace(cls(layers=layers, width=width, heads=heads, ffn=ffn), **overrides)

    def __post_init__(self) -> None:
        names = ("layers", "width", "heads", "ffn", "vocab", "max_positions", "piece_tokens")
        checks.whole_numbers("RNA-MSM", self, names)
        checks.heads("RNA-MSM", self)
        if self.vocab <= max(ANSWERS):
            raise ModelError(f"RNA-MSM: vocab {self.vocab} leaves out the gap, whose id is {max(ANSWERS)}")
        checks.dropouts("RNA-MSM", self, ("attention_dropout", "residual_dropout"))
        checks.one_of("RNA-MSM", self, "kernel", ("auto", *KERNELS))

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class Outputs(NamedTuple):
    """Everything that a forward pass can give."""

    logits: Tensor  # [M, V], or [B, R, L, V] without targets
    maps: Tensor  # [B, layers · heads, L, L] row-attention probabilities, layer by layer; fp32 at least
    representation: Tensor  # [B, R, L, d] after the final layer norm


class RNAMSM(nn.Module):
    """Alignments of tokens -> logits over the vocabulary. Names in other layouts: models/layouts/rnamsm.py."""

    shapes_recur = True  # of products, from batch to batch: numbers of columns repeat

    def __init__(self, config: RNAMSMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TiedEmbedding(config.vocab, config.width, PAD)
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.head = Head(config)
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        is_real: Tensor | None = None,
        target_index: Tensor | None = None,
        everything: bool = False,
    ) -> Tensor | Outputs:
        """Logits [M, V] at the places ``target_index`` [M] of the flattened alignments, or [B, R, L, V] without it.

        ``tokens`` [B, R, L] int64 with `<cls>` in column 0; ``is_real`` [B, R, L] bool, False at padding (below and to
        the right), None where there is none. Padding changes no other token's output. M may be 0: the empty logits are
        still connected to every parameter and give zero gradients. ``everything``: `Outputs` instead of the logits.
        The dtype of the logits is that of the computation; a loss should cast to fp32. Raises ModelError if the
        alignment is larger than the model's tables.
        """
        if target_index is not None and not everything:
            return self.head(self.final_norm(self._stream(tokens, is_real, None, target_index)), self.embed)
        maps: list[Tensor] | None = [] if everything else None
        r_BRLd = self.hidden(tokens, is_real, maps)
        r_Md = r_BRLd if target_index is None else r_BRLd.flatten(0, 2).index_select(0, target_index)
        logits = self.head(r_Md, self.embed)
        return logits if maps is None else Outputs(logits, torch.cat(maps, dim=1), r_BRLd)

    def hidden(self, tokens: Tensor, is_real: Tensor | None = None, maps: list[Tensor] | None = None) -> Tensor:
        """The representation [B, R, L, d] after the final norm; to ``maps`` each block adds its [B, H, L, L].

        In inference (evaluation mode, gradients disabled) an alignment is computed in pieces of
        ``config.piece_tokens``, with the same result: memory is that of [B, R, L, d] twice, whatever the size.
        """
        r_BRLd: Tensor = self.final_norm(self._stream(tokens, is_real, maps))
        return r_BRLd

    def _stream(
        self, tokens: Tensor, is_real: Tensor | None, maps: list[Tensor] | None, target_index: Tensor | None = None
    ) -> Tensor:
        """What the last block gives, [B, R, L, d], or [M, d] of the targets.

        After the last attention no token depends on another one: what is not a target ends there, which saves the loss
        most of a feed-forward layer.
        """
        x_BRLd = self.stem(self.embed(tokens), is_real)
        for i, block in enumerate(self.blocks):
            how = (is_real, maps is not None, target_index if i == self.config.layers - 1 else None)
            x_BRLd, attention_map = recompute.run(block, x_BRLd, *how, recompute=self.config.checkpointing)
            if maps is not None:
                maps.append(attention_map)
        return x_BRLd

    @torch.no_grad()
    def extract(self, tokens_RL: Tensor) -> tuple[Tensor, Tensor]:
        """What other tools use of one alignment: (representation [l, d] of row 0, row-attention maps [l, l, C]).

        l = L - 1 columns, `<cls>` cut off; C = layers · heads, layer by layer: (l, 768) and (l, l, 120) for the base
        size, as the authors' inference script saves them (maps last instead of first). Computes as in evaluation.
        """
        was_training = self.training
        self.eval()
        try:
            maps: list[Tensor] = []
            r_BRLd = self.hidden(tokens_RL[None], maps=maps)
        finally:
            self.train(was_training)
        return r_BRLd[0, 0, 1:], torch.cat(maps, dim=1)[0, :, 1:, 1:].permute(1, 2, 0)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter (spec 1.1): call it after `to_empty` on a model built on meta.

        Rows of tokens that training never shows are zero instead of random, as the padding row is: they stay so, which
        is how a release knows which rows it has to fill (models/layouts/rnamsm.py).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, ROW_STD if name == "stem.row" else INIT_STD, generator=generator)
        self.stem.position[:2] = 0  # 1 is the padding's in the authors' table, 0 is not used
        ids = torch.arange(self.config.vocab, device=self.embed.weight.device)
        self.embed.weight[~torch.isin(ids, ids.new_tensor([CLS, MASK, *ANSWERS]))] = 0
        self.head.out.bias[~torch.isin(ids, ids.new_tensor(ANSWERS))] = NEVER


class Stem(nn.Module):
    """What makes the stream that the blocks read out of embedded tokens: positions, layer norm, dropout."""

    idle_parameters = ("row",)  # its own parameters that no output depends on

    def __init__(self, config: RNAMSMConfig) -> None:
        super().__init__()
        self.dropout = config.residual_dropout
        self.position = nn.Parameter(torch.empty(config.max_positions + 2, config.width))
        self.row = nn.Parameter(torch.empty(MAX_ROWS))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def forward(self, x_BRLd: Tensor, is_real: Tensor | None = None) -> Tensor:
        """[B, R, L, d] -> [B, R, L, d], zero at padding. Raises ModelError for more rows or columns than the tables."""
        rows, columns = x_BRLd.shape[1:3]
        if rows > MAX_ROWS or columns > len(self.position) - 2:
            raise ModelError(
                f"RNA-MSM reads at most {MAX_ROWS} rows of {len(self.position) - 2} columns with <cls>, not {rows} of"
                f" {columns}; draw rows or cut columns"
            )
        # The authors add one number per row to all channels, which the layer norm right after it takes away again:
        # their row embedding does nothing, and its gradient is rounding noise (spec 1.2). It is kept because every
        # checkpoint holds it, and used with a factor of 0 so that it has a gradient on every rank: exactly zero, so it
        # never moves where weight decay leaves it alone, as it should what is idle.
        nothing = 0 * self.row.sum()
        if is_real is None:
            position = self.position[2 : columns + 2] + nothing
        else:  # real tokens are counted, as the authors do; what padding gets is irrelevant
            position = F.embedding(is_real.cumsum(-1) + 1, self.position) + nothing
        x_BRLd = self.norm(x_BRLd + position)
        x_BRLd = dropout(x_BRLd, self.dropout, self.training)
        return x_BRLd if is_real is None else x_BRLd * is_real[..., None]


class Block(nn.Module):
    """One layer, [B, R, L, d] -> [B, R, L, d], or [M, d] of the tokens at ``chosen_M`` of the flattened alignments."""

    def __init__(self, config: RNAMSMConfig) -> None:
        super().__init__()
        sizes = (config.width, config.heads, config.attention_dropout, config.residual_dropout, config.piece_tokens)
        self.row = RowAttention(*sizes)
        self.column = ColumnAttention(*sizes, kernel=config.kernel)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x_BRLd: Tensor,
        is_real: Tensor | None = None,
        want_map: bool = False,
        chosen_M: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, row-attention map [B, H, L, L] if ``want_map``); the output is [M, d] with ``chosen_M``."""
        x_BRLd, attention_map = self.row(x_BRLd, is_real, want_map)
        return self.ffn(self.column(x_BRLd, is_real, chosen_M)), attention_map


class FeedForward(Branch):
    """x + Drop(down(Drop(GELU(up(LN(x)))))), exact (erf) GELU."""

    def __init__(self, config: RNAMSMConfig) -> None:
        super().__init__(config.width, config.residual_dropout, config.piece_tokens)
        self.up_weight = nn.Parameter(torch.empty(config.ffn, config.width))
        self.up_bias = nn.Parameter(torch.empty(config.ffn))
        self.down_weight = nn.Parameter(torch.empty(config.width, config.ffn))
        self.down_bias = nn.Parameter(torch.empty(config.width))

    def forward(self, x_BRLd: Tensor) -> Tensor:
        """x with the branch added; in inference x itself, changed."""
        if not self._in_pieces:
            up, down = (self.up_weight, self.up_bias), (self.down_weight, self.down_bias)
            return feed_forward(x_BRLd, self._norm, up, down, self._dropout)
        x_Td = x_BRLd.view(-1, self.width)
        for piece in self._pieces(len(x_Td), 1):
            inner = F.gelu(F.linear(self._normed(x_Td[piece]), self.up_weight, self.up_bias))
            x_Td[piece] += F.linear(inner, self.down_weight, self.down_bias)
        return x_BRLd


class Head(nn.Module):
    """The language-model head, [..., d] -> [..., V]; exact GELU; the token matrix decodes, plus a bias."""

    def __init__(self, config: RNAMSMConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.out = VocabularyBias(config.vocab)

    def forward(self, r: Tensor, embed: Callable[..., Tensor]) -> Tensor:
        """``embed`` is the model's `TiedEmbedding`."""
        logits: Tensor = self.out(embed(self.norm(F.gelu(self.dense(r))), decode=True))
        return logits
