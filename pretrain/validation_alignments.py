"""Loss on held-out alignments, what trivial models reach on the same targets, and the contacts that a model sees.

The loss is that of training: the mean over alignments of the mean over each one's targets. Two models without any
knowledge of RNA stand beside it: the letter frequencies of the training split, and the letters of each target's own
column in the rows that the model sees. Where alignments have structures, a probe reads base pairs off the row-attention
maps (pretrain/contacts.py), fitted on training alignments and tested on held-out ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.alignments import Alignment, AlignmentCorpus
from data.msa_alphabet import LETTERS, RNAMSM
from pretrain import contacts
from pretrain.distributed import USER_ERRORS, World
from pretrain.engine import Engine
from pretrain.objectives.masked import perplexity
from pretrain.objectives.msa import MSA, AlignmentBatch
from pretrain.validation import HeldOut, Meet

FIT_ALIGNMENTS = 256  # of the training split, for letter frequencies
PROBE_KNOWN, PROBE_HELD_OUT = 20, 64  # alignments with structures
PROBE_COLUMNS, PROBE_ROWS, PROBE_PAIRS = 256, 64, 3
_IDS = np.array([RNAMSM.ids[letter] for letter in LETTERS])
F64 = npt.NDArray[np.float64]
T = TypeVar("T")


class AlignmentValidation(HeldOut):
    """Of masked alignments, per RNA type of their families."""

    objective: MSA
    columns = 5  # sums over alignments of mean nats, alignments with targets; nats, targets, right

    def __init__(self, corpus: AlignmentCorpus, objective: MSA, sequences: int, budget: int):
        super().__init__(corpus, objective, sequences, budget)
        self.types = corpus.types(self.ids)
        self.rows = len(corpus.type_names)
        self.known: list[Alignment] = []
        self.held_out = with_structure(corpus, self.ids, PROBE_HELD_OUT)

    def learn_from(self, training: AlignmentCorpus) -> None:
        """Take the alignments that the probe of contacts is fitted on from the training split."""
        if self.held_out:
            self.known = with_structure(training, np.arange(training.count), PROBE_KNOWN)

    def run(self, engine: Engine, world: World, meet: Meet) -> dict[str, Any] | None:
        report = super().run(engine, world, meet)
        if report is None or not self.known or not self.held_out:
            return report
        engine.deepspeed.eval()
        try:
            found = self._contacts(engine, world, meet)
        finally:
            engine.deepspeed.train()
        return None if found is None else report | found

    def _contacts(self, engine: Engine, world: World, meet: Meet) -> dict[str, float] | None:
        """Mean precision over held-out structures; None if a rank was asked to stop. Each rank computes its share."""
        known = self._maps(engine, world, self.known, meet)
        if known is None:
            return None
        # All ranks fit the same examples in the same order, so the probe does not depend on how many there are.
        probe = contacts.fit(_in_order(world.gather(known)))
        held_out = self._maps(engine, world, self.held_out, meet)
        if held_out is None:
            return None
        mine = [contacts.precision(probe.probabilities(maps), partners) for maps, partners in held_out]
        figures = _in_order(world.gather(mine))
        return {f"contact_{name}": float(np.mean([one[name] for one in figures])) for name in contacts.FRACTIONS}

    def _maps(
        self, engine: Engine, world: World, alignments: list[Alignment], meet: Meet
    ) -> list[contacts.Example] | None:
        """(maps, partners) of this rank's share: alignment ``rank``, ``rank + ranks``, and so on.

        Every rank computes equally often, as ZeRO's collectives need it.
        """
        found: list[contacts.Example] = []
        for start in range(0, len(alignments), world.ranks):
            number = start + world.rank
            alignment = alignments[min(number, len(alignments) - 1)]
            tokens, problem = None, None
            try:
                tokens = probe_tokens(alignment)
            except USER_ERRORS as error:  # a shard is damaged: all ranks must know before they compute together
                problem = error
            if meet(problem):
                return None
            assert tokens is not None
            maps = maps_of(engine.module, tokens.to(world.device))
            if number < len(alignments):
                partners = alignment.partners
                assert partners is not None
                found.append((maps, partners))
        return found

    def _sums(self, outputs: Tensor, batch: AlignmentBatch, chosen: npt.NDArray[np.int64]) -> F64:
        targets = batch.targets.cpu()
        nats = F.cross_entropy(outputs, targets, reduction="none").double()
        right = (outputs.argmax(-1) == targets).sum()
        sums = np.zeros((self.rows, self.columns))
        sums[self.types[chosen[0]]] = [float(nats.mean()), 1, float(nats.sum()), len(targets), float(right)]
        return sums

    def _report(self, sums: F64) -> dict[str, Any]:
        report = _figures(sums.sum(axis=0))
        report["sequences"] = len(self.ids)
        report["types"] = {
            name: _figures(row) for name, row in zip(self.corpus.type_names, sums, strict=True) if row[1] > 0
        }
        return report

    def references(self, training: AlignmentCorpus) -> dict[str, Any]:
        """Letter frequencies of the training split, and each column's own letters in the rows that the model sees."""
        background = letter_frequencies(training)
        sums = {"letter_frequencies": [0.0, 0.0], "column_profile": [0.0, 0.0]}
        for _, batch in self.micro_batches(0, 1):
            if batch.weight:
                for name, p in (("letter_frequencies", background), ("column_profile", profile(batch, background))):
                    sums[name][0] -= float(np.log(_of_targets(p, batch)).mean())
                    sums[name][1] += 1
        return {
            name: {"loss": nats / max(count, 1), "perplexity": perplexity(nats, count)}
            for name, (nats, count) in sums.items()
        }


def letter_frequencies(corpus: AlignmentCorpus) -> F64:
    """[6] of LETTERS in the first alignments of a corpus (which is shuffled), with a count of one for each letter."""
    counts: F64 = np.ones(len(LETTERS))
    for alignment in corpus.alignments(np.arange(min(FIT_ALIGNMENTS, corpus.count))):
        letters = alignment.rows(np.arange(min(alignment.depth, PROBE_ROWS)))
        counts += np.bincount(letters.ravel(), minlength=256)[[ord(letter) for letter in LETTERS]]
    found: F64 = counts / counts.sum()
    return found


def profile(batch: AlignmentBatch, background: F64) -> F64:
    """[L, 6] probability of each letter in each column, from the tokens that are no targets.

    The background counts as one more row.
    """
    tokens = batch.tokens[0].numpy()
    seen = np.ones(tokens.shape, dtype=bool)
    seen.flat[batch.target_index.numpy()] = False
    counts: F64 = np.stack([((tokens == i) & seen).sum(axis=0) for i in _IDS], axis=1) + background
    found: F64 = counts / counts.sum(axis=1, keepdims=True)
    return found


def _of_targets(p: F64, batch: AlignmentBatch) -> F64:
    """[M] probability that ``p`` ([6], or [L, 6] by column) gives the letter of each target."""
    letter = (batch.targets.numpy()[:, None] == _IDS).argmax(axis=1)
    found: F64 = p[letter] if p.ndim == 1 else p[batch.target_index.numpy() % batch.tokens.shape[2], letter]
    return found


def with_structure(corpus: AlignmentCorpus, ids: npt.NDArray[np.int64], most: int) -> list[Alignment]:
    """The first alignments of ``ids`` with a structure of some pairs, that are not too wide for the probe."""
    return list(itertools.islice(_paired(corpus, ids[corpus.lengths[ids] <= PROBE_COLUMNS]), most))


def _paired(corpus: AlignmentCorpus, ids: npt.NDArray[np.int64]) -> Iterator[Alignment]:
    for i in ids.tolist():
        (alignment,) = corpus.alignments([i])
        partners = alignment.partners
        if partners is None:
            continue
        distant = np.count_nonzero(partners - np.arange(len(partners)) >= contacts.SEPARATION)
        if distant >= PROBE_PAIRS:
            yield alignment


def probe_tokens(alignment: Alignment) -> Tensor:
    """[1, R, L] int64: the first rows (they were shuffled when the corpus was built), with `<cls>` in front."""
    return tokens_of(alignment.rows(np.arange(min(alignment.depth, PROBE_ROWS))))


def tokens_of(letters: npt.NDArray[np.uint8]) -> Tensor:
    """[1, R, 1 + L] int64 of rows of letters [R, L], with `<cls>` in front."""
    tokens = np.pad(RNAMSM.lookup[letters].astype(np.int64), ((0, 0), (1, 0)), constant_values=RNAMSM.ids[RNAMSM.cls])
    return torch.from_numpy(tokens[None])


def maps_of(module: nn.Module, tokens: Tensor) -> npt.NDArray[np.float32]:
    """[C, L, L] row-attention maps of one alignment, without `<cls>`, by a model in evaluation mode."""
    with torch.no_grad():
        maps = module(tokens, everything=True).maps[0, :, 1:, 1:]
    found: npt.NDArray[np.float32] = maps.float().cpu().numpy()
    return found


def _in_order(shares: list[list[T]]) -> list[T]:
    """What ranks 0, 1, ... made of samples rank, rank + ranks, ..., in the order of the samples."""
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def _figures(sums: F64) -> dict[str, Any]:
    mean_nats, alignments, nats, targets, right = sums.tolist()
    return {
        "loss": mean_nats / max(alignments, 1),
        "loss_per_token": nats / max(targets, 1),
        "perplexity": perplexity(mean_nats, alignments),
        "accuracy": right / max(targets, 1),
        "targets": int(targets),
    }
