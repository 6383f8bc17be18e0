"""Rows of RNA-MSM's tied matrix that no training ever used, and what a release fills them with (spec 7.4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.layouts.multimolecule import vocabulary
from models.rnamsm import NEVER, PAD

TOKENS = vocabulary(28)  # the model's ids are MultiMolecule's (spec 2)
# What a token stands for that no training ever showed (spec 7.4); every other one stands for X.
MEANINGS = {"R": "AG", "Y": "CU", "S": "CG", "W": "AU", "K": "GU", "M": "AC", "B": "CGU", "D": "AGU", "H": "ACU"}
MEANINGS |= {"V": "ACG", ".": "-"}


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` as it is published: rows that were never trained can be fed, and are never predicted (spec 7.4).

    Such a row is all zero (models/rnamsm.py); it becomes the mean of the letters it stands for, and its bias -30. The
    padding's row stays zero, and nothing else changes: so it is idempotent, and weights of the authors, which have no
    zero rows, are published as they are.
    """
    embed, bias = state["embed.weight"].clone(), state["head.out.bias"].clone()
    for token in never_trained(state):
        i, letters = TOKENS.index(token), [TOKENS.index(letter) for letter in MEANINGS.get(token, "X")]
        embed[i] = state["embed.weight"][letters].float().mean(0).to(embed.dtype)
        bias[i] = NEVER
    return state | {"embed.weight": embed, "head.out.bias": bias}


def never_trained(state: dict[str, Tensor]) -> list[str]:
    """The tokens whose rows `released` fills, in the order of their ids."""
    empty = (~state["embed.weight"].any(dim=1)).nonzero().flatten().tolist()
    return [TOKENS[i] for i in empty if i != PAD]


def filled_rows(state: dict[str, Tensor], theirs: Sequence[str], where: str = "") -> str:
    """Markdown for the model card: which rows of a release with the tokens ``theirs`` were filled, and by what."""
    by_meaning: dict[str, list[str]] = {}
    for token in never_trained(state):
        if token in theirs:
            by_meaning.setdefault(MEANINGS.get(token, "X"), []).append(token)
    if not by_meaning:
        return ""
    ordered = sorted(by_meaning.items(), key=lambda item: len(item[0]))  # copies of one row before means of several
    told = [
        f"`{' '.join(tokens)}` " + (f"as `{meaning}`" if len(meaning) == 1 else f"the mean of `{' '.join(meaning)}`")
        for meaning, tokens in ordered
    ]
    return (
        f"- {where}Rows of tokens that training never showed are filled: {', '.join(told)}. Their output bias is"
        f" {NEVER:g}, so that they are never predicted.\n"
    )
