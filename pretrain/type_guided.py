"""Which RNA type does a model take a sequence for? Its answer at the masked type token after `[IND]`.

A model trained with type tokens (specs: rnaernie 2.5) is given `<cls>` nucleotides `[IND]` `<mask>` `<eos>`; the logits
at `<mask>`, restricted to the types, rank them. launch/rank_types.py asks so for any sequences, and validation does for
held-out ones whose type is known (pretrain/validation_types.py).

The answer means something only where training asked for types now and then (`objective.type_token.mask_prob`), which
the authors' code never did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data import layout, randomness
from data.alphabet import ALPHABETS
from models import MODELS
from pretrain import recipe
from pretrain.errors import PretrainError
from pretrain.initialise import locate, own_checkpoint, read_weights
from pretrain.objectives.intervals import Intervals, Sample
from pretrain.objectives.intervals_config import IntervalsConfig
from pretrain.products import device_at_hand

TOKENS = 16384  # of a micro-batch
ALPHABET = "rnaernie"  # of releases with types; ambiguity codes are <unk> in it


@dataclass
class Ranked:
    """``types``: names of RNA types; ``probabilities`` [sequences, types], which sum to 1 over the types."""

    types: list[str]
    probabilities: npt.NDArray[np.float64]

    def best(self, sequence: int, count: int) -> list[tuple[str, float]]:
        """(type, probability), the most probable first."""
        row = self.probabilities[sequence]
        return [(self.types[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:count]]


def rank_types(source: str, sequences: list[npt.NDArray[np.uint8]]) -> Ranked:
    """The types of ``sequences`` (ASCII letters) as the model at ``source`` ranks them.

    ``source``: what `init_from` reads. A sequence that is longer than the model reads is cut as in its training.
    Raises PretrainError if the model has no type tokens, or was never asked for one in training.
    """
    place = locate(source)
    name, config, state = read_weights(place)
    objective = Intervals.without_files(_settings(place, source, config))
    _, model_class = MODELS[name]
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(state, assign=True)
    device = device_at_hand(model)
    model = model.to(device).eval()
    types = objective.type_ids
    logits = torch.zeros(len(sequences), len(types))
    lengths = objective.token_lengths(np.array([len(letters) for letters in sequences], dtype=np.int64))
    keys = randomness.keys(randomness.key("rank types"), np.arange(len(sequences)))
    with torch.no_grad():
        for chosen in layout.plan_step(lengths, 1, max(TOKENS, config.max_tokens))[0]:
            batch = objective.ask_types([Sample(sequences[i]) for i in chosen], keys[chosen]).to(device)
            logits[chosen] = objective.logits(model, batch).cpu()[:, types]
    names = [objective.alphabet.tokens[i][1:-1] for i in types]
    return Ranked(names, torch.softmax(logits.double(), dim=-1).numpy())


def _settings(place: Path, source: str, config: Any) -> IntervalsConfig:
    """Of rows with types: as the run had them; a release does not tell, so all types and the whole position table."""
    own = own_checkpoint(place)
    if own is None:
        if config.vocab != len(ALPHABETS[ALPHABET]):
            raise PretrainError(
                f"{source} has {config.vocab} tokens and no RNA types among them; take a release that has them (full/ "
                "of RNAErnie's)"
            )
        return IntervalsConfig(alphabet=ALPHABET, max_tokens=config.max_tokens)
    settings = recipe.stage_recipes(recipe.read_resolved(own.recipe_path))[-1][1].objective
    if not isinstance(settings, IntervalsConfig) or not settings.type_token.append:
        raise PretrainError(f"{source} was trained without type tokens, so there is no type that it could name")
    if not settings.type_token.mask_prob:
        raise PretrainError(
            f"{source} was trained with objective.type_token.mask_prob=0: it was never asked for a type, so its answer "
            "would mean nothing"
        )
    return settings
