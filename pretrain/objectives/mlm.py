"""BERT-style masked language modelling on packed nucleotide sequences.

Of every sequence's tokens 15 % are selected; of those 80 % become `<mask>`, 10 % another random letter, 10 % stay. The
loss is cross-entropy at the selected tokens only. Crops and masks are a pure function of the sample's key and the
token's place in its row (data/order.py gives the keys). RiNALMo's numbers and what is unknown: specs rinalmo 3.4, 4, 6.

Rows and their crops are made in data/rows.py. Where tokens are pieces of several nucleotides (`tokenizer`), a token is
selected and masked whole, and the random token is any other piece made of `random_letters` alone, whatever its length:
as in BERT, the model must not be able to read the length of the answer off a corrupted token. Such a loss is per piece,
and `target_width` says for how many nucleotides it counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import randomness
from data.alphabet import ALPHABETS, NUCLEOTIDES
from data.rows import row_maker
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.tokenizer import Tokenizer, made_of, widths
from pretrain.errors import PretrainError


@dataclass
class MLMConfig:
    name: str = "mlm"
    alphabet: str = "rinalmo"  # vocabulary of single nucleotides, see data/alphabet.py
    tokenizer: str | None = None  # instead of it, a directory made by `launch/prepare.py tokenizer`
    max_tokens: int = 1024  # per sequence, `<cls>` and `<eos>` included
    masked_fraction: float = 0.15  # of eligible tokens
    mask_share: float = 0.8  # of selected tokens: becomes `<mask>`
    random_share: float = 0.1  # of selected tokens: becomes a random letter; the rest stays as it is
    exact_count: bool = False  # exactly masked_fraction of each sequence, instead of each token on its own
    eligible: str = "letters"  # letters: all but special tokens; nucleotides: only what is made of A, C, G and U
    random_letters: str = NUCLEOTIDES  # the pool of random letters; of random pieces: those made of these alone
    random_differs: bool = True  # a random letter or piece is never the original one


@dataclass
class MaskedBatch:
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
    target_width: npt.NDArray[np.int64]  # [M] nucleotides of the original token

    @property
    def weight(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> MaskedBatch:
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).pin_memory().to(device, non_blocking=True)
            for name in ("tokens", "cu_seqlens", "positions", "target_index", "targets")
        }
        return MaskedBatch(**{**self.__dict__, **moved})


class MLM:
    """The objective: rows and targets out of letters (`collate`), and the loss of a model on them (`loss`)."""

    def __init__(self, config: MLMConfig):
        _check(config)
        self.config = config
        # The vocabulary: single letters, or pieces of several nucleotides.
        self.alphabet: Tokenizer = _tokenizer(config)
        _check_random_letters(config, self.alphabet)
        self._rows = row_maker(self.alphabet, config.max_tokens)
        self._widths = widths(self.alphabet)
        self._mask_id = self.alphabet.ids[self.alphabet.mask]
        self.nucleotide_ids = np.concatenate([self.alphabet.encode(letter) for letter in NUCLEOTIDES]).astype(np.int64)
        self._eligible = made_of(self.alphabet, NUCLEOTIDES if config.eligible == "nucleotides" else None)
        self._pool = np.flatnonzero(made_of(self.alphabet, config.random_letters))
        self._pool_place = np.full(len(self.alphabet), -1)
        self._pool_place[self._pool] = np.arange(len(self._pool))

    def token_lengths(self, nucleotides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that sequences of these lengths are planned with, at most max_tokens.

        Exact for single nucleotides; for pieces an estimate that is hardly ever exceeded (data/rows.py).
        """
        return self._rows.planned_lengths(nucleotides)

    def collate(self, letters: list[npt.NDArray[np.uint8]], keys: npt.NDArray[np.uint64]) -> MaskedBatch:
        """A micro-batch from ASCII sequences and one key each. Empty lists give one row without targets."""
        rows = self._rows.rows(letters, keys)
        original, sample, positions = rows.tokens, rows.sample, rows.positions
        corrupted, chosen = original.copy(), np.zeros(0, dtype=np.int64)
        if len(keys):
            chosen = self._select(original, sample, positions, keys)
            corrupted[chosen] = self._replace(original[chosen], positions[chosen], keys[sample[chosen]])
        return MaskedBatch(
            tokens=torch.from_numpy(corrupted),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(rows.lengths)]).astype(np.int32)),
            positions=torch.from_numpy(positions),
            target_index=torch.from_numpy(chosen),
            targets=torch.from_numpy(original[chosen]),
            max_seqlen=int(rows.lengths.max()),
            lengths=rows.lengths,
            nucleotides=rows.nucleotides,
            target_sample=sample[chosen],
            target_nucleotide=rows.nucleotide[chosen],
            target_width=self._widths[original[chosen]],
        )

    def _select(
        self,
        tokens: npt.NDArray[np.int64],
        sample: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        keys: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.int64]:
        """Places of the selected tokens, ascending."""
        eligible = np.flatnonzero(self._eligible[tokens])
        draws = randomness.uniform(
            randomness.keys(randomness.key("select"), keys)[sample[eligible]], positions[eligible]
        )
        if not self.config.exact_count:
            return eligible[draws < self.config.masked_fraction]
        # The k smallest draws of each sequence, k = fraction * eligible rounded up or down at random, so that short
        # sequences keep the rate too.
        per_sample = np.bincount(sample[eligible], minlength=len(keys))
        rounding = randomness.uniform(randomness.keys(randomness.key("rounding"), keys), np.zeros(len(keys)))
        quota = np.floor(per_sample * self.config.masked_fraction + rounding).astype(np.int64)
        by_draw = np.lexsort((draws, sample[eligible]))
        firsts = np.cumsum(per_sample) - per_sample
        rank_in_sample = np.arange(len(eligible)) - firsts[sample[eligible][by_draw]]
        return np.sort(eligible[by_draw[rank_in_sample < quota[sample[eligible][by_draw]]]])

    def _replace(
        self, original: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """What stands in the place of each selected token."""
        fate = randomness.uniform(randomness.keys(randomness.key("fate"), keys), positions)
        draws = randomness.bits(randomness.keys(randomness.key("letter"), keys), positions)
        place, n = self._pool_place[original], len(self._pool)
        if self.config.random_differs:
            # One of the n - 1 places after the original, cyclically; a letter outside the pool may become any of it.
            other = np.where(place >= 0, (place + 1 + randomness.below(draws, n - 1)) % n, randomness.below(draws, n))
        else:
            other = randomness.below(draws, n)
        replaced = np.where(fate < self.config.mask_share, self._mask_id, original)
        random = (fate >= self.config.mask_share) & (fate < self.config.mask_share + self.config.random_share)
        return np.where(random, self._pool[other], replaced)

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
        """(cross-entropy summed over the targets, in nats; {"correct": number of targets predicted right})."""
        logits = self.logits(model, batch)
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        return total, {"correct": (logits.detach().argmax(-1) == batch.targets).sum()}


def _check(config: MLMConfig) -> None:
    if config.alphabet not in ALPHABETS:
        _refuse("alphabet", config.alphabet, f"one of {', '.join(ALPHABETS)}")
    if config.max_tokens < 3:
        _refuse("max_tokens", config.max_tokens, "at least 3: a nucleotide between <cls> and <eos>")
    if not 0 < config.masked_fraction <= 1:
        _refuse("masked_fraction", config.masked_fraction, "above 0 and at most 1")
    for key in ("mask_share", "random_share"):
        if not 0 <= getattr(config, key) <= 1:
            _refuse(key, getattr(config, key), "a share between 0 and 1")
    if config.mask_share + config.random_share > 1 + 1e-9:
        rest = f"at most 1 together with objective.random_share = {config.random_share}"
        _refuse("mask_share", config.mask_share, rest)
    if config.eligible not in ("letters", "nucleotides"):
        _refuse("eligible", config.eligible, "letters or nucleotides")


def _tokenizer(config: MLMConfig) -> Tokenizer:
    return ALPHABETS[config.alphabet] if config.tokenizer is None else SentencePieceTokenizer.load(config.tokenizer)


def _check_random_letters(config: MLMConfig, vocabulary: Tokenizer) -> None:
    pool = {int(vocabulary.encode(letter)[0]) for letter in config.random_letters}
    if vocabulary.ids[vocabulary.unk] in pool or len(pool) != len(config.random_letters) or len(pool) < 2:
        _refuse("random_letters", config.random_letters, f"two or more different letters of {vocabulary.name}")


def _refuse(key: str, found: object, expected: str) -> None:
    raise PretrainError(f"objective.{key} is {found!r}, but must be {expected}")
