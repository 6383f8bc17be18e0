"""What the steps of a stage consist of, as sizes alone: from the corpus where it is there, else from the recipe.

With a corpus, some steps of the real order are drawn, spread evenly over the stage: always the same ones, and with the
samples that training will have. Without it, every sample is taken to be as large as the recipe allows, or as large as
the caller says. Nothing is downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import randomness
from data.manifest import read_manifest
from data.mixture import Mixture
from data.msa_sampling import Limits
from data.urls import shown
from pretrain import recipe
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.objectives import OBJECTIVES
from pretrain.objectives.reactivity import cost as reactivity_cost
from pretrain.opening import VALIDATIONS, Place, sources_of

I64 = npt.NDArray[np.int64]
DRAWN_STEPS = 8
RIBONANZA = 177  # nucleotides of nearly every sequence of Ribonanza


@dataclass
class Drawn:
    """The samples of one step. n samples."""

    costs: I64  # [n] what batch.tokens_per_micro_batch limits
    shapes: I64  # [n, 2] rows and columns of an alignment; of a sequence 1 and its tokens


@dataclass
class Samples:
    """One stage: some of its steps, how many there are, and how often each corpus is passed over."""

    stage: str  # "" in a recipe without stages
    settings: Recipe  # as it holds in this stage
    kind: str  # sequences, alignments or reactivity
    alone: bool  # one sample per micro-batch
    drawn: list[Drawn]
    steps: int | None  # None: the recipe counts epochs and nobody knows how long one is
    held_out: int  # samples of a validation, over all corpora
    epochs: dict[str, float] = field(default_factory=dict)  # by corpus
    assumed: str | None = None  # what was assumed in place of a corpus

    @property
    def padded(self) -> bool:
        """Whether the samples of a micro-batch are padded to the longest."""
        _, objective_class = OBJECTIVES[self.settings.objective.name]
        return bool(getattr(objective_class, "padded", False))

    @property
    def validation_passes(self) -> int:
        """How often the model sees each sample of a validation."""
        return VALIDATIONS[self.kind].passes(self.settings.objective)

    @property
    def sequences(self) -> int:
        return int(self.settings.batch.sequences)


@dataclass
class Assumed:
    """What the caller says about a corpus that is not there."""

    tokens: int | None = None  # of a sample
    samples_per_epoch: int | None = None  # sequences, clusters or alignments


def stages_of(settings: Recipe, assumed: Assumed) -> list[Samples]:
    """Every stage of a recipe. Raises DataError or PretrainError if a corpus that is there cannot serve it."""
    found = []
    for number, (name, own) in enumerate(recipe.stage_recipes(settings)):
        seed = settings.run.seed if number == 0 else randomness.key(settings.run.seed, "stage", number)
        found.append(_stage(name, own, seed, assumed))
    return found


def _stage(name: str, settings: Recipe, seed: int, assumed: Assumed) -> Samples:
    _, objective_class = OBJECTIVES[settings.objective.name]
    missing = [shown(source.corpus) for source in sources_of(settings.data) if not _is_there(source.corpus)]
    why = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here" if missing else None
    if why is None:
        return _from_corpora(name, settings, seed, objective_class(settings.objective))
    return _from_recipe(name, settings, objective_class, assumed, why)


def _is_there(corpus: str) -> bool:
    """Whatever lies there: what is no corpus must be told, not taken for one that is yet to come."""
    return Path(corpus).exists()


def _from_corpora(name: str, settings: Recipe, seed: int, objective: Any) -> Samples:
    places = [
        Place(source.name or Path(source.corpus.rstrip("/")).name, source.weight, Path(source.corpus), None)
        for source in sources_of(settings.data)
    ]
    corpora = {}
    for place in places:
        corpus = place.open("train", objective.kind)
        corpora[place.name] = objective.training(corpus) if hasattr(objective, "training") else corpus
    if len(corpora) < len(places):
        raise PretrainError("two corpora of data.mixture have the same name; give each a `name` of its own")
    mixture = Mixture(corpora, [place.weight for place in places], seed, settings.batch.sequences)
    steps = settings.budget.steps
    if steps is None:
        if len(places) > 1:
            raise PretrainError(
                "every corpus of a mixture has its own epochs: give budget.steps instead of budget.epochs"
            )
        epochs, units = settings.budget.epochs or 0.0, mixture.orders[0].samples_per_epoch
        steps = math.ceil(epochs * units / settings.batch.sequences)
    drawn = []
    for step in sorted({steps * i // DRAWN_STEPS for i in range(DRAWN_STEPS)}):
        _, ids = mixture.step(step)
        costs = objective.costs(mixture, ids).astype(np.int64)
        shapes = np.stack([np.ones_like(costs), costs], axis=1)
        if objective.kind == "alignments":
            shapes = np.stack(objective.limits.shape(mixture.depths[ids], mixture.lengths[ids]), axis=1)
        elif objective.kind == "reactivity":
            shapes[:, 1] = mixture.lengths[ids]
        drawn.append(Drawn(costs, shapes))
    epochs_by_corpus = mixture.epochs_by_corpus(steps)
    held_out = held_out_samples(settings, [corpus.manifest for corpus in corpora.values()])
    for corpus in corpora.values():
        corpus.close()
    return Samples(
        name, settings, objective.kind, objective.one_per_micro_batch, drawn, steps, held_out, epochs_by_corpus
    )


def held_out_samples(settings: Recipe, manifests: list[dict[str, Any]]) -> int:
    """Samples of a validation: at most `validation.sequences` of each corpus, or of `data.validation` alone."""
    most, alone = settings.validation.sequences, settings.data.validation
    if alone is not None:
        manifests = [read_manifest(Path(alone))] if _is_there(alone) else []
    if not manifests:
        return most
    total = 0
    for manifest in manifests:
        split, validation = manifest["splits"]["validation"], VALIDATIONS[manifest.get("kind", "sequences")]
        total += min(most, next(split[unit] for unit in validation.UNITS if unit in split))
    return total


def _from_recipe(name: str, settings: Recipe, objective_class: Any, assumed: Assumed, why: str) -> Samples:
    own, n, kind = settings.objective, settings.batch.sequences, objective_class.kind
    if kind == "alignments":
        columns = own.max_columns if assumed.tokens is None else min(own.max_columns, assumed.tokens)
        rows, columns = (
            int(x) for x in Limits(own.max_columns, own.max_rows, own.max_tokens).shape(10**9, columns - 1)
        )
        shape, cost, what = (rows, columns), rows * columns, f"{rows:,} rows of {columns:,} columns"
    elif kind == "reactivity":
        length = assumed.tokens or own.samples.max_length or RIBONANZA
        shape, cost, what = (1, length), int(reactivity_cost(np.array([length]))[0]), f"{length:,} nucleotides"
    else:
        tokens = min(assumed.tokens or own.max_tokens, own.max_tokens)
        shape, cost, what = (1, tokens), tokens, f"{tokens:,} tokens"
    if cost > settings.batch.tokens_per_micro_batch:
        raise PretrainError(
            f"batch.tokens_per_micro_batch = {settings.batch.tokens_per_micro_batch} cannot hold one sample of {what}, "
            f"which counts for {cost:,}; raise it"
        )
    steps = settings.budget.steps
    if steps is None and assumed.samples_per_epoch is not None:
        steps = math.ceil((settings.budget.epochs or 0.0) * assumed.samples_per_epoch / n)
    epochs = {}
    if assumed.samples_per_epoch is not None and steps is not None and not settings.data.mixture:
        epochs = {Path(str(settings.data.corpus).rstrip("/")).name: steps * n / assumed.samples_per_epoch}
    drawn = Drawn(np.full(n, cost, dtype=np.int64), np.tile(np.array(shape, dtype=np.int64), (n, 1)))
    given = "as given" if assumed.tokens is not None else "the most there can be" * (kind != "reactivity")
    held_out = settings.validation.sequences * (1 if settings.data.validation else max(len(settings.data.mixture), 1))
    text = f"{why}, so every sample is taken to have {what}" + (f", {given}" if given else "")
    return Samples(name, settings, kind, objective_class.one_per_micro_batch, [drawn], steps, held_out, epochs, text)
