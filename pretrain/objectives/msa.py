"""Masked language modelling on alignments: a window of columns, the query and drawn rows, 15 % of all tokens selected.

Everything is the original's pipeline (specs: rnamsm 3.3 and 4) but for what docs and recipe say: windows of full width,
rows without replacement, and random letters out of the real alphabet. A gap is a token like any other: it has a
position, is selected and predicted. Draws are a pure function of the sample's key and the token's place.

The loss of a step is the mean over alignments of the mean over each one's targets, as in the original: the loss of a
micro-batch is the mean of its one alignment and its weight 1, or 0 where nothing was selected.

Logits of tokens that no cleaned alignment holds do not count: they get no gradient, so their rows of the tied matrix
stay as they began and a release can tell them (models/layouts/rnamsm.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import randomness
from data.alphabet import NUCLEOTIDES
from data.loader import Moment
from data.msa_alphabet import LETTERS, ORIGINAL_TOKENS, RNAMSM
from data.msa_sampling import Limits, draw_query, draw_rows, outside_blocks, window_start
from pretrain.objectives.batch import Movable
from pretrain.objectives.masked import perplexity
from pretrain.objectives.msa_config import MSAConfig, check

I64 = npt.NDArray[np.int64]
_GAP = ord("-")
NO_LOGIT = -1e4  # e**-1e4 is 0 in every precision that a loss is computed in


class Alignment(Protocol):
    """What is asked of an alignment (`data.alignments.Alignment`): its sizes, and the letters of the rows asked for."""

    @property
    def depth(self) -> int: ...
    @property
    def columns(self) -> int: ...
    def rows(self, indices: I64) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class SingleRow:
    """A sequence as an alignment of nothing else."""

    letters: npt.NDArray[np.uint8]
    depth: int = 1

    @property
    def columns(self) -> int:
        return len(self.letters)

    def rows(self, indices: I64) -> npt.NDArray[np.uint8]:
        return self.letters[None][indices]


@dataclass
class AlignmentBatch(Movable):
    """One alignment, R rows of L columns, or for an empty micro-batch one row of `<cls>` alone. M targets."""

    tokens: Tensor  # [1, R, L] int64, corrupted
    is_real: Tensor | None  # [1, R, L] bool, False at `<pad>`, which only parity gives
    target_index: Tensor  # [M] int64, places in the flattened tokens, ascending
    targets: Tensor  # [M] int64, original ids
    weight: int  # what the loss of this micro-batch counts for
    shapes: list[tuple[int, int]]  # (R, L) of each alignment: one, or none
    lengths: I64  # [alignments] tokens
    nucleotides: I64  # [alignments] letters that are no gaps
    target_sample: I64  # [M] zeros: which alignment of the micro-batch
    target_row: I64  # [M] which row of the whole alignment
    target_nucleotide: I64  # [M] which column of the whole alignment
    target_width: I64  # [M] ones: letters of each target


class MSA:
    """The objective: a sample out of an alignment (`collate`), and the loss of a model on it (`loss`)."""

    kind = "alignments"
    data_fingerprint = ""
    one_per_micro_batch = True  # alignments differ in both sizes, and are never padded
    COUNTS = ("correct", "targets")

    def __init__(self, config: MSAConfig):
        check(config)
        self.config, self.alphabet = config, RNAMSM
        self.limits = Limits(config.max_columns, config.max_rows, config.max_tokens)
        self.nucleotide_ids = _ids(NUCLEOTIDES)
        self._never = torch.from_numpy(np.setdiff1d(np.arange(len(RNAMSM)), _ids(LETTERS)))
        self._pool = _ids(ORIGINAL_TOKENS if config.parity else config.random_letters)

    def token_lengths(self, columns: I64) -> I64:
        """[n] tokens that alignments of so many columns have at most, however deep they are."""
        return self._tokens(self.config.max_rows, columns)

    def costs(self, corpus: Any, ids: I64) -> I64:
        """[n] tokens of the samples that alignments of a corpus give; block deletion may leave fewer.

        With random queries the most that they can have: how many columns a query has is known once it is read.
        """
        return self._tokens(corpus.depths[ids], corpus.lengths[ids])

    def _tokens(self, depths: npt.ArrayLike, columns: npt.ArrayLike) -> I64:
        if self.config.query == "random":
            return self.limits.most_tokens(depths, columns)
        rows, width = self.limits.shape(depths, columns)
        return rows * width

    def plain(self, letters: list[npt.NDArray[np.uint8]]) -> list[Alignment]:
        """Alignments of one row each."""
        return [SingleRow(one) for one in letters]

    def read(self, corpus: Any, ids: I64) -> list[Alignment]:
        """What `collate` takes: alignments of a corpus, of which nothing is read yet."""
        alignments: list[Alignment] = corpus.alignments(ids)
        return alignments

    def collate(
        self, alignments: Sequence[Alignment], keys: npt.NDArray[np.uint64], moment: Moment | None = None
    ) -> AlignmentBatch:
        """A micro-batch of one alignment and its key; empty lists give one without targets.

        Reads only the rows that are drawn. The ``moment`` of the run changes nothing. Raises ValueError for several.
        """
        if len(alignments) > 1:
            raise ValueError(f"{len(alignments)} alignments were given for a micro-batch, which holds one")
        if not alignments:
            cls, none = np.full((1, 1), RNAMSM.ids[RNAMSM.cls]), np.zeros(0, np.int64)
            return self._batch(cls, cls, none, none, none, empty=True)
        alignment, sample = alignments[0], keys[:1]
        query, frame = self._query(alignment, sample)
        rows, width = (int(n) for n in self.limits.shape(alignment.depth, len(frame)))
        chosen_rows = self._rows(alignment.depth, rows, query, sample)
        letters = alignment.rows(chosen_rows)
        if len(frame) < alignment.columns:
            filled = (letters[:, frame] != _GAP).any(axis=1)
            filled[0] = True
            chosen_rows, letters = chosen_rows[filled], letters[filled]
        start = window_start(len(frame), width - 1, _key("crop", sample))
        columns = frame[start : start + width - 1]
        original = np.pad(
            RNAMSM.lookup[letters[:, columns]].astype(np.int64), ((0, 0), (1, 0)), constant_values=RNAMSM.ids["<cls>"]
        )
        chosen = self._select(original.shape, sample)
        shown = original.copy()
        shown.flat[chosen] = self._replace(original, chosen, sample)
        return self._batch(original, shown, chosen, chosen_rows, columns)

    def _query(self, alignment: Alignment, sample: npt.NDArray[np.uint64]) -> tuple[int, I64]:
        """(the row that is always drawn, the columns that count: all, or those that a random query has letters in).

        Dropping the other columns makes a family's consensus frame look like the alignments the model was published
        with, whose queries have no gaps (specs: rnamsm 3.4). Rows that have no letters left go too, as in `prepare`.
        """
        if self.config.query == "first":
            return 0, np.arange(alignment.columns)
        query = draw_query(alignment.depth, _key("query", sample))
        return query, np.flatnonzero(alignment.rows(np.array([query]))[0] != _GAP)

    def _rows(self, depth: int, rows: int, query: int, sample: npt.NDArray[np.uint64]) -> I64:
        config, candidates = self.config, None
        if config.deleted_blocks:
            blocks = _key("blocks", sample)
            candidates = outside_blocks(depth, config.deleted_blocks, config.deleted_fraction, blocks, query)
        return draw_rows(depth, rows, _key("rows", sample), candidates, config.with_replacement, query)

    def _select(self, shape: tuple[int, ...], sample: npt.NDArray[np.uint64]) -> I64:
        """Places in the flattened alignment, ascending; never `<cls>`."""
        rows, columns = shape
        if self.config.select == "columns":
            drawn = randomness.uniform(_key("select", sample), np.arange(columns)) < self.config.masked_fraction
            selected = np.broadcast_to(drawn, (rows, columns)).copy()
        else:
            drawn = randomness.uniform(_key("select", sample), np.arange(rows * columns)) < self.config.masked_fraction
            selected = drawn.reshape(rows, columns)
        selected[:, 0] = False
        return np.flatnonzero(selected)

    def _replace(self, original: I64, chosen: I64, sample: npt.NDArray[np.uint64]) -> I64:
        """What stands in the place of each selected token."""
        config, tokens, n = self.config, original.flat[chosen], len(self._pool)
        fate = randomness.uniform(_key("fate", sample), chosen)
        draws = randomness.bits(_key("letter", sample), chosen)
        letters = self._pool[randomness.below(draws, n)]
        if config.random_differs:
            # One of the n - 1 after the original, cyclically; a letter outside the pool may become any of it.
            matches = tokens[:, None] == self._pool
            place = matches.argmax(axis=1)
            others = self._pool[(place + 1 + randomness.below(draws, n - 1)) % n]
            letters = np.where(matches.any(axis=1), others, letters)
        row = randomness.below(randomness.bits(_key("profile", sample), chosen), len(original))
        profile = original[row, chosen % original.shape[1]]
        ends = np.cumsum([config.mask_share, config.random_share, config.profile_share])
        kinds = [fate < end for end in ends]
        return np.select(kinds, [np.full_like(tokens, RNAMSM.ids[RNAMSM.mask]), letters, profile], tokens)

    def _batch(
        self, original: I64, shown: I64, chosen: I64, rows: I64, columns: I64, *, empty: bool = False
    ) -> AlignmentBatch:
        n, width = len(chosen), original.shape[1]
        pad = RNAMSM.ids[RNAMSM.pad]
        nucleotides = np.count_nonzero(original[:, 1:] != RNAMSM.ids["-"])
        return AlignmentBatch(
            tokens=torch.from_numpy(shown[None]),
            is_real=torch.from_numpy(shown[None] != pad) if self.config.parity else None,
            target_index=torch.from_numpy(chosen),
            targets=torch.from_numpy(original.flat[chosen]),
            weight=n if self.config.average == "tokens" else int(n > 0),
            shapes=[] if empty else [(len(original), width)],
            lengths=np.array([] if empty else [original.size], dtype=np.int64),
            nucleotides=np.array([] if empty else [nucleotides], dtype=np.int64),
            target_sample=np.zeros(n, dtype=np.int64),
            target_row=rows[chosen // width],
            target_nucleotide=columns[chosen % width - 1],
            target_width=np.ones(n, dtype=np.int64),
        )

    def logits(self, model: nn.Module, batch: AlignmentBatch) -> Tensor:
        """[M, V] in float32, whatever the model computes in; tokens that are never an answer have probability 0."""
        logits: Tensor = model(batch.tokens, batch.is_real, batch.target_index).float()
        if self._never.device != logits.device:  # once: a copy waits for everything that the device has still to do
            self._never = self._never.to(logits.device)
        return logits.index_fill(-1, self._never, NO_LOGIT)

    def loss(self, model: nn.Module, batch: AlignmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(cross-entropy in nats, the mean over the alignment's targets or their sum; the COUNTS).

        Without targets it is 0 and reaches every parameter all the same.
        """
        logits = self.logits(model, batch)
        total = F.cross_entropy(logits, batch.targets, reduction="sum")
        if self.config.average == "alignments":
            total = total / max(len(batch.targets), 1)
        correct = (logits.detach().argmax(-1) == batch.targets).sum()
        return total, {"correct": correct, "targets": torch.full_like(correct, len(batch.targets))}

    def figures(self, loss: float, weight: float, correct: float, targets: float) -> dict[str, float | int]:
        """What the log shows of a summed loss, the summed weight and the sums of COUNTS."""
        return {
            "loss": loss / max(weight, 1.0),
            "perplexity": perplexity(loss, weight),
            "accuracy": correct / max(targets, 1.0),
            "targets": int(targets),
        }

    def described(self) -> dict[str, object]:
        """For the model card: what it is trained to do, in words."""
        config = self.config
        own = "row 0" if config.query == "first" else "a random row, another one in each epoch, without its gap columns"
        return {
            "Tokens": "nucleotides and gaps of an alignment, and `<cls>` in front of every row",
            "Query": own,
            "Tokens per alignment in training": f"{config.max_tokens:,}, at most {config.max_rows:,} rows and "
            f"{config.max_columns:,} columns",
            "Objective": f"masked tokens of an alignment: {config.masked_fraction:.0%} selected ({config.select}), of "
            f"these {config.mask_share:.0%} `<mask>`, {config.random_share:.0%} a random one, the rest unchanged",
        }

    def flops(self, module: Any, config: Any, batch: AlignmentBatch) -> float:
        """Of training on the micro-batch; ``module`` is the model's file."""
        flops: float = module.flops(config, batch.shapes, len(batch.targets))
        return flops

    def computed(self, settings: Any, batch: AlignmentBatch, device: torch.device) -> tuple[int, int]:
        """(tokens of the micro-batch, tokens computed on): the same, as nothing is padded."""
        tokens = int(batch.lengths.sum())
        return tokens, tokens


def _key(purpose: str, sample: npt.NDArray[np.uint64]) -> int:
    return int(randomness.keys(randomness.key("msa " + purpose), sample)[0])


def _ids(tokens: Sequence[str]) -> I64:
    return np.array([RNAMSM.ids[token] for token in tokens], dtype=np.int64)
