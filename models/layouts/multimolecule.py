"""What all MultiMolecule RNA releases share: the vocabularies, the tokenizer's configuration, the trained-row rule.

Facts from the RiNALMo specification, 2.2 and 8.2; no code of that library is used or needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError

SPECIALS = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>")
VOCABULARIES = {  # size -> tokens in the order of their ids; it grew from 26 to 28 in MultiMolecule 0.2.0
    26: (*SPECIALS, *"ACGUNRYSWKMBDHV.X*-I"),
    28: (*SPECIALS, *"ACGUNRYSWKMBDHVIX|.*-?"),
}
UNTRAINED_BIAS = -30.0  # decoder bias of a token that no training ever saw: its probability is zero


def vocabulary(size: int) -> tuple[str, ...]:
    """The tokens of MultiMolecule's vocabulary of ``size``; ModelError unless it is 26 or 28."""
    if size not in VOCABULARIES:
        raise ModelError(f"MultiMolecule has no RNA vocabulary of {size} tokens; choose 28, or 26 for before 0.2.0")
    return VOCABULARIES[size]


def read_vocabulary(directory: Path) -> list[str]:
    """The tokens of vocab.txt, in order. Raises ModelError if it is missing: rows cannot be told apart without it."""
    path = directory / "vocab.txt"
    if not path.is_file():
        raise ModelError(
            f"{path} does not exist; it says which row of the embedding is which letter (MultiMolecule has used"
            " several orders), so copy it from the release that the weights belong to"
        )
    return path.read_text(encoding="utf-8").split()


def row_of_token(tokens: tuple[str, ...], theirs: list[str], source: Path) -> list[int]:
    """For each of our ``tokens`` its row in ``theirs``; T and U are one letter. ModelError if a token is missing."""
    rows = {token: i for i, token in enumerate(theirs)}
    missing = [token for token in tokens if _spelled(token, rows) not in rows]
    if missing:
        raise ModelError(f"{source} lacks {', '.join(missing)}, so the weights cannot be read for this model's letters")
    return [rows[_spelled(token, rows)] for token in tokens]


def _spelled(token: str, rows: dict[str, int]) -> str:
    return "U" if token == "T" and "U" in rows else token


def spread_rows(ours: Tensor, rows: list[int], tokens: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """[V, d] in our order -> [V', d] in the order of ``tokens``, row i of ours becoming row ``rows[i]``.

    Tokens without a counterpart of ours get N(0, 0.02) from ``generator``, and X the mean of A, C, G and U.
    """
    spread = torch.randn(len(tokens), ours.shape[1], generator=generator) * 0.02
    spread[rows] = ours.float()
    letters = [tokens.index(letter) for letter in "ACGU"]
    spread[tokens.index("X")] = spread[letters].mean(0)
    return spread


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json of a single-nucleotide RNA tokenizer."""
    added = {
        str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        | {"special": True}
        for i, t in enumerate(SPECIALS)
    }
    return {
        "added_tokens_decoder": added,
        "backend": "custom",
        "bos_token": "<cls>",
        "cls_token": "<cls>",
        "codon": False,
        "eos_token": "<eos>",
        "extra_special_tokens": ["<null>"],
        "mask_token": "<mask>",
        "nmers": 1,
        "pad_token": "<pad>",
        "replace_T_with_U": True,
        "sep_token": "<eos>",
        "tokenizer_class": "RnaTokenizer",
        "unk_token": "<unk>",
    }
