"""Loss on held-out alignments, what trivial models reach on the same targets, and the contacts that a model sees.

The loss is that of training: the mean over alignments of the mean over each one's targets. Two models without any
knowledge of RNA stand beside it: the letter frequencies of the training split, and the letters of each target's own
column in the rows that the model sees. Where alignments have structures, a probe reads base pairs off the row-attention
maps (pretrain/contacts.py), fitted on training alignments and tested on held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data.alignments import Alignment, AlignmentCorpus
from data.msa_alphabet import LETTERS, RNAMSM
from pretrain import contacts
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.objectives.masked import perplexity
from pretrain.objectives.msa import MSA, AlignmentBatch
from pretrain.validation import HeldOut

FIT_ALIGNMENTS = 256  # of the training split, for letter frequencies
PROBE_KNOWN, PROBE_HELD_OUT = 20, 64  # alignments with structures
PROBE_COLUMNS, PROBE_ROWS, PROBE_PAIRS = 256, 64, 3
_IDS = np.array([RNAMSM.ids[letter] for letter in LETTERS])


class AlignmentValidation(HeldOut):
    """Of masked alignments, per RNA type of their families."""

    objective: MSA
    columns = 5  # sums over alignments of mean nats, alignments with targets; nats, targets, right

    def __init__(self, corpus: AlignmentCorpus, objective: MSA, sequences: int, budget: int):
        super().__init__(corpus, objective, sequences, budget)
        self.types = corpus.types(self.ids)
        self.rows = len(corpus.type_names)
        self.known: list[Alignment] = []
        self.held_out = _with_structure(corpus, self.ids, PROBE_HELD_OUT)

    def learn_from(self, training: AlignmentCorpus) -> None:
        """Take the alignments that the probe of contacts is fitted on from the training split."""
        if self.held_out:
            self.known = _with_structure(training, np.arange(training.count), PROBE_KNOWN)

    def run(self, engine: Engine, world: World, stopping: Callable[[], bool]) -> dict[str, Any] | None:
        report = super().run(engine, world, stopping)
        if report is None or not self.known or not self.held_out:
            return report
        engine.deepspeed.eval()
        try:
            found = self._contacts(engine, world, stopping)
        finally:
            engine.deepspeed.train()
        return None if found is None else report | found

    def _contacts(self, engine: Engine, world: World, stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Mean precision over held-out structures; None if a rank was asked to stop. Each rank computes its share."""
        maps = self._maps(engine, world, self.known, stopping)
        if maps is None:
            return None
        known = [example for part in world.gather(maps) for example in part]
        probe = contacts.fit(known)
        held_out = self._maps(engine, world, self.held_out, stopping)
        if held_out is None:
            return None
        mine = [contacts.precision(probe.probabilities(found), partners) for found, partners in held_out]
        figures = [figures for part in world.gather(mine) for figures in part]
        return {f"contact_{name}": float(np.mean([one[name] for one in figures])) for name in contacts.FRACTIONS}

    def _maps(
        self, engine: Engine, world: World, alignments: list[Alignment], stopping: Callable[[], bool]
    ) -> list[contacts.Example] | None:
        """(maps, partners) of this rank's share. Every rank computes equally often, as ZeRO's collectives need it."""
        found: list[contacts.Example] = []
        turns = -(-len(alignments) // world.ranks)
        for turn in range(turns):
            (stopped,) = world.sum([stopping()])
            if stopped:
                return None
            number = turn * world.ranks + world.rank
            alignment = alignments[min(number, len(alignments) - 1)]
            with torch.no_grad():
                outputs = engine.module(_tokens(alignment).to(world.device), everything=True)
            if number < len(alignments):
                partners = alignment.partners
                assert partners is not None
                found.append((outputs.maps[0, :, 1:, 1:].float().cpu().numpy(), partners))
        return found

    def _sums(self, outputs: Tensor, batch: AlignmentBatch, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        targets = batch.targets.cpu()
        nats = F.cross_entropy(outputs, targets, reduction="none").double()
        right = (outputs.argmax(-1) == targets).sum()
        sums = np.zeros((self.rows, self.columns))
        sums[self.types[chosen[0]]] = [float(nats.mean()), 1, float(nats.sum()), len(targets), float(right)]
        return sums

    def _report(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
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


def letter_frequencies(corpus: AlignmentCorpus) -> npt.NDArray[np.float64]:
    """[6] of LETTERS in the first alignments of a corpus (which is shuffled), with a count of one for each letter."""
    counts = np.ones(len(LETTERS))
    for alignment in corpus.alignments(np.arange(min(FIT_ALIGNMENTS, corpus.count))):
        letters = alignment.rows(np.arange(min(alignment.depth, PROBE_ROWS)))
        counts += np.bincount(letters.ravel(), minlength=256)[[ord(letter) for letter in LETTERS]]
    return counts / counts.sum()


def profile(batch: AlignmentBatch, background: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[L, 6] probability of each letter in each column, from the tokens that are no targets.

    The background counts as one more row.
    """
    tokens = batch.tokens[0].numpy()
    seen = np.ones(tokens.size, dtype=bool)
    seen[batch.target_index.numpy()] = False
    seen = seen.reshape(tokens.shape)
    counts = np.stack([((tokens == i) & seen).sum(axis=0) for i in _IDS], axis=1) + background
    return counts / counts.sum(axis=1, keepdims=True)


def _of_targets(p: npt.NDArray[np.float64], batch: AlignmentBatch) -> npt.NDArray[np.float64]:
    """[M] probability that ``p`` ([6], or [L, 6] by column) gives the letter of each target."""
    letter = (batch.targets.numpy()[:, None] == _IDS).argmax(axis=1)
    found: npt.NDArray[np.float64] = (
        p[letter] if p.ndim == 1 else p[batch.target_index.numpy() % batch.tokens.shape[2], letter]
    )
    return found


def _with_structure(corpus: AlignmentCorpus, ids: npt.NDArray[np.int64], most: int) -> list[Alignment]:
    """The first alignments of ``ids`` with a structure of some pairs, that are not too wide for the probe."""
    return list(_first(_paired(corpus, ids[corpus.lengths[ids] <= PROBE_COLUMNS]), most))


def _paired(corpus: AlignmentCorpus, ids: npt.NDArray[np.int64]) -> Iterator[Alignment]:
    for i in ids.tolist():
        (alignment,) = corpus.alignments([i])
        partners = alignment.partners
        if partners is None:
            continue
        distant = np.count_nonzero(partners - np.arange(len(partners)) >= contacts.SEPARATION)
        if distant >= PROBE_PAIRS:
            yield alignment


def _first(alignments: Iterator[Alignment], most: int) -> Iterator[Alignment]:
    for _, alignment in zip(range(most), alignments, strict=False):
        yield alignment


def _tokens(alignment: Alignment) -> Tensor:
    """[1, R, L] int64: the first rows (they were shuffled when the corpus was built), with `<cls>` in front."""
    letters = alignment.rows(np.arange(min(alignment.depth, PROBE_ROWS)))
    tokens = np.pad(RNAMSM.lookup[letters].astype(np.int64), ((0, 0), (1, 0)), constant_values=RNAMSM.ids[RNAMSM.cls])
    return torch.from_numpy(tokens[None])


def _figures(sums: npt.NDArray[np.float64]) -> dict[str, Any]:
    mean_nats, alignments, nats, targets, right = sums.tolist()
    return {
        "loss": mean_nats / max(alignments, 1),
        "loss_per_token": nats / max(targets, 1),
        "perplexity": perplexity(mean_nats, alignments),
        "accuracy": right / max(targets, 1),
        "targets": int(targets),
    }
