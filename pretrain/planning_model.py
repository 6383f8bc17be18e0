"""What a recipe's model costs: parameters (counted on the meta device), FLOPs, and activations of a micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models import MODELS
from pretrain import recipe
from pretrain.config import Recipe
from pretrain.estimate import cost_of
from pretrain.objectives.reactivity import cost as reactivity_cost

I64 = npt.NDArray[np.int64]
Shapes = I64  # [n, 2], see planning_samples.Drawn


class ModelCost:
    """Figures of one model in one stage.

    ``parameters`` numbers; ``cast`` those that autocast copies to bf16; ``largest`` of one tensor; ``sizes`` of each
    tensor. ``pads``: attention runs on padded copies (torch's sdpa, which fp32 and GPUs without bf16 leave).
    """

    def __init__(self, settings: Recipe, kind: str, pads: bool = False):
        self.settings, self.kind, self.pads = settings, kind, pads
        _, model_class = MODELS[recipe.model_name(settings)]
        with torch.device("meta"):
            model = model_class(settings.model)
        self.sizes = [parameter.numel() for parameter in model.parameters()]
        self.parameters, self.largest = sum(self.sizes), max(self.sizes)
        self.cast = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
        self._module, objective = cost_of(settings), settings.objective
        self.share = getattr(objective, "masked_fraction", 0.0)
        precision = settings.compute.precision
        self._bytes = {"element_bytes": 4 if precision == "fp32" else 2}
        if precision == "bf16_autocast":
            self._bytes["residual_bytes"] = 4

    def flops(self, shapes: Shapes) -> npt.NDArray[np.float64]:
        """[n] FLOPs of training on each sample; useful work only, as a run's MFU counts it."""
        different, where = np.unique(shapes, axis=0, return_inverse=True)
        each = [self._flops(rows, columns) for rows, columns in different.tolist()]
        return np.array(each)[where.reshape(-1)]

    def _flops(self, rows: int, columns: int) -> float:
        targets = self._targets(rows * columns)
        sample: Any = (rows, columns) if self.kind == "alignments" else columns
        return float(self._module.flops(self.settings.model, [sample], targets))

    def _targets(self, tokens: int) -> int:
        return round(self.share * tokens)

    def activations(self, shapes: Shapes, checkpointing: bool | None = None) -> int:
        """The most bytes that a micro-batch takes in its backward pass, bf16 copies of weights under autocast aside.

        What the forward pass keeps (models/*_cost.py), and the gradients in flight: one of a feed-forward layer's
        inner units and one of the stream; RNA-MSM and RibonanzaNet say it themselves.
        """
        config = self.settings.model
        if checkpointing is not None:
            config = dataclasses.replace(config, checkpointing=checkpointing)
        estimate: Callable[..., int] = self._module.activation_bytes
        if not len(shapes):
            return 0
        element = self._bytes["element_bytes"]
        if self.kind == "reactivity":
            lengths = shapes[:, 1].tolist()
            in_flight = self._module.backward_bytes(config, lengths, **self._bytes)
            return in_flight + estimate(config, lengths, **self._bytes)
        tokens = int(shapes.prod(axis=1).sum())
        in_flight = tokens * (config.ffn + config.width) * element
        if self.kind == "alignments":  # one per micro-batch
            sizes = (*shapes[0].tolist(), self._targets(tokens))
            in_flight = self._module.backward_bytes(config, *sizes, **self._bytes)
            return in_flight + estimate(config, *sizes, **self._bytes)
        longest, shortest = int(shapes[:, 1].max()), int(shapes[:, 1].min())
        padded = len(shapes) * longest if self.pads and longest > shortest else 0
        return in_flight + estimate(config, tokens, self._targets(tokens), padded_tokens=padded, **self._bytes)

    def worst(self, budget: int, shapes: Shapes, checkpointing: bool | None = None) -> int:
        """Bytes of activations of the largest micro-batch within ``budget`` (batch.tokens_per_micro_batch).

        ``shapes`` are samples of the stage: of sequences only their sum matters, of alignments there is one in a
        micro-batch, and with a pair stream the worst is many alike of some length.
        """
        if self.kind == "sequences":
            one = np.array([[1, budget]])
            if not self.pads:
                return self.activations(one, checkpointing)
            longest = int(shapes[:, 1].max())
            alike = np.tile([[1, longest]], (max(budget // longest, 1), 1))
            alike[-1, 1] = max(longest - 1, 1)  # unequal, so attention makes padded copies
            return self.activations(alike, checkpointing)
        different = np.unique(shapes, axis=0)
        if self.kind == "alignments":
            return max(self.activations(shape[None], checkpointing) for shape in different)
        counts = budget // reactivity_cost(different[:, 1])
        batches = [np.repeat(shape[None], n, axis=0) for shape, n in zip(different, counts.tolist(), strict=True) if n]
        return max((self.activations(batch, checkpointing) for batch in batches), default=0)
