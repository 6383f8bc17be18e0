"""Loss on the held-out split: always the same sequences, crops and masks, whatever the ranks, the seed or the step.

Reports loss (nats), perplexity and accuracy over all targets, perplexity over A, C, G, U alone (logits of other tokens
left out, so models with different alphabets compare), loss per nucleotide of the targets (so that vocabularies of
pieces compare), and loss, perplexity and accuracy per RNA type where the corpus knows types. Of objectives with type
tokens also how often the model names a sequence's type (pretrain/validation_types.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import layout, randomness
from data.index import Corpus
from data.loader import Moment
from pretrain.distributed import USER_ERRORS, World
from pretrain.engine import Engine
from pretrain.objectives.intervals import Intervals
from pretrain.objectives.masked import MaskedBatch, MaskedObjective, perplexity

# All ranks together, before each micro-batch: fails on all where one has a problem; True to stop (`World.meet`).
Meet = Callable[[Exception | None], bool]


class HeldOut(ABC):
    """The loop over the held-out samples; subclasses say what is summed (`_sums`) and reported (`_report`).

    The first ``sequences`` of the split, one per cluster, under fixed masks (a corpus is shuffled when built).
    """

    UNITS: tuple[str, ...] = ("clusters", "sequences", "alignments")  # of a split the first that it has counts

    rows = 1  # of the table of sums
    columns = 1

    def __init__(self, corpus: Any, objective: Any, sequences: int, budget: int):
        self.corpus, self.objective, self.budget = corpus, objective, budget
        # Of a cluster its first member, always the same one: relatives would count the same family several times.
        clustered = corpus.clusters is not None and "clusters" in self.UNITS
        units = corpus.clusters[:-1].astype(np.int64) if clustered else np.arange(corpus.count)
        self.ids = units[:sequences]
        # A key of its own: no run's seed, so that numbers compare between runs on one corpus.
        self._keys = randomness.keys(randomness.key("validation"), self.ids)

    @staticmethod
    def passes(objective: Any) -> int:
        """How often the model sees each sample, by the configuration of its objective."""
        return 1

    def micro_batches(self, rank: int, ranks: int) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
        """(places in ``ids``, micro-batch) of one rank; every rank gets the same number, some may be empty."""
        costs = self.objective.costs(self.corpus, self.ids)
        alone, padded = self.objective.one_per_micro_batch, getattr(self.objective, "padded", False)
        for chosen in layout.plan_step(costs, ranks, self.budget, alone, padded)[rank]:
            samples = self.objective.read(self.corpus, self.ids[chosen])
            yield chosen, self.objective.collate(samples, self._keys[chosen], Moment.last())

    def run(self, engine: Engine, world: World, meet: Meet) -> dict[str, Any] | None:
        """The report, the same on every rank; None if any rank was asked to stop meanwhile (``meet`` says so)."""
        sums = np.zeros((self.rows, self.columns))
        engine.deepspeed.eval()
        try:
            with torch.no_grad():
                for chosen, batch, problem in self._readable(world):
                    if meet(problem):
                        return None
                    outputs = self.outputs(engine.module, batch.to(world.device)).cpu()
                    if batch.weight:
                        sums += self._sums(outputs, batch, chosen)
        finally:
            engine.deepspeed.train()
        return self._report(np.array(world.sum(sums.ravel().tolist())).reshape(sums.shape))

    def _readable(self, world: World) -> Iterator[tuple[npt.NDArray[np.int64], Any, Exception | None]]:
        """`micro_batches`; a failure to read them comes as the third of the tuple, once."""
        try:
            for chosen, batch in self.micro_batches(world.rank, world.ranks):
                yield chosen, batch, None
        except USER_ERRORS as error:
            yield self.ids[:0], self.objective.collate([], self._keys[:0], Moment.last()), error

    def learn_from(self, training: Any) -> None:  # noqa: B027 (nothing, unless a subclass needs something)
        """Take what a validation needs of the training split besides the held-out samples."""

    def outputs(self, module: nn.Module, batch: Any) -> Tensor:
        """What `_sums` judges."""
        found: Tensor = self.objective.logits(module, batch)
        return found

    @abstractmethod
    def _sums(self, outputs: Tensor, batch: Any, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[rows, columns] of a micro-batch that holds the samples at the places ``chosen`` of ``ids``."""

    @abstractmethod
    def _report(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
        """Figures of the sums over all of the split."""

    def references(self, training: Any) -> dict[str, Any]:
        """Figures of trivial models, fitted on the training split, on the same targets: name -> {figure: value}."""
        return {}


class Validation(HeldOut):
    """Of masked sequences, per RNA type."""

    objective: MaskedObjective
    columns = 7  # nats, targets, right; of letters nats, nucleotides; and over A, C, G, U alone: nats, targets

    def __init__(self, corpus: Corpus, objective: MaskedObjective, sequences: int, budget: int):
        super().__init__(corpus, objective, sequences, budget)
        self.types = corpus.types(self.ids)
        self.rows = len(corpus.type_names)
        self.ranking: HeldOut | None = None
        if isinstance(objective, Intervals) and objective.asks_types:
            from pretrain.validation_types import TypeRanking  # which needs this module

            self.ranking = TypeRanking(corpus, objective, sequences, budget)

    def run(self, engine: Engine, world: World, meet: Meet) -> dict[str, Any] | None:
        """As `HeldOut.run`, and how often the model names the right RNA type, where training asks for types."""
        report = super().run(engine, world, meet)
        if report is None or self.ranking is None:
            return report
        ranked = self.ranking.run(engine, world, meet)
        return None if ranked is None else report | ranked

    def references(self, training: Corpus) -> dict[str, Any]:
        from pretrain.references import reference_losses  # which needs this class

        return reference_losses(training, self)

    def _sums(self, logits: Tensor, batch: MaskedBatch, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        targets = batch.targets.cpu()
        nucleotides = torch.from_numpy(self.objective.nucleotide_ids)
        place = torch.full((logits.shape[1],), -1)
        place[nucleotides] = torch.arange(len(nucleotides))
        plain = place[targets] >= 0
        nats = F.cross_entropy(logits, targets, reduction="none").double()
        plain_nats = torch.zeros_like(nats)
        plain_nats[plain] = F.cross_entropy(
            logits[plain][:, nucleotides], place[targets[plain]], reduction="none"
        ).double()
        right = (logits.argmax(-1) == targets).double()
        widths = torch.from_numpy(batch.target_width).double()
        letters = nats * (widths > 0)  # a type token is a target without nucleotides
        columns = (nats, torch.ones_like(nats), right, letters, widths, plain_nats, plain.double())
        of_type, n = self.types[chosen][batch.target_sample], self.rows
        return np.stack([np.bincount(of_type, column.numpy(), minlength=n) for column in columns], axis=1)

    def _report(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
        report = _figures(sums.sum(axis=0))
        report["sequences"] = len(self.ids)
        report["types"] = {
            name: {key: figures[key] for key in ("loss", "perplexity", "accuracy", "targets")}
            for name, row in zip(self.corpus.type_names, sums, strict=True)
            if row[1] > 0
            for figures in (_figures(row),)
        }
        return report


def _figures(sums: npt.NDArray[np.float64]) -> dict[str, Any]:
    nats, targets, right, letter_nats, nucleotides, plain_nats, plain_targets = sums.tolist()
    return {
        "loss": nats / max(targets, 1),
        "loss_per_nucleotide": letter_nats / max(nucleotides, 1),
        "perplexity": perplexity(nats, targets),
        "accuracy": right / max(targets, 1),
        "perplexity_acgu": perplexity(plain_nats, plain_targets),
        "targets": int(targets),
    }
