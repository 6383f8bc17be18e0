"""What objectives of masked tokens share: the packed micro-batch, the logits at its targets and their cross-entropy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.alphabet import NUCLEOTIDES
from data.loader import Lengths
from data.rows import Rows
from data.tokenizer import Tokenizer, widths
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.estimate import padded_tokens
from pretrain.objectives.batch import Movable


@dataclass
class MaskedBatch(Movable):
    """Packed rows. T tokens, B sequences, M targets. `weight` is what the loss of this micro-batch counts for: M."""

    tokens: Tensor  # [T] int64, corrupted
    cu_seqlens: Tensor  # [B + 1] int32
    positions: Tensor  # [T] int64, from 0 in every sequence
    target_index: Tensor  # [M] int64, places in `tokens`
    targets: Tensor  # [M] int64, original ids
    max_seqlen: int
    lengths: npt.NDArray[np.int64]  # [B] tokens
    nucleotides: npt.NDArray[np.int64]  # [B] nucleotides that the row holds
    target_sample: npt.NDArray[np.int64]  # [M] which sequence of the micro-batch
    target_nucleotide: npt.NDArray[np.int64]  # [M] which nucleotide of the uncropped sequence; of a piece its first
    target_width: npt.NDArray[np.int64]  # [M] nucleotides of the original token; 0 of a special one

    @property
    def weight(self) -> int:
        return len(self.targets)


class MaskedObjective(ABC):
    """Made of a vocabulary; subclasses add `token_lengths`, `read` and `collate`."""

    kind = "sequences"  # of corpora
    one_per_micro_batch = False

    def __init__(self, alphabet: Tokenizer):
        self.alphabet = alphabet
        self.nucleotide_ids = np.concatenate([alphabet.encode(letter) for letter in NUCLEOTIDES]).astype(np.int64)
        self._widths = widths(alphabet)
        self._mask_id = alphabet.ids[alphabet.mask]

    @property
    def data_fingerprint(self) -> str:
        """Identifies what it trains on besides the corpus; empty without any."""
        return ""

    def plain(self, letters: list[npt.NDArray[np.uint8]]) -> Any:
        """Samples, as `collate` takes them, that are sequences and nothing else."""
        return letters

    @abstractmethod
    def token_lengths(self, nucleotides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that sequences of these lengths are planned with."""

    def costs(self, corpus: Lengths, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that samples of a corpus are planned with."""
        return self.token_lengths(corpus.lengths[ids].astype(np.int64))

    def _batch(self, rows: Rows, chosen: npt.NDArray[np.int64], shown: npt.NDArray[np.int64]) -> MaskedBatch:
        """The micro-batch whose targets are the tokens ``chosen`` (ascending) of ``rows``, with ``shown`` in place."""
        corrupted = rows.tokens.copy()
        corrupted[chosen] = shown
        return MaskedBatch(
            tokens=torch.from_numpy(corrupted),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(rows.lengths)]).astype(np.int32)),
            positions=torch.from_numpy(rows.positions),
            target_index=torch.from_numpy(chosen),
            targets=torch.from_numpy(rows.tokens[chosen]),
            max_seqlen=int(rows.lengths.max()),
            lengths=rows.lengths,
            nucleotides=rows.nucleotides,
            target_sample=rows.sample[chosen],
            target_nucleotide=rows.nucleotide[chosen],
            target_width=self._widths[rows.tokens[chosen]],
        )

    def logits(self, model: nn.Module, batch: MaskedBatch) -> Tensor:
        """[M, V] in float32, whatever the model computes in."""
        return model(
            tokens=batch.tokens,
            cu_seqlens=batch.cu_seqlens,
            positions=batch.positions,
            max_seqlen=batch.max_seqlen,
            target_index=batch.target_index,
        ).float()

    def loss(self, model: nn.Module, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(cross-entropy summed over the targets, in nats; the COUNTS: targets predicted right)."""
        logits = self.logits(model, batch)
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        return total, {"correct": (logits.detach().argmax(-1) == batch.targets).sum()}

    COUNTS = ("correct",)

    def figures(self, loss: float, weight: float, correct: float) -> dict[str, float | int]:
        """What the log shows of a summed loss, the summed weight and the sums of COUNTS."""
        n = max(weight, 1.0)
        return {
            "loss": loss / n,
            "perplexity": perplexity(loss, weight),
            "accuracy": correct / n,
            "targets": int(weight),
        }

    def flops(self, module: Any, config: Any, batch: MaskedBatch) -> float:
        """Of training on the micro-batch; ``module`` is the model's file."""
        flops: float = module.flops(config, batch.lengths.tolist(), batch.weight)
        return flops

    def computed(self, settings: Recipe, batch: MaskedBatch, device: torch.device) -> tuple[int, int]:
        """(tokens of the micro-batch, tokens that attention computes on: more where its kernel pads)."""
        return int(batch.lengths.sum()), padded_tokens(batch.lengths, settings, device)


def perplexity(nats: float, count: float) -> float:
    """exp of the mean, infinite where that overflows; 1 for nothing."""
    mean = nats / max(count, 1)
    return math.exp(mean) if mean < 700 else math.inf


def check_shares(mask_share: float, random_share: float) -> None:
    """Raises PretrainError for shares of selected tokens that cannot be."""
    for key, share in (("mask_share", mask_share), ("random_share", random_share)):
        if not 0 <= share <= 1:
            refuse(key, share, "a share between 0 and 1")
    if mask_share + random_share > 1 + 1e-9:
        refuse("mask_share", mask_share, f"at most 1 together with objective.random_share = {random_share}")


def check_random_letters(letters: str, vocabulary: Tokenizer) -> None:
    pool = {int(vocabulary.encode(letter)[0]) for letter in letters}
    if vocabulary.ids[vocabulary.unk] in pool or len(pool) != len(letters) or len(pool) < 2:
        refuse("random_letters", letters, f"two or more different letters of {vocabulary.name}")


def refuse(key: str, found: object, expected: str) -> None:
    raise PretrainError(f"objective.{key} is {found!r}, but must be {expected}")
