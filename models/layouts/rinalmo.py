"""RiNALMo's names in three layouts, as one table: ours, the authors' files, MultiMolecule's directories.

Source: RiNALMo specification 7 and 8. `to_*` take the state of a `RiNALMo` module (feed-forward pads are stripped),
`from_*` return a configuration and a state in fp32 with all values unchanged. Nothing here trains or runs a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layouts import huggingface
from models.layouts.multimolecule import (
    UNTRAINED_BIAS,
    read_vocabulary,
    row_of_token,
    spread_rows,
    tokenizer_config,
    vocabulary,
)
from models.layouts.reading import read_directory
from models.layouts.releasing import TRANSFORMERS_USAGE, ReleaseLayout, WriteOptions
from models.layouts.rinalmo_config import MODEL_TYPE, read_config, write_config
from models.rinalmo import RiNALMo, RiNALMoConfig, strip_padding

MODEL_TYPES = (MODEL_TYPE,)
TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ACGTIRYKMSWBDHVN-")  # ids 0 to 21 (spec 2.1)
HEADS = 20  # of every published size; the flash layout does not record it
PREFIXES = ("model.", "rinalmo.", "")  # of encoder names in MultiMolecule: 0.2.2, up to 0.0.8, a bare encoder


@dataclass(frozen=True)
class Row:
    """One tensor: its name in each layout. Several names in one place are joined along dimension 0."""

    ours: str
    original: str
    multimolecule: tuple[str, ...]  # names in front of "lm_head." carry one of PREFIXES
    non_flash: tuple[str, ...] = ()  # in the authors' module without flash attention, where it differs
    by_token: bool = False  # dimension 0 is the vocabulary


def _pairs(ours: str, original: str, multimolecule: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}.{x}", f"{original}.{x}", (f"{multimolecule}.{x}",)) for x in ("weight", "bias"))


_BLOCK, _ATTN = "transformer.blocks.{i}.", "transformer.blocks.{i}.mh_attn."
_EMBED = "embedding.weight"
_LAYER, _SELF = "encoder.layer.{i}.", "encoder.layer.{i}.attention.self."
BLOCK_ROWS = (
    *_pairs("blocks.{i}.attn_norm", _BLOCK + "attn_layer_norm", _LAYER + "attention.layer_norm"),
    Row(
        "blocks.{i}.attn.qkv.weight",
        _ATTN + "Wqkv.weight",
        tuple(_SELF + x + ".weight" for x in ("query", "key", "value")),
        non_flash=tuple(_ATTN + "mh_attn." + x + ".weight" for x in ("to_q", "to_k", "to_v")),
    ),
    Row(
        "blocks.{i}.attn.out.weight",
        _ATTN + "out_proj.weight",
        (_LAYER + "attention.output.dense.weight",),
        non_flash=(_ATTN + "mh_attn.out_proj.weight",),
    ),
    *_pairs("blocks.{i}.ffn_norm", _BLOCK + "out_layer_norm", _LAYER + "layer_norm"),
    # MultiMolecule calls the slope of the Swish a bias.
    Row("blocks.{i}.ffn.beta", _BLOCK + "transition.0.beta", (_LAYER + "intermediate.bias",)),
    *_pairs("blocks.{i}.ffn.swish", _BLOCK + "transition.0.linear", _LAYER + "intermediate.linear"),
    *_pairs("blocks.{i}.ffn.plain", _BLOCK + "transition.0.linear_gate", _LAYER + "intermediate.linear_gate"),
    *_pairs("blocks.{i}.ffn.down", _BLOCK + "transition.2", _LAYER + "output.dense"),
)
OUTER_ROWS = (
    Row("embed.weight", _EMBED, ("embeddings.word_embeddings.weight",), by_token=True),
    *_pairs("final_norm", "transformer.final_layer_norm", "encoder.layer_norm"),
    *_pairs("head.dense", "lm_mask_head.linear1", "lm_head.transform.dense"),
    *_pairs("head.norm", "lm_mask_head.layer_norm", "lm_head.transform.layer_norm"),
    Row("head.out.weight", "lm_mask_head.linear2.weight", ("lm_head.decoder.weight",), by_token=True),
    # Read lm_head.bias, never its copy lm_head.decoder.bias, which is a stray zero in what MultiMolecule saves.
    Row("head.out.bias", "lm_mask_head.linear2.bias", ("lm_head.bias",), by_token=True),
)


def rows(layers: int) -> list[Row]:
    """The whole table of a model with ``layers`` blocks."""

    def at(row: Row, i: int) -> Row:
        ours, original = row.ours.format(i=i), row.original.format(i=i)
        theirs, non_flash = (tuple(n.format(i=i) for n in names) for names in (row.multimolecule, row.non_flash))
        return Row(ours, original, theirs, non_flash)

    return [*OUTER_ROWS, *(at(row, i) for i in range(layers) for row in BLOCK_ROWS)]


def tokens(config: RiNALMoConfig) -> tuple[str, ...]:
    """The tokens in the order of their ids."""
    return TOKENS


def to_original(state: dict[str, Tensor], config: RiNALMoConfig) -> dict[str, Tensor]:
    """The names of the authors' published files (flash layout, 22 tokens); values unchanged, pads stripped."""
    state = strip_padding(state, config)
    return {row.original: state[row.ours] for row in rows(config.layers)}


def recognises_original(names: set[str]) -> bool:
    """Whether the names are those of a RiNALMo file of the authors, in any of their forms."""
    names = {name.removeprefix("lm.") for name in names}
    return {_EMBED, "transformer.blocks.0.transition.0.linear_gate.weight"} <= names


def from_original(
    state: dict[str, Tensor], heads: int = HEADS, source: str = "the checkpoint"
) -> tuple[RiNALMoConfig, dict[str, Tensor]]:
    """Every form of the authors' files -> (configuration, our state); ``source`` names the file in errors.

    Accepts a dictionary wrapped under `model`, fine-tuned files (prefix `lm.`; their task heads are dropped) and the
    module without flash attention (separate q, k and v; its rotary table is ignored, it follows from the positions).
    Sizes come from the shapes; ``heads`` cannot and is 20 in all published files. Raises ModelError if a tensor is
    missing, unknown or of another shape.
    """
    state = state.get("model", state)  # type: ignore[assignment]
    if any(name.startswith("lm.") for name in state):
        state = {name.removeprefix("lm."): x for name, x in state.items() if name.startswith("lm.")}
    state = {name: x for name, x in state.items() if not name.endswith("rotary_emb.inv_freq")}
    layers = _count_blocks(state, r"transformer\.blocks\.(\d+)\.")
    embed, swish = (_take(state, (name,), source) for name in (_EMBED, _BLOCK.format(i=0) + "transition.0.linear.bias"))
    if embed.dim() != 2 or embed.shape[0] != len(TOKENS):
        raise ModelError(
            f"{source}: {_EMBED} has shape {list(embed.shape)} where RiNALMo's alphabet has"
            f" {len(TOKENS)} rows; the file is of another model or vocabulary"
        )
    config = RiNALMoConfig(layers=layers, width=embed.shape[1], heads=heads, ffn=swish.shape[0])
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    shapes = _shapes(config)
    for row in rows(layers):
        split = row.non_flash and row.original not in state
        names = row.non_flash if split else (row.original,)
        ours[row.ours] = _take(state, names, source, shapes[row.ours])
        used.update(names)
    _refuse_rest([n for n in state.keys() - used if n.startswith("transformer.")], source)
    return config, ours


def to_multimolecule(
    state: dict[str, Tensor], config: RiNALMoConfig, seed: int = 0, tokens: int = 28
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """(config.json, tensors in fp32, vocabulary) of a MultiMolecule directory with ``tokens`` = 28 or 26 tokens.

    Tokens that the model never saw get the embedding and decoder rows of `spread_rows`, the same for the same
    ``seed``, and a decoder bias of -30, so that filling masks returns real tokens only (spec 7.3). Raises ModelError
    if the model is one that MultiMolecule's class cannot express.
    """
    if not config.normalised_residual:
        raise ModelError("MultiMolecule's RiNALMo always has the normalised residual; this model was trained without")
    if config.vocab != len(TOKENS):
        raise ModelError(f"the model has {config.vocab} letters where RiNALMo's alphabet has {len(TOKENS)}")
    state, generator = strip_padding(state, config), torch.Generator().manual_seed(seed)
    theirs = vocabulary(tokens)
    positions = row_of_token(TOKENS, list(theirs), Path(f"MultiMolecule's vocabulary of {tokens}"))
    tensors: dict[str, Tensor] = {}
    for row in rows(config.layers):
        x = state[row.ours].float()
        if row.by_token and x.dim() == 2:
            x = spread_rows(x, positions, theirs, generator)
        elif row.by_token:
            x = torch.full((tokens,), UNTRAINED_BIAS).index_copy(0, torch.tensor(positions), x)
        for name, part in zip(row.multimolecule, x.chunk(len(row.multimolecule)), strict=True):
            tensors[name if name.startswith("lm_head.") else "model." + name] = part.clone()
    # A loader that finds only one of the two bias names leaves the other as uninitialised memory (spec 8.3).
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    return write_config(config, tokens), tensors, list(theirs)


def write_multimolecule(
    directory: Path, state: dict[str, Tensor], config: RiNALMoConfig, options: WriteOptions, *, seed: int = 0
) -> Path:
    """Write config.json, model.safetensors, tokenizer_config.json and vocab.txt; the model card is the release's."""
    content, tensors, theirs = to_multimolecule(state, config, seed, options.vocabulary)
    content["dtype"] = str(options.dtype).removeprefix("torch.")
    tensors = {name: x.to(options.dtype) for name, x in tensors.items()}
    huggingface.write_directory(directory, content, tensors, tokenizer_config(), theirs, options.shard_bytes)
    return directory


def write_original(directory: Path, state: dict[str, Tensor], config: RiNALMoConfig, options: WriteOptions) -> Path:
    """Write the authors' file NAME.pt."""
    path = directory / f"{options.name}.pt"
    torch.save({name: x.to(options.dtype) for name, x in to_original(state, config).items()}, path)
    return path


RELEASES = {
    "multimolecule": ReleaseLayout("", write_multimolecule, TRANSFORMERS_USAGE, library="multimolecule"),
    "original": ReleaseLayout(
        "original", write_original, "`original/` holds the same weights as a file for the authors' repository.\n"
    ),
}


def from_directory(directory: Path | str) -> tuple[RiNALMoConfig, dict[str, Tensor]]:
    """A MultiMolecule directory of any version -> (configuration, our state on the 22 original tokens).

    Raises ModelError naming file and key if the model type is another, a tensor is missing, unknown or of another
    shape, the vocabulary lacks a letter, or the configuration switches on something that RiNALMo does not have.
    """
    directory = Path(directory)
    config, source = read_config(directory / "config.json"), str(directory)
    theirs = read_vocabulary(directory)
    positions = torch.tensor(row_of_token(TOKENS, theirs, directory / "vocab.txt"))
    tensors = read_directory(directory)
    prefix = next((p for p in PREFIXES if p + "embeddings.word_embeddings.weight" in tensors), PREFIXES[0])
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    shapes = _shapes(config)
    for row in rows(config.layers):
        names = tuple(name if name.startswith("lm_head.") else prefix + name for name in row.multimolecule)
        shape = shapes[row.ours]
        if row.by_token:
            shape = [_count_rows(tensors, names[0], theirs, source), *shape[1:]]
        x = _take(tensors, names, source, shape)
        ours[row.ours] = x[positions] if row.by_token else x
        used.update(names)
    _refuse_rest([n for n in tensors.keys() - used if n.startswith(prefix + "encoder.")], source)
    return config, ours


def _count_blocks(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(pattern, name))), default=0)


def _count_rows(tensors: dict[str, Tensor], name: str, theirs: list[str], source: str) -> int:
    """How many tokens ``theirs`` has; ModelError if the tensor ``name`` has another number of rows."""
    if name in tensors and tensors[name].shape[:1] != (len(theirs),):
        raise ModelError(
            f"{source}: {name} has shape {list(tensors[name].shape)} and vocab.txt {len(theirs)} tokens; the two must"
            " come from the same release"
        )
    return len(theirs)


def _shapes(config: RiNALMoConfig) -> dict[str, list[int]]:
    """The shape of every tensor of ours, from the module itself."""
    with torch.device("meta"):
        return {name: list(x.shape) for name, x in RiNALMo(config).state_dict().items()}


def _take(state: dict[str, Tensor], names: tuple[str, ...], source: str, shape: list[int] | None = None) -> Tensor:
    """The tensors ``names`` joined along dimension 0, in fp32; together they must have ``shape`` if one is given."""
    for name in names:
        if name not in state:
            raise ModelError(
                f"{source} has no tensor {name}, which every RiNALMo has; it is incomplete, or holds another model"
                f" (its {len(state)} tensors start with {', '.join(sorted(state)[:3])})"
            )
        found = list(state[name].shape)
        if shape is not None and found != [shape[0] // len(names), *shape[1:]]:
            raise ModelError(
                f"{source}: {name} has shape {found} where a RiNALMo of the file's own sizes has"
                f" {[shape[0] // len(names), *shape[1:]]}"
            )
    return torch.cat([state[name] for name in names]).float()


def _refuse_rest(rest: list[str], source: str) -> None:
    if rest:
        raise ModelError(
            f"{source} has {len(rest)} encoder tensors that RiNALMo of this size does not have, {min(rest)} first;"
            " reading on would drop them in silence"
        )
