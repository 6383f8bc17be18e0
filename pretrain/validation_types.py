"""Does the model know the RNA type of held-out sequences? Part of every validation of a run that asks for types.

The question is that of pretrain/type_guided.py: the type's token is `<mask>`, every nucleotide is shown, and the logits
there, restricted to the types, give a first choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data import layout
from pretrain.objectives.intervals import Intervals
from pretrain.objectives.masked import MaskedBatch
from pretrain.validation import HeldOut

SEQUENCES = 1024  # that are asked for their type: a standard error of at most 1.6 points


class TypeRanking(HeldOut):
    """The model's first choice of type for held-out sequences whose type the vocabulary has.

    Among the first SEQUENCES of them, one per cluster. `type_majority` is what always naming the type that is the most
    frequent among these very sequences would reach, so no constant answer does better.
    """

    objective: Intervals
    columns = 2  # sequences of the type, and those that are ranked first

    def __init__(self, corpus: Any, objective: Intervals, sequences: int, budget: int):
        super().__init__(corpus, objective, sequences, budget)
        known = objective.type_tokens(corpus.type_names)[corpus.types(self.ids)] >= 0
        self.ids, self._keys = self.ids[known][:SEQUENCES], self._keys[known][:SEQUENCES]
        self.rows = len(objective.type_ids)

    def micro_batches(self, rank: int, ranks: int) -> Iterator[tuple[npt.NDArray[np.int64], MaskedBatch]]:
        costs = self.objective.costs(self.corpus, self.ids)
        for chosen in layout.plan_step(costs, ranks, self.budget)[rank]:
            samples = self.objective.read(self.corpus, self.ids[chosen])
            yield chosen, self.objective.ask_types(samples, self._keys[chosen])

    def _sums(self, logits: Tensor, batch: MaskedBatch, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        types = self.objective.type_ids
        true = np.searchsorted(types, batch.targets.cpu().numpy())
        right = logits[:, torch.from_numpy(types)].argmax(-1).numpy() == true
        return np.stack([np.bincount(true, weights, minlength=self.rows) for weights in (None, right)], axis=1)

    def _report(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
        count = sums[:, 0].sum()
        if not count:
            return {}
        return {
            "type_accuracy": float(sums[:, 1].sum() / count),
            "type_majority": float(sums[:, 0].max() / count),
            "type_sequences": int(count),
        }
