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
from typing import Any

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alphabet import ALPHABETS, NUCLEOTIDES, Alphabet
from data.framed_rows import WholeFrames
from data.loader import Moment
from data.masking.corruption import Corruption
from data.rows import RowMaker, row_maker
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.tokenizer import Tokenizer, made_of
from pretrain.objectives.masked import MaskedBatch, MaskedObjective, check_random_letters, check_shares, refuse

__all__ = ["MLM", "MLMConfig", "MaskedBatch"]


@dataclass
class MLMConfig:
    name: str = "mlm"
    alphabet: str = "rinalmo"  # vocabulary of single nucleotides, see data/alphabet.py
    tokenizer: str | None = None  # instead of it, a directory made by `launch/prepare.py tokenizer`
    max_tokens: int = 1024  # per sequence, `<cls>` and `<eos>` included
    crop: str = "row"  # what a window of longer ones is cut from: row, so a fragment lacks ends; letters: it has both
    masked_fraction: float = 0.15  # of eligible tokens
    mask_share: float = 0.8  # of selected tokens: becomes `<mask>`
    random_share: float = 0.1  # of selected tokens: becomes a random letter; the rest stays as it is
    exact_count: bool = False  # exactly masked_fraction of each sequence, instead of each token on its own
    eligible: str = "letters"  # letters: all but special tokens; nucleotides: only what is made of A, C, G and U
    random_letters: str = NUCLEOTIDES  # the pool of random letters; of random pieces: those made of these alone
    random_differs: bool = True  # a random letter or piece is never the original one


class MLM(MaskedObjective):
    """The objective: rows and targets out of letters (`collate`), and the loss of a model on them (`loss`)."""

    def __init__(self, config: MLMConfig):
        _check(config)
        self.config = config
        # The vocabulary: single letters, or pieces of several nucleotides.
        super().__init__(_tokenizer(config))
        check_random_letters(config.random_letters, self.alphabet)
        self._rows = _rows(config, self.alphabet)
        self._eligible = made_of(self.alphabet, NUCLEOTIDES if config.eligible == "nucleotides" else None)
        self._corruption = Corruption(
            self._mask_id,
            np.flatnonzero(made_of(self.alphabet, config.random_letters)),
            len(self.alphabet),
            config.mask_share,
            config.random_share,
            config.random_differs,
        )

    def token_lengths(self, nucleotides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that sequences of these lengths are planned with, at most max_tokens.

        Exact for single nucleotides; for pieces an estimate that is hardly ever exceeded (data/rows.py).
        """
        return self._rows.planned_lengths(nucleotides)

    def read(self, corpus: Any, ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """What `collate` takes: the letters of samples of a corpus."""
        letters: list[npt.NDArray[np.uint8]] = corpus.letters(ids)
        return letters

    def collate(
        self,
        letters: list[npt.NDArray[np.uint8]],
        keys: npt.NDArray[np.uint64],
        moment: Moment | None = None,
    ) -> MaskedBatch:
        """A micro-batch from ASCII sequences and one key each. Empty lists give one row without targets.

        The ``moment`` of the run changes nothing: what is masked depends on the keys alone.
        """
        rows = self._rows.rows(letters, keys)
        chosen = np.zeros(0, dtype=np.int64)
        if len(keys):
            chosen = self._select(rows.tokens, rows.sample, rows.positions, keys)
        shown = self._corruption.replace(rows.tokens[chosen], rows.positions[chosen], keys[rows.sample[chosen]])
        return self._batch(rows, chosen, shown)

    def described(self) -> dict[str, object]:
        """For the model card: what it is trained to do, in words."""
        config, pieces = self.config, self.config.tokenizer is not None
        return {
            "Tokens": "pieces (SentencePiece)" if pieces else "single nucleotides",
            f"Tokens per sequence in training, `{self.alphabet.cls}` and `{self.alphabet.eos}` included": (
                config.max_tokens
            ),
            "Objective": f"masked tokens: {config.masked_fraction:.0%} selected, of these {config.mask_share:.0%} "
            f"`{self.alphabet.mask}`, {config.random_share:.0%} a random one"
            f"{', never the same' * config.random_differs}, the rest unchanged",
        }

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


def _rows(config: MLMConfig, vocabulary: Tokenizer) -> RowMaker:
    if config.crop == "row":
        return row_maker(vocabulary, config.max_tokens)
    if not isinstance(vocabulary, Alphabet):
        refuse("crop", config.crop, "row with a tokenizer: how many letters a window of pieces has is not known before")
    assert isinstance(vocabulary, Alphabet)
    return WholeFrames(vocabulary, config.max_tokens)


def _check(config: MLMConfig) -> None:
    if config.alphabet not in ALPHABETS:
        refuse("alphabet", config.alphabet, f"one of {', '.join(ALPHABETS)}")
    if config.max_tokens < 3:
        refuse("max_tokens", config.max_tokens, "at least 3: a nucleotide between <cls> and <eos>")
    if not 0 < config.masked_fraction <= 1:
        refuse("masked_fraction", config.masked_fraction, "above 0 and at most 1")
    if config.crop not in ("row", "letters"):
        refuse("crop", config.crop, "row or letters")
    check_shares(config.mask_share, config.random_share)
    if config.eligible not in ("letters", "nucleotides"):
        refuse("eligible", config.eligible, "letters or nucleotides")


def _tokenizer(config: MLMConfig) -> Tokenizer:
    return ALPHABETS[config.alphabet] if config.tokenizer is None else SentencePieceTokenizer.load(config.tokenizer)
