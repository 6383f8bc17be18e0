"""Trained models put to use on a corpus, in one process: validation figures, and predictions as profiles to train on.

    checkpoint -> its recipe -> model and objective -> the validation of that objective on any corpus of its kind
    checkpoints -> mean of their predictions -> a corpus of pseudo-labels (data/pseudo_labels.py)

Weights are in fp32; the forward pass is in bf16 where training computed in it. Memory is that of the models and of one
block of at most 1,024 sequences; batches hold sequences of similar lengths up to the recipe's cost, and a sequence that
costs more is a batch of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data import layout
from data.corpus import silent
from data.errors import DataError
from data.loader import Moment
from data.manifest import file_sha256
from data.pseudo_labels import Letters, write_pseudo_labels
from data.reactivity_filter import SampleFilter
from data.scan import Progress
from models import MODELS
from pretrain import recipe, run_tokenizer
from pretrain.config import Recipe
from pretrain.distributed import OtherRankFailed, World, rank_of_environment
from pretrain.engine import Engine
from pretrain.errors import PretrainError
from pretrain.initialise import load_initial, own_checkpoint
from pretrain.objectives import for_release
from pretrain.objectives.reactivity import Reactivity, cost
from pretrain.opening import VALIDATIONS, Place
from pretrain.products import device_at_hand

WEIGHTS = ("*.safetensors", "*.pt", "*.bin", "*.pdparams")


@dataclass
class Trained:
    """A model as it came out of a run, ready to predict."""

    name: str  # run and step, or the name of released weights
    sha256: str  # of the checkpoint
    settings: Recipe  # of its last stage
    objective: Any
    module: nn.Module  # on its device, in evaluation mode

    @property
    def identity(self) -> str:
        return f"{self.name} ({self.sha256[:12]})"


@dataclass(frozen=True)
class Evaluated:
    """The figures of one model, beside those of trivial ones on the same targets where there is a training split."""

    model: Trained
    report: dict[str, Any]
    references: dict[str, Any]


class _InPrecision(nn.Module):
    """A model whose forward pass is that of training; stands for the engine that a validation expects."""

    def __init__(self, model: nn.Module, device: torch.device, bf16: bool) -> None:
        super().__init__()
        self.model, self.device, self.bf16 = model, device, bf16

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(*inputs, **named)

    @property
    def deepspeed(self) -> nn.Module:
        return self

    @property
    def module(self) -> nn.Module:
        return self


def require_one_process() -> None:
    """Raises PretrainError under a launcher that started several."""
    ranks = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))
    if ranks > 1:
        text = f"evaluation is one process, but {ranks} were started; start it with plain python"
        raise OtherRankFailed(text) if rank_of_environment() else PretrainError(text)


def open_trained(path: Path, config: str | None = None) -> Trained:
    """The model of a run directory (its newest checkpoint), of one checkpoint, or of released weights.

    Released weights are read with the recipe beside them, or with ``config`` (a path, or a name in configs/). Raises
    DataError, ModelError or PretrainError.
    """
    own = own_checkpoint(path)
    if own is not None:
        own.verify()
        whole = recipe.read_resolved(own.recipe_path)
        run = own.path.parent.parent if own.path.parent.name == "checkpoints" else None
        name, sha256 = f"{whole.run.name} step {own.progress.step}", own.sha256
    else:
        whole, run, name, sha256 = _recipe_of_release(path, config), None, path.name, _hash(path)
    _, settings = recipe.stage_recipes(whole)[-1]
    settings = dataclasses.replace(settings, model=recipe.on_any_machine(settings.model))
    settings = run_tokenizer.with_kept_tokenizer(settings, run)
    model = MODELS[recipe.model_name(settings)][1](settings.model)
    if own is not None:
        model.load_state_dict(own.weights())
    else:
        load_initial(model, dataclasses.replace(settings, init_from=str(path)))
    device = device_at_hand(model)
    module = _InPrecision(model, device, bf16=settings.compute.precision != "fp32").to(device).eval()
    objective = for_release(settings.objective)
    if hasattr(objective, "require"):
        objective.require(settings)
    return Trained(name, sha256, settings, objective, module)


def _recipe_of_release(path: Path, config: str | None) -> Recipe:
    if not path.exists():
        raise PretrainError(f"{path} does not exist; give a run directory, a checkpoint or released weights")
    beside = (path if path.is_dir() else path.parent) / "recipe.yaml"
    if config is not None:
        return recipe.load(config)
    if not beside.is_file():
        raise PretrainError(f"{path} is no run and has no recipe.yaml beside it; name its recipe with --config")
    return recipe.read_resolved(beside)


def _hash(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def evaluate(
    paths: Sequence[Path], corpus: Path, config: str | None = None, sequences: int | None = None
) -> Iterator[Evaluated]:
    """The validation of every model on the held-out split of ``corpus``, one after the other.

    ``sequences`` of the split (all unless given) with the same masks as in training. Raises DataError or PretrainError
    where the corpus is of another kind or does not fit the model.
    """
    require_one_process()
    for path in paths:
        trained = open_trained(path, config)
        objective, limit = trained.objective, trained.settings.batch.tokens_per_micro_batch
        place = Place(corpus.name, 1.0, corpus, None)
        held_out = place.open("validation", objective.kind)
        if sequences is None:
            sequences = held_out.count
        if not hasattr(objective.config, "max_tokens"):
            longest = int(objective.costs(held_out, np.arange(min(sequences, held_out.count))).max())
            limit = max(limit, longest)  # no gradient is kept, so one sequence always has room
        validation = VALIDATIONS[objective.kind](held_out, objective, sequences, limit)
        training = _training_split(place, objective.kind)
        if training is not None:
            validation.learn_from(training)
        world = World(0, 1, 0, 1, next(trained.module.parameters()).device)
        report = validation.run(cast(Engine, trained.module), world, world.meet)
        assert report is not None
        yield Evaluated(trained, report, validation.references(training) if training is not None else {})


def _training_split(place: Place, kind: str) -> Any:
    try:
        return place.open("train", kind)
    except DataError:
        return None


def write_predictions(
    paths: Sequence[Path],
    corpus: Path,
    to: Path,
    *,
    config: str | None = None,
    weights: Sequence[float] | None = None,
    chosen: SampleFilter | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes the corpus ``to`` of pseudo-labels: the mean prediction of the models for every sequence of ``corpus``.

    ``corpus``: sequences or profiles, of which ``chosen`` takes some; its own channels and values do not matter.
    ``weights`` of the models, equal unless given. Where a model was trained on both directions, its prediction is the
    mean of both. Returns the manifest, which names checkpoints, hashes and data. A run that was killed starts again.
    Raises DataError, ModelError or PretrainError; then nothing is left behind.
    """
    require_one_process()
    models = [open_trained(path, config) for path in paths]
    for model in models:
        if not isinstance(model.objective, Reactivity):
            raise PretrainError(
                f"{model.name} was trained with the objective {model.settings.objective.name}, which predicts no "
                "profiles; give models that were trained on reactivity"
            )
    channels = models[0].objective.config.channels
    for model in models[1:]:
        if model.objective.config.channels != channels:
            raise PretrainError(
                f"{model.name} predicts {', '.join(model.objective.config.channels)}, but {models[0].name} predicts "
                f"{', '.join(channels)}; only models of the same channels, in the same order, can be averaged"
            )
    named = {model.identity: _predictor(model) for model in models}
    if len(named) < len(models):
        raise PretrainError("one checkpoint is given twice; to let it count more, use weights")
    provenance = {
        "checkpoints": [
            {
                "name": model.name,
                "sha256": model.sha256,
                "both_directions": bool(model.objective.config.flip),
                "precision": "bf16" if model.settings.compute.precision != "fp32" else "fp32",
            }
            for model in models
        ]
    }
    return write_pseudo_labels(corpus, to, channels, named, provenance, weights, chosen, overwrite, progress)


def _predictor(model: Trained) -> Callable[[Letters], list[npt.NDArray[np.float32]]]:
    """Letters -> predictions [L, channels] of each, in batches of similar lengths."""
    objective, limit = model.objective, model.settings.batch.tokens_per_micro_batch
    device = next(model.module.parameters()).device

    @torch.no_grad()
    def predict(letters: Letters) -> list[npt.NDArray[np.float32]]:
        found: list[Any] = [None] * len(letters)
        samples = objective.plain(letters)
        costs = np.minimum(cost(np.array([len(sequence) for sequence in letters])), limit)
        for chosen in layout.plan_step(costs, 1, limit, padded=True)[0]:
            keys = np.zeros(len(chosen), dtype=np.uint64)  # nothing is drawn
            batch = objective.collate([samples[i] for i in chosen], keys, Moment.last()).to(device)
            predicted = objective.predict(model.module, batch).cpu().numpy()
            for row, i in enumerate(chosen.tolist()):
                found[i] = predicted[row, : len(letters[i])]
        return found

    return predict
