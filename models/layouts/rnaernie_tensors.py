"""RNAErnie's names in three layouts, as one table: ours, the authors' Paddle files, MultiMolecule's directories.

Source: RNAErnie specification 7 and 8. `to_*` take the state of an `RNAErnie` module, `from_*` return a configuration
and a state in fp32 with all values unchanged. Paddle stores the weights of linear layers transposed. Nothing here
trains or runs a model, or writes a file: that is `rnaernie.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layouts.multimolecule import read_vocabulary, vocabulary
from models.layouts.reading import read_directory
from models.layouts.rnaernie_config import read_config, write_config
from models.layouts.rnaernie_rows import (
    ADDED,
    BY_TOKEN,
    FULL,
    ORIGINAL,
    STRIPPED,
    fill,
    from_original_rows,
    to_original_rows,
    tokens,
    with_pooler,
    with_vocabulary,
)
from models.rnaernie import RNAErnie, RNAErnieConfig

HEADS = 12  # of the published size; the authors' file does not record it
PREFIXES = ("model.", "rnaernie.", "")  # of encoder names in MultiMolecule: 0.2.2, early releases, a bare encoder
TIED = "cls.predictions.decoder_weight"  # the word embedding once more, as Paddle stores it
POOLER = "ernie.pooler.dense."


@dataclass(frozen=True)
class Row:
    """One tensor: its name in each layout. Several names in one place are joined along dimension 0."""

    ours: str
    original: tuple[str, ...]
    multimolecule: tuple[str, ...]  # names in front of "lm_head." carry one of PREFIXES
    transposed: bool = False  # in the original: the weight of a linear layer


def _one(ours: str, original: str, multimolecule: str) -> Row:
    return Row(ours, (original,), (multimolecule,))


def _norm(ours: str, original: str, multimolecule: str) -> tuple[Row, ...]:
    return tuple(_one(f"{ours}.{x}", f"{original}.{x}", f"{multimolecule}.{x}") for x in ("weight", "bias"))


def _linear(ours: str, original: str, multimolecule: str) -> tuple[Row, ...]:
    weight, bias = _norm(ours, original, multimolecule)
    return dataclasses.replace(weight, transposed=True), bias


_LAYER, _THEIR_LAYER = "ernie.encoder.layers.{i}.", "encoder.layer.{i}."
_WORDS = "ernie.embeddings.word_embeddings.weight"
_QUERY = "ernie.encoder.layers.0.self_attn.q_proj.weight"
BLOCK_ROWS = (
    *(
        Row(
            f"blocks.{{i}}.attn.qkv.{x}",
            tuple(f"{_LAYER}self_attn.{c}_proj.{x}" for c in "qkv"),
            tuple(f"{_THEIR_LAYER}attention.self.{c}.{x}" for c in ("query", "key", "value")),
            transposed=x == "weight",
        )
        for x in ("weight", "bias")
    ),
    *_linear("blocks.{i}.attn.out", _LAYER + "self_attn.out_proj", _THEIR_LAYER + "attention.output.dense"),
    *_norm("blocks.{i}.attn_norm", _LAYER + "norm1", _THEIR_LAYER + "attention.output.layer_norm"),
    *_linear("blocks.{i}.ffn.up", _LAYER + "linear1", _THEIR_LAYER + "intermediate.dense"),
    *_linear("blocks.{i}.ffn.down", _LAYER + "linear2", _THEIR_LAYER + "output.dense"),
    *_norm("blocks.{i}.ffn_norm", _LAYER + "norm2", _THEIR_LAYER + "output.layer_norm"),
)
OUTER_ROWS = (
    *(
        _one(f"{ours}.weight", f"ernie.embeddings.{theirs}_embeddings.weight", f"embeddings.{theirs}_embeddings.weight")
        for ours, theirs in (("embed", "word"), ("positions", "position"), ("token_type", "token_type"))
    ),
    *_norm("embed_norm", "ernie.embeddings.layer_norm", "embeddings.layer_norm"),
    *_linear("head.dense", "cls.predictions.transform", "lm_head.transform.dense"),
    *_norm("head.norm", "cls.predictions.layer_norm", "lm_head.transform.layer_norm"),
    # Read lm_head.bias, never its copy lm_head.decoder.bias.
    _one("head.out.bias", "cls.predictions.decoder_bias", "lm_head.bias"),
)
POOLER_ROWS = _linear("pooler", "ernie.pooler.dense", "pooler.dense")


def rows(config: RNAErnieConfig) -> list[Row]:
    """The whole table of a model; the decoder is the word embedding and has no row."""

    def at(row: Row, i: int) -> Row:
        original, theirs = (tuple(n.format(i=i) for n in names) for names in (row.original, row.multimolecule))
        return Row(row.ours.format(i=i), original, theirs, row.transposed)

    blocks = [at(row, i) for i in range(config.layers) for row in BLOCK_ROWS]
    return [*OUTER_ROWS, *blocks, *(POOLER_ROWS if config.pooler else ())]


def to_original(state: dict[str, Tensor], config: RNAErnieConfig) -> dict[str, Tensor]:
    """The authors' names and shapes (39 tokens, linear weights (in, out)), with the tied decoder; values unchanged.

    A model without types gives the ids 5 to 34 the row of <null>, to which MultiMolecule maps them (spec 7.4); a model
    without pooler gets one at initial values. Raises ModelError if the vocabulary is neither 28 nor 57 tokens.
    """
    tokens(config)
    config, state = with_pooler(state, config)
    tensors: dict[str, Tensor] = {}
    for row in rows(config):
        x = state[row.ours]
        x = to_original_rows(x) if row.ours in BY_TOKEN else x
        for name, part in zip(row.original, x.chunk(len(row.original)), strict=True):
            tensors[name] = (part.T if row.transposed else part).clone(memory_format=torch.contiguous_format)
    return tensors | {TIED: tensors[_WORDS]}


def recognises_original(names: set[str]) -> bool:
    """Whether the names are those of an RNAErnie file of the authors."""
    return {_WORDS, _QUERY} <= names


def from_original(
    state: dict[str, Tensor], heads: int = HEADS, source: str = "the checkpoint"
) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """The authors' tensors -> (configuration of 57 tokens, our state); ``source`` names the file in errors.

    Rows follow `from_original_rows`. The state has a pooler if the file has. Sizes come from the shapes; ``heads``
    cannot. Raises ModelError if a tensor is missing, unknown or of another shape, the vocabulary is not the original's,
    or the decoder is not the embedding.
    """
    words, places, up = (
        _take(state, (name,), source)
        for name in (_WORDS, "ernie.embeddings.position_embeddings.weight", _LAYER.format(i=0) + "linear1.bias")
    )
    if words.dim() != 2 or words.shape[0] != len(ORIGINAL):
        raise ModelError(
            f"{source}: {_WORDS} has shape {list(words.shape)} where the original's vocabulary has {len(ORIGINAL)}"
            " rows; the file is of another model or vocabulary"
        )
    if TIED in state and not torch.equal(state[TIED].float(), words):
        raise ModelError(f"{source}: {TIED} differs from {_WORDS}, but RNAErnie's decoder is its embedding")
    config = RNAErnieConfig(
        layers=1 + max((int(m[1]) for n in state if (m := re.match(r"ernie\.encoder\.layers\.(\d+)\.", n))), default=0),
        width=words.shape[1],
        heads=heads,
        ffn=up.shape[0],
        vocab=len(FULL),
        max_positions=places.shape[0],
        pooler=any(name.startswith(POOLER) for name in state),
    )
    shapes = _shapes(config)
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows(config):
        shape = [len(ORIGINAL), *shapes[row.ours][1:]] if row.ours in BY_TOKEN else shapes[row.ours]
        x = _take(state, row.original, source, shape, row.transposed)
        ours[row.ours] = from_original_rows(x) if row.ours in BY_TOKEN else x
        used.update(row.original)
    _refuse_rest([n for n in state.keys() - used if n.startswith(("ernie.encoder.", "ernie.embeddings."))], source)
    return config, ours


def to_multimolecule(
    state: dict[str, Tensor], config: RNAErnieConfig, wanted: tuple[str, ...], untrained: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors in fp32) of an `RnaErnieForPreTraining` directory with the tokens ``wanted``.

    The rows of the tokens ``untrained``, and of wanted tokens that the model lacks, are copies of <unk>'s; a model
    without pooler gets one at initial values. Tied tensors are stored once, as the library does.
    """
    state = with_vocabulary(fill(state, config, untrained), config, wanted)
    config, state = with_pooler(state, config)
    tensors: dict[str, Tensor] = {}
    for row in rows(config):
        for name, part in zip(row.multimolecule, state[row.ours].float().chunk(len(row.multimolecule)), strict=True):
            tensors[name if name.startswith("lm_head.") else "model." + name] = part.clone()
    return write_config(config, len(wanted)), tensors


def from_directory(directory: Path | str) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """A MultiMolecule directory -> (configuration, our state) with 57 tokens if it has the types, else 28.

    Tokens of the 28 that an older vocabulary of 26 lacks are copies of <unk>'s row. The state has a pooler if the
    directory has. Raises ModelError naming file and key if the model type is another, a tensor is missing, unknown or
    of another shape, the vocabulary lacks a token, or the configuration switches on what RNAErnie does not have.
    """
    directory, source = Path(directory), str(directory)
    theirs = read_vocabulary(directory)
    wanted = FULL if set(ADDED) & set(theirs) else STRIPPED
    config = read_config(directory / "config.json", len(wanted))
    row_of = {token: i for i, token in enumerate(theirs)}
    may_lack = set(STRIPPED) - set(vocabulary(26))
    missing = [token for token in wanted if token not in row_of and token not in may_lack]
    if missing:
        raise ModelError(
            f"{directory / 'vocab.txt'} lacks {', '.join(missing)}, so the weights cannot be read for our tokens"
        )
    places = [row_of.get(token, row_of["<unk>"]) for token in wanted]
    tensors = read_directory(directory)
    prefix = next((p for p in PREFIXES if p + "embeddings.word_embeddings.weight" in tensors), PREFIXES[0])
    config = dataclasses.replace(config, pooler=prefix + "pooler.dense.weight" in tensors)
    shapes = _shapes(config)
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows(config):
        names = tuple(name if name.startswith("lm_head.") else prefix + name for name in row.multimolecule)
        by_token = row.ours in BY_TOKEN
        x = _take(tensors, names, source, [len(theirs), *shapes[row.ours][1:]] if by_token else shapes[row.ours])
        ours[row.ours] = x[places] if by_token else x
        used.update(names)
    _refuse_rest(
        [n for n in tensors.keys() - used if n.startswith((prefix + "encoder.", prefix + "embeddings."))], source
    )
    return config, ours


def _shapes(config: RNAErnieConfig) -> dict[str, list[int]]:
    """The shape of every tensor of ours, from the module itself."""
    with torch.device("meta"):
        return {name: list(x.shape) for name, x in RNAErnie(config).state_dict().items()}


def _take(
    state: dict[str, Tensor],
    names: tuple[str, ...],
    source: str,
    shape: list[int] | None = None,
    transposed: bool = False,
) -> Tensor:
    """The tensors ``names``, ``transposed`` back, joined along dimension 0, in fp32; ``shape`` is that of the whole."""
    for name in names:
        if name not in state:
            raise ModelError(
                f"{source} has no tensor {name}, which every RNAErnie has; it is incomplete, or holds another model"
                f" (its {len(state)} tensors start with {', '.join(sorted(state)[:3])})"
            )
        if shape is not None:
            expected = [shape[0] // len(names), *shape[1:]]
            expected = expected[::-1] if transposed else expected
            if list(state[name].shape) != expected:
                raise ModelError(
                    f"{source}: {name} has shape {list(state[name].shape)} where an RNAErnie of the file's own sizes"
                    f" has {expected}"
                )
    return torch.cat([state[name].T if transposed else state[name] for name in names]).float()


def _refuse_rest(rest: list[str], source: str) -> None:
    if rest:
        raise ModelError(
            f"{source} has {len(rest)} encoder tensors that RNAErnie of this size does not have, {min(rest)} first;"
            " reading on would drop them in silence"
        )
