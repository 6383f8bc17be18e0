"""What a run trains on, opened: corpora (staged where asked), their order, the objective and the held-out sequences."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.alignments import AlignmentCorpus
from data.errors import DataError
from data.index import Corpus
from data.loader import StepPlanner
from data.manifest import read_manifest
from data.mixture import Mixture
from data.reactivity import ReactivityCorpus
from data.staging import Staged, stage
from data.structures import StructureTable, WithStructures
from data.urls import shown
from pretrain.config import DataConfig, MixtureSource, Recipe
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.objectives import OBJECTIVES
from pretrain.validation import HeldOut, Validation
from pretrain.validation_alignments import AlignmentValidation
from pretrain.validation_profiles import ProfileValidation

CORPORA: dict[str, Any] = {"sequences": Corpus, "alignments": AlignmentCorpus, "reactivity": ReactivityCorpus}
VALIDATIONS: dict[str, type[HeldOut]] = {
    "sequences": Validation,
    "alignments": AlignmentValidation,
    "reactivity": ProfileValidation,
}


@dataclass
class Place:
    """One corpus of a run: its name in metrics, and where its files are or will be."""

    name: str
    weight: float
    location: Path
    staged: Staged | None

    def open(self, split: str, kind: str = "sequences") -> Any:
        """The corpus, of that kind. Raises DataError if it is of another one."""
        found = read_manifest(self.location).get("kind", "sequences")
        if found != kind:
            raise DataError(f"{self.location}: is a corpus of {found}, but this objective trains on {kind}.")
        return CORPORA[kind].open(self.location, split, shards=self.staged.locate if self.staged else None)


@dataclass
class Opened:
    """Everything about the data of a run, on this rank."""

    places: list[Place]
    mixture: Mixture
    objective: Any
    planner: StepPlanner
    validations: dict[str, HeldOut] = field(default_factory=dict)  # by corpus name

    @property
    def mixed(self) -> bool:
        return len(self.places) > 1

    @property
    def fingerprint(self) -> str:
        """What it trains on: the data of the mixture, and what an objective brings of its own, such as motifs."""
        own: str = self.objective.data_fingerprint
        if not own:
            return self.mixture.fingerprint
        return hashlib.sha256(f"{self.mixture.fingerprint} {own}".encode()).hexdigest()

    @property
    def steps(self) -> int:
        """Of the budget."""
        return self.planner.steps

    def steps_in(self, epochs: float) -> int:
        """Whole steps that cover so many passes over the first corpus."""
        return math.ceil(epochs * self.mixture.orders[0].samples_per_epoch / self.mixture.global_batch)

    def follow(self, first: int) -> None:
        """Let staging bring the shards that the steps from ``first`` on need, in their order."""
        for number, place in enumerate(self.places):
            if place.staged is not None:
                place.staged.follow(_Ahead(self, number), first, self.planner.first + self.planner.steps)

    def reached(self, step: int) -> None:
        for place in self.places:
            if place.staged is not None:
                place.staged.reached(step)


class _Ahead:
    """step -> the samples of one corpus, with an order of its own: an order caches, and staging asks from a thread."""

    def __init__(self, opened: Opened, number: int):
        mixture = opened.mixture
        corpora = dict(zip(mixture.names, mixture.corpora, strict=True))
        self.order = Mixture(corpora, mixture.weights, mixture.seed, mixture.global_batch).orders[number]
        self.first = opened.planner.first
        view = mixture.corpora[number]
        self.ids = getattr(view, "corpus_ids", None)  # a view numbers its samples anew; staging knows the corpus's

    def __call__(self, step: int) -> npt.NDArray[np.int64]:
        ids = self.order.step(step - self.first)[1]
        found: npt.NDArray[np.int64] = ids if self.ids is None else self.ids(ids)
        return found


Stagings = dict[tuple[str, str | None], Staged | None]  # (corpus, cache) -> how it is staged, for several stages


def places_of(data: DataConfig, known: Stagings | None = None) -> list[Place]:
    """Where each corpus of the recipe lies; stages it first where `data.cache` or a url asks for that.

    What ``known`` holds already is not staged again.
    """
    places, known = [], {} if known is None else known
    for source in sources_of(data):
        key = (source.corpus, data.cache)
        if key not in known:
            known[key] = stage(source.corpus, data.cache, data.cache_gigabytes, data.allow_pipe)
        staged = known[key]
        location = staged.path if staged else Path(source.corpus)
        name = source.name or Path(shown(source.corpus).rstrip("/")).name
        places.append(Place(name, source.weight, location, staged))
    names = [place.name for place in places]
    for name in names:
        if names.count(name) > 1:
            raise PretrainError(f"two corpora of data.mixture are called {name}; give each a `name` of its own")
    return places


def sources_of(data: DataConfig) -> list[MixtureSource]:
    """The corpora of a recipe; a single one is a mixture of one."""
    return data.mixture or [MixtureSource(corpus=str(data.corpus))]


def open_data(
    settings: Recipe, world: World, seed: int | None = None, first: int = 0, known: Stagings | None = None
) -> Opened:
    """The data of a run, or of a stage of it whose order has ``seed`` and begins at step ``first``.

    Raises DataError or PretrainError when a corpus is not intact, or cannot serve this recipe on so many ranks.
    """
    places, n = places_of(settings.data, known), settings.batch.sequences
    _, objective_class = OBJECTIVES[settings.objective.name]
    objective = objective_class(settings.objective)
    if hasattr(objective, "require"):
        objective.require(settings)
    if len(objective.alphabet) != settings.model.vocab:
        named = "tokenizer" if getattr(settings.objective, "tokenizer", None) else "alphabet"
        given = getattr(settings.objective, named, objective.alphabet.name)
        raise PretrainError(
            f"objective.{named}={given} has {len(objective.alphabet)} tokens, but "
            f"model.vocab is {settings.model.vocab}; they must agree"
        )
    if world.ranks > n:
        raise PretrainError(
            f"{world.ranks} ranks cannot share batch.sequences={n}: some would have nothing to do; start at most "
            f"{n} ranks or raise batch.sequences"
        )
    weights = [place.weight for place in places]
    seed = settings.run.seed if seed is None else seed
    structures = None if settings.data.structures is None else StructureTable.read(Path(settings.data.structures))
    training = {place.name: _training(place, objective) for place in places}
    if hasattr(objective, "require_targets"):
        objective.require_targets(list(training.values()))
    mixture = Mixture(training, weights, seed, n, structures)
    budget, limit = settings.budget, settings.batch.tokens_per_micro_batch
    for corpus in training.values():
        _require_room(objective, corpus, np.arange(corpus.count), limit)
    if budget.epochs is not None and len(places) > 1:
        raise PretrainError("every corpus of a mixture has its own epochs: give budget.steps instead of budget.epochs")
    planner = StepPlanner(mixture, mixture, objective, limit, world.rank, world.ranks, first)
    opened = Opened(places, mixture, objective, planner)
    planner.steps = budget.steps or opened.steps_in(budget.epochs or 0.0)
    if settings.validation.sequences > 0:
        opened.validations = _validations(settings, objective, places, mixture, structures, known)
    return opened


def _validations(
    settings: Recipe,
    objective: Any,
    places: list[Place],
    mixture: Mixture,
    structures: StructureTable | None,
    known: Stagings | None,
) -> dict[str, HeldOut]:
    """By corpus: of each corpus its own held-out split, or of `data.validation` alone."""
    data = settings.data
    if data.validation is not None:
        places = places_of(dataclasses.replace(data, corpus=data.validation, mixture=[]), known)
    found = {}
    for place, training in zip(places, mixture.corpora, strict=False):
        corpus = _held_out(place, objective.kind, structures)
        limits = settings.validation.sequences, settings.batch.tokens_per_micro_batch
        found[place.name] = VALIDATIONS[objective.kind](corpus, objective, *limits)
        _require_room(objective, corpus, found[place.name].ids, limits[1])
        found[place.name].learn_from(training)
    return found


def _require_room(objective: Any, corpus: Any, ids: npt.NDArray[np.int64], limit: int) -> None:
    """Raises PretrainError if one of the samples alone is more than a micro-batch may cost.

    Objectives with `max_tokens` cut what is longer; recipe.check compares that with the limit.
    """
    if hasattr(objective.config, "max_tokens"):
        return
    longest = ids[[int(np.argmax(corpus.lengths[ids]))]]
    cost = int(objective.costs(corpus, longest)[0])
    if cost > limit:
        raise PretrainError(
            f"{corpus.path}: a sequence of {int(corpus.lengths[longest][0])} nucleotides costs {cost}, but "
            f"batch.tokens_per_micro_batch is {limit}; raise it to at least {cost}, or leave long sequences out "
            + ("with objective.samples.max_length" if corpus.split == "train" else "when the corpus is prepared")
        )


def _training(place: Place, objective: Any) -> Any:
    """The training split, or what the objective takes of it."""
    corpus = place.open("train", objective.kind)
    return objective.training(corpus) if hasattr(objective, "training") else corpus


def _held_out(place: Place, kind: str, structures: StructureTable | None) -> Any:
    try:
        corpus = place.open("validation", kind)
    except DataError as error:
        raise DataError(f"{error} (To train without validation, set validation.sequences=0.)") from error
    return corpus if structures is None else WithStructures(corpus, structures)
