"""RNAErnie's three vocabularies, row by row: ours with types, MultiMolecule's, and the original's 39 tokens.

Source: RNAErnie specification 2 and 7.4. Both of ours start with MultiMolecule's 28 tokens; the longer one goes on with
[IND] and the 28 RNA types. Works on the two tensors that have a row per token; knows no names of layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from models.errors import ModelError
from models.layouts.multimolecule import vocabulary
from models.rnaernie import INIT_STD, RNAErnieConfig

TYPES = (  # ids 29 to 56; 7 to 34 of the original
    *("RNaseMRPRNA", "RNasePRNA", "SRPRNA", "YRNA", "antisenseRNA", "autocatalyticallysplicedintron", "guideRNA"),
    *("hammerheadribozyme", "lncRNA", "miRNA", "miscRNA", "ncRNA", "other", "piRNA", "premiRNA", "precursorRNA"),
    *("rRNA", "ribozyme", "sRNA", "scRNA", "scaRNA", "siRNA", "snRNA", "snoRNA", "tRNA", "telomeraseRNA", "tmRNA"),
    "vaultRNA",
)
STRIPPED = vocabulary(28)
ADDED = ("[IND]", *(f"[{name}]" for name in TYPES))
FULL = (*STRIPPED, *ADDED)
TOKENS = {len(STRIPPED): STRIPPED, len(FULL): FULL}
ORIGINAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEL]", "[IND]", *TYPES, *"ATCG")
TRAINED = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", *"ACGU")  # by training that reads no other letters
MEANINGS = {"N": "ACGU", "R": "AG", "Y": "CU", "S": "CG", "W": "AU", "K": "GU", "M": "AC", "X": "ACGU"}
MEANINGS |= {"B": "CGU", "D": "AGU", "H": "ACU", "V": "ACG"}
BY_TOKEN = ("embed.weight", "head.out.bias")  # our tensors with a row per token

_SPELLED = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<cls>", "[SEP]": "<eos>", "[MASK]": "<mask>", "T": "U"}
_SPELLED |= {name: f"[{name}]" for name in TYPES} | {"[DEL]": "<null>"}


def tokens(config: RNAErnieConfig) -> tuple[str, ...]:
    """The tokens in the order of the ids; ModelError unless there are 28 or 57."""
    if config.vocab not in TOKENS:
        raise ModelError(
            f"an RNAErnie of {config.vocab} tokens has no layout of others; choose model.vocab 28 (letters only) or 57"
            " (with [IND] and the RNA types)"
        )
    return TOKENS[config.vocab]


def never_trained(config: RNAErnieConfig, letters: Iterable[str] = "ACGU") -> tuple[str, ...]:
    """Tokens of MultiMolecule's alphabet that no row held when training read ``letters`` and all others as <unk>."""
    known = {*TRAINED, *letters}
    return tuple(token for token in tokens(config)[: len(STRIPPED)] if token not in known)


def fill(state: dict[str, Tensor], config: RNAErnieConfig, untrained: Iterable[str]) -> dict[str, Tensor]:
    """``state`` with the rows of the tokens ``untrained`` replaced by copies of <unk>'s, embedding and bias.

    Training reads such letters as <unk>, so a reader of the release gets the same outputs for them (spec 7.4).
    """
    known = tokens(config)
    rows = torch.tensor([known.index(token) for token in untrained], dtype=torch.long)
    filled = dict(state)
    for name in BY_TOKEN:
        filled[name] = state[name].clone()
        filled[name][rows] = state[name][known.index("<unk>")]
    return filled


def with_vocabulary(state: dict[str, Tensor], config: RNAErnieConfig, wanted: Iterable[str]) -> dict[str, Tensor]:
    """``state`` with rows in the order of the tokens ``wanted``; those that the model lacks are copies of <unk>'s."""
    row = {token: i for i, token in enumerate(tokens(config))}
    return state | {name: state[name][[row.get(token, row["<unk>"]) for token in wanted]] for name in BY_TOKEN}


def from_original_rows(theirs: Tensor) -> Tensor:
    """[39, ...] in the original's order -> [57, ...] in ours, by the rule of MultiMolecule's converter (spec 7.4).

    <null> is the last of the ids 5 to 34, vaultRNA; ambiguity codes are the mean of their bases; the symbols that the
    converter draws at random are <unk>, as which the original reads them. The unused [DEL] is dropped.
    """
    row = {_SPELLED.get(token, token): theirs[i] for i, token in enumerate(ORIGINAL)}
    row["<null>"] = row["[vaultRNA]"]
    row |= {code: torch.stack([row[letter] for letter in letters]).mean(0) for code, letters in MEANINGS.items()}
    return torch.stack([row.get(token, row["<unk>"]) for token in FULL])


def to_original_rows(ours: Tensor) -> Tensor:
    """[57, ...] or [28, ...] in our order -> [39, ...]; [DEL], and without types the ids 5 to 34, are <null>'s row."""
    row = {token: ours[i] for i, token in enumerate(TOKENS[ours.shape[0]])}
    return torch.stack([row.get(_SPELLED.get(token, token), row["<null>"]) for token in ORIGINAL])


def grow_vocabulary(
    state: dict[str, Tensor], config: RNAErnieConfig, generator: torch.Generator | None = None
) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """28 tokens -> 57: (configuration, state) with initial rows for [IND] and the types: N(0, 0.02), biases 0.

    ModelError if the model has another vocabulary than the 28 tokens.
    """
    if config.vocab != len(STRIPPED):
        raise ModelError(f"types can be added to a model of {len(STRIPPED)} tokens; this one has {config.vocab}")
    embed, bias = (state[name] for name in BY_TOKEN)
    rows = torch.empty(len(ADDED), config.width).normal_(0, INIT_STD, generator=generator).to(embed)
    grown = state | {"embed.weight": torch.cat([embed, rows]), "head.out.bias": torch.cat([bias, bias.new_zeros(29)])}
    return dataclasses.replace(config, vocab=len(FULL)), grown


def drop_pooler(state: dict[str, Tensor], config: RNAErnieConfig) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """The same model without its pooler, which masked-token training would leave as it is."""
    kept = {name: x for name, x in state.items() if not name.startswith("pooler.")}
    return dataclasses.replace(config, pooler=False), kept


def with_pooler(
    state: dict[str, Tensor], config: RNAErnieConfig, seed: int = 0
) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """The same model with a pooler: its own, or one at initial values, N(0, 0.02) from ``seed`` and biases 0."""
    if config.pooler:
        return config, state
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(config.width, config.width).normal_(0, INIT_STD, generator=generator)
    grown = state | {"pooler.weight": weight, "pooler.bias": torch.zeros(config.width)}
    return dataclasses.replace(config, pooler=True), grown
