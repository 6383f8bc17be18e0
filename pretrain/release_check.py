"""Whether a model that was read back from a release gives the outputs of the trained one, on real samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data import randomness
from data.errors import DataError
from data.formats.fasta import read_fasta
from data.normalise import KEPT, LetterPolicy, Normaliser
from data.tokenizer import made_of
from models import MODELS
from models.layouts.detect import LAYOUTS
from pretrain import recipe
from pretrain.config import Recipe
from pretrain.objectives import for_release
from pretrain.opening import places_of

SAMPLES = 16


def objective_of(settings: Recipe) -> Any:
    return for_release(settings.objective)


def samples_of(settings: Recipe, fasta: Path | None) -> list[Any]:
    """What outputs are compared on: a FASTA, or the held-out (else the training) split of the run's corpus.

    Sequences come without RNA types, which some layouts leave out. Raises DataError where there are none.
    """
    objective = objective_of(settings)
    if fasta is not None:
        plain: list[Any] = objective.plain(_sequences(fasta))
        return plain
    try:
        corpus = _any_split(settings, objective.kind)
        ids = np.arange(min(SAMPLES, corpus.count))
        if objective.kind == "sequences":
            found: list[Any] = objective.plain([letters.copy() for letters in corpus.letters(ids)])
        else:
            found = objective.read(corpus, ids)
        return found
    except DataError as error:
        raise DataError(
            f"outputs cannot be checked on the run's corpus ({error}); give sequences with --sequences FASTA"
        ) from error


def _sequences(fasta: Path) -> list[npt.NDArray[np.uint8]]:
    normalise, found = Normaliser(LetterPolicy()), []
    for records in read_fasta(fasta):
        normalised = normalise(records.bodies, str(fasta))
        kept = zip(normalised.sequences, normalised.verdict.tolist(), strict=True)
        found += [np.frombuffer(text, dtype=np.uint8) for text, verdict in kept if verdict == KEPT]
        if len(found) >= SAMPLES:
            break
    if not found:
        raise DataError(f"{fasta} holds no sequence that a model can read; give other --sequences")
    return found[:SAMPLES]


def _any_split(settings: Recipe, kind: str) -> Any:
    place = places_of(settings.data)[0]
    try:
        return place.open("validation", kind)
    except DataError:
        return place.open("train", kind)


def model_of(name: str, config: Any, state: dict[str, Tensor]) -> nn.Module:
    """The model with these weights, ready to compute outputs."""
    _, model_class = MODELS[name]
    with torch.device("meta"):
        model: nn.Module = model_class(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


@torch.no_grad()
def outputs_of(model: nn.Module, settings: Recipe, samples: list[Any], padded: bool = True) -> list[Tensor]:
    """[..., V or channels] per micro-batch, as in training: masks, crops, special tokens and padding take part.

    Without ``padded`` every sample is a micro-batch of its own.
    """
    objective = objective_of(settings)
    keys = randomness.keys(randomness.key("release"), np.arange(len(samples)))
    alone = objective.one_per_micro_batch or not padded
    parts = [slice(i, i + 1) for i in range(len(samples))] if alone else [slice(None)]
    return [objective.logits(model, objective.collate(samples[part], keys[part])) for part in parts]


def compared_columns(
    settings: Recipe, ours: Any, theirs: Any, channels: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """Output columns to compare, in the trained model and in the one read back: tokens that training has seen.

    A layout may leave out tokens (RNAErnie's types) and must fill rows that were never trained with something. Outputs
    that are channels are compared by name; ``channels`` of the model read back.
    """
    objective = objective_of(settings)
    if objective.kind == "reactivity":
        wanted = settings.objective.channels
        return list(range(len(wanted))), [list(channels or ()).index(name) for name in wanted]
    if getattr(settings.objective, "tokenizer", None) is not None:
        return list(range(ours.vocab)), list(range(ours.vocab))
    alphabet = objective.alphabet
    seen = {*itertools.compress(alphabet.tokens, made_of(alphabet)), alphabet.unk, alphabet.mask}
    seen |= {alphabet.tokens[i] for i in getattr(objective, "type_ids", ())}
    tokens = LAYOUTS[recipe.model_name(settings)].tokens
    place = {token: i for i, token in enumerate(tokens(theirs))}
    pairs = [(i, place[token]) for i, token in enumerate(tokens(ours)) if token in seen and token in place]
    return [i for i, _ in pairs], [i for _, i in pairs]


def trained_letters(settings: Recipe) -> str:
    """The letters that training gave rows of their own."""
    alphabet = objective_of(settings).alphabet
    return "".join(itertools.compress(alphabet.tokens, made_of(alphabet)))
