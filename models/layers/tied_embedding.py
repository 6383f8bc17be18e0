"""One matrix for both ends of a model: the look-up of token ids, and the decoder that turns vectors into logits.

A module's own forward is where its parameters may be touched: under ZeRO stage 3 a parameter is whole only there. So a
decoder calls the embedding module with ``decode=True`` instead of holding or borrowing its weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedEmbedding(nn.Module):
    """The matrix [V, d], empty when built: the model fills it. Look-ups of ``padding_idx`` teach that row nothing."""

    def __init__(self, vocab: int, width: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, x: Tensor, decode: bool = False) -> Tensor:
        """Ids [T] -> [T, d]; with ``decode`` vectors [M, d] -> logits [M, V] without a bias."""
        return F.linear(x, self.weight) if decode else F.embedding(x, self.weight, padding_idx=self.padding_idx)


class VocabularyBias(nn.Module):
    """[M, V] plus one number per token, in the dtype of the logits."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(vocab))

    def forward(self, logits_MV: Tensor) -> Tensor:
        return logits_MV + self.bias.to(logits_MV.dtype)
