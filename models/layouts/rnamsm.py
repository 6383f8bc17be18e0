"""RNA-MSM's names in three layouts, as one table: ours, the authors' Lightning checkpoint, MultiMolecule's directories.

Source: RNA-MSM specification 2, 7 and 8. `to_*` take the state of an `RNAMSM` module, `from_*` return a configuration
and a state in fp32 with all values unchanged. Nothing here trains or runs a model. What this module offers is the
contract of `releasing.py`.
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
from models.layouts.multimolecule import read_vocabulary, tokenizer_config, vocabulary
from models.layouts.reading import read_directory
from models.layouts.releasing import TRANSFORMERS_USAGE, ReleaseLayout, WriteOptions
from models.layouts.rnamsm_config import MODEL_TYPE, read_config, write_config
from models.layouts.rnamsm_rows import TOKENS, filled_rows, released
from models.rnamsm import ANSWERS, CLS, MASK, NEVER, RNAMSM, RNAMSMConfig

MODEL_TYPES = (MODEL_TYPE,)
HEADS = 12  # of the published size; the authors' file does not record it
ORIGINAL_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"AGCUXN-", "<mask>")  # ids 0 to 11 of the authors
PREFIXES = ("model.", "rnamsm.", "")  # of encoder names in MultiMolecule: since 0.1, before, a bare encoder


@dataclass(frozen=True)
class Row:
    """One tensor: its name in each layout. Several names in one place are joined along dimension 0."""

    ours: str
    original: tuple[str, ...]
    multimolecule: tuple[str, ...]  # names in front of "lm_head." carry one of PREFIXES
    by_token: bool = False  # dimension 0 is the vocabulary


def _pairs(ours: str, original: str, multimolecule: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}.{x}", (f"{original}.{x}",), (f"{multimolecule}.{x}",)) for x in ("weight", "bias"))


def _branch(ours: str, theirs: str, layers: dict[str, tuple[str, ...]]) -> tuple[Row, ...]:
    """A branch of a block: both layouts have the same names behind `layers.N.` and `encoder.layer.N.`."""
    rows = []
    for our_layer, their_layers in {"norm": (), **layers}.items():
        for x in ("weight", "bias"):
            tails = [f"{theirs}.layer.{t}.{x}" for t in their_layers] or [f"{theirs}.layer_norm.{x}"]
            original = tuple("layers.{i}." + tail for tail in tails)
            multimolecule = tuple("encoder.layer.{i}." + tail for tail in tails)
            rows.append(Row(f"blocks.{{i}}.{ours}.{our_layer}_{x}", original, multimolecule))
    return tuple(rows)


_ATTENTION = {"qkv": ("q_proj", "k_proj", "v_proj"), "out": ("out_proj",)}
BLOCK_ROWS = (
    *_branch("row", "row_self_attention", _ATTENTION),
    *_branch("column", "column_self_attention", _ATTENTION),
    *_branch("ffn", "feed_forward_layer", {"up": ("fc1",), "down": ("fc2",)}),
)
_EMBED, _ROW = "embed_tokens.weight", "msa_position_embedding"
OUTER_ROWS = (
    Row("embed.weight", (_EMBED,), ("embeddings.word_embeddings.weight",), by_token=True),
    Row("stem.position", ("embed_positions.weight",), ("embeddings.position_embeddings.weight",)),
    Row("stem.row", (_ROW,), ("embeddings.msa_embeddings",)),  # [1, 1024, 1, 1] in both of theirs
    *_pairs("stem.norm", "emb_layer_norm_before", "embeddings.layer_norm"),
    *_pairs("final_norm", "emb_layer_norm_after", "encoder.layer_norm"),
    *_pairs("head.dense", "lm_head.dense", "lm_head.transform.dense"),
    *_pairs("head.norm", "lm_head.layer_norm", "lm_head.transform.layer_norm"),
    Row("head.out.bias", ("lm_head.bias",), ("lm_head.bias",), by_token=True),
)
_ROW_SHAPE = (1, -1, 1, 1)
_CONTACTS = "contact_head.regression."  # not part of the language model; the authors fit it anew at every validation


def rows(layers: int) -> list[Row]:
    """The whole table of a model with ``layers`` blocks."""

    def at(row: Row, i: int) -> Row:
        original, multimolecule = (tuple(n.format(i=i) for n in names) for names in (row.original, row.multimolecule))
        return Row(row.ours.format(i=i), original, multimolecule)

    return [*OUTER_ROWS, *(at(row, i) for i in range(layers) for row in BLOCK_ROWS)]


def tokens(config: RNAMSMConfig) -> tuple[str, ...]:
    """The tokens in the order of their ids."""
    return TOKENS


def to_original(state: dict[str, Tensor], config: RNAMSMConfig) -> dict[str, Tensor]:
    """The 275 names (at 10 layers) of the authors' state_dict on their 12 tokens; values unchanged.

    Their contact head is not part of the model: it is written as zeros, for their class to fit.
    """
    _require_vocabulary(config)
    state, ids = released(state), torch.tensor([TOKENS.index(token) for token in ORIGINAL_TOKENS])
    tensors: dict[str, Tensor] = {}
    for row in rows(config.layers):
        x = state[row.ours][ids] if row.by_token else state[row.ours]
        for name, part in zip(row.original, x.chunk(len(row.original)), strict=True):
            tensors[name] = part.clone()
    tensors[_ROW] = tensors[_ROW].view(_ROW_SHAPE)
    tensors["lm_head.weight"] = tensors[_EMBED].clone()
    maps = config.layers * config.heads
    return tensors | {_CONTACTS + "weight": torch.zeros(1, maps), _CONTACTS + "bias": torch.zeros(1)}


def recognises_original(names: set[str]) -> bool:
    """Whether the names are those of the authors' checkpoint."""
    return {_EMBED, _ROW, "layers.0.row_self_attention.layer.q_proj.weight"} <= names


def from_original(
    state: dict[str, Tensor], heads: int = HEADS, source: str = "the checkpoint"
) -> tuple[RNAMSMConfig, dict[str, Tensor]]:
    """The authors' state_dict -> (configuration, our state); ``source`` names the file in errors.

    Their 12 tokens keep their rows; our further ones get zero rows, which a release fills, and a bias of -30. The
    contact head is dropped. Sizes come from the shapes; ``heads`` cannot and is 12 in the published file. Raises
    ModelError if a tensor is missing, unknown or of another shape.
    """
    layers = _count_blocks(state, r"layers\.(\d+)\.")
    names = (_EMBED, "embed_positions.weight", "layers.0.feed_forward_layer.layer.fc1.bias")
    embed, positions, inner = (_take(state, (name,), source) for name in names)
    if embed.shape[0] != len(ORIGINAL_TOKENS):
        raise ModelError(
            f"{source}: {_EMBED} has {embed.shape[0]} rows where RNA-MSM's alphabet has {len(ORIGINAL_TOKENS)}; the"
            " file is of another model or vocabulary"
        )
    config = RNAMSMConfig(
        layers=layers, width=embed.shape[1], heads=heads, ffn=len(inner), max_positions=len(positions) - 2
    )
    table = {row.ours: row.original for row in rows(layers)}
    return config, _from_tensors(state, table, config, ORIGINAL_TOKENS, {"lm_head.weight": _EMBED}, "layers.", source)


def to_multimolecule(
    state: dict[str, Tensor], config: RNAMSMConfig, size: int = 28
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """(config.json, tensors in fp32, vocabulary) of a MultiMolecule directory with ``size`` = 28 or 26 tokens.

    The tied copies of the decoder are left out, as their class does. Raises ModelError if the model is one that their
    class cannot express.
    """
    _require_vocabulary(config)
    state, theirs = released(state), vocabulary(size)
    ids = torch.tensor([TOKENS.index(token) for token in theirs])
    tensors: dict[str, Tensor] = {}
    for row in rows(config.layers):
        x = (state[row.ours][ids] if row.by_token else state[row.ours]).float()
        for name, part in zip(row.multimolecule, x.chunk(len(row.multimolecule)), strict=True):
            tensors[name if name.startswith("lm_head.") else "model." + name] = part.clone()
    tensors["model.embeddings.msa_embeddings"] = tensors["model.embeddings.msa_embeddings"].view(_ROW_SHAPE)
    return write_config(config, size), tensors, list(theirs)


def write_multimolecule(directory: Path, state: dict[str, Tensor], config: RNAMSMConfig, options: WriteOptions) -> Path:
    """Write config.json, model.safetensors, tokenizer_config.json and vocab.txt; the model card is the release's.

    The tokenizer appends no `<eos>`, which the model never saw (spec 8).
    """
    content, tensors, theirs = to_multimolecule(state, config, options.vocabulary)
    content["dtype"] = str(options.dtype).removeprefix("torch.")
    tensors = {name: x.to(options.dtype) for name, x in tensors.items()}
    tokenizer = tokenizer_config() | {"eos_token": None}
    huggingface.write_directory(directory, content, tensors, tokenizer, theirs, options.shard_bytes)
    return directory


def write_original(directory: Path, state: dict[str, Tensor], config: RNAMSMConfig, options: WriteOptions) -> Path:
    """Write NAME.ckpt with the authors' state_dict, and nothing else: it loads without running code."""
    path = directory / f"{options.name}.ckpt"
    tensors = {name: x.to(options.dtype) for name, x in to_original(state, config).items()}
    torch.save({"state_dict": tensors}, path)
    return path


_USAGE = (
    TRANSFORMERS_USAGE
    + """
Letters must be A, C, G, U, X or -, insertions removed, all rows equally long; rows are stacked to `input_ids` of shape
[1, rows, columns], at most 1024 each with `<cls>`. Pad on the right only, and never by rows.
"""
)
RELEASES = {
    "multimolecule": ReleaseLayout(
        "",
        write_multimolecule,
        _USAGE,
        library="multimolecule",
        filled=lambda state, options: filled_rows(state, vocabulary(options.vocabulary)),
    ),
    "original": ReleaseLayout(
        "original",
        write_original,
        "`original/` holds the same weights for the authors' repository; their contact head is not trained.\n\n"
        "```python\nstate = torch.load(PATH_OR_ID, weights_only=True)\n"
        'model.load_state_dict(state["state_dict"])\n```\n',
        filled=lambda state, options: filled_rows(state, ORIGINAL_TOKENS, "`original/`: "),
    ),
}


def from_directory(directory: Path | str) -> tuple[RNAMSMConfig, dict[str, Tensor]]:
    """A MultiMolecule directory of any version -> (configuration, our state).

    Tokens are found by vocab.txt; one that their vocabulary lacks gets a zero row. Heads other than the language
    model's are dropped. Raises ModelError naming file and key if the model type is another, a tensor is missing,
    unknown or of another shape, or the configuration switches on something that RNA-MSM does not have.
    """
    directory = Path(directory)
    config, source = read_config(directory / "config.json"), str(directory)
    theirs, tensors = read_vocabulary(directory), read_directory(directory)
    prefix = next((p for p in PREFIXES if p + "embeddings.word_embeddings.weight" in tensors), PREFIXES[0])
    if "lm_head.bias" not in tensors and "lm_head.decoder.bias" in tensors:
        tensors = tensors | {"lm_head.bias": tensors["lm_head.decoder.bias"]}
    table = {
        row.ours: tuple(name if name.startswith("lm_head.") else prefix + name for name in row.multimolecule)
        for row in rows(config.layers)
    }
    tied = {"lm_head.decoder.weight": prefix + "embeddings.word_embeddings.weight"}
    return config, _from_tensors(tensors, table, config, tuple(theirs), tied, prefix + "encoder.", source)


def _from_tensors(
    tensors: dict[str, Tensor],
    table: dict[str, tuple[str, ...]],
    config: RNAMSMConfig,
    theirs: tuple[str, ...],
    tied: dict[str, str],
    encoder: str,
    source: str,
) -> dict[str, Tensor]:
    """Our state from tensors of another layout. ``table``: our name -> theirs; ``theirs``: their tokens by id.

    ``tied``: name of a copy -> of what it must equal; ``encoder``: prefix of names that must all be known.
    """
    for name, copied in tied.items():
        if name in tensors and copied in tensors and not torch.equal(tensors[name], tensors[copied]):
            raise ModelError(
                f"{source}: {name} differs from {copied}, but RNA-MSM's decoder is its embedding; the weights were"
                " untied, which this model cannot express"
            )
    by_token = {row.ours for row in OUTER_ROWS if row.by_token}
    with torch.device("meta"):
        shapes = {name: list(x.shape) for name, x in RNAMSM(config).state_dict().items()}
    ours: dict[str, Tensor] = {}
    for name, sources in table.items():
        shape = [len(theirs), *shapes[name][1:]] if name in by_token else shapes[name]
        x = _take(tensors, sources, source, [1, *shape, 1, 1] if name == "stem.row" else shape)
        ours[name] = _by_our_tokens(x, theirs, source) if name in by_token else x.reshape(shape)
    used = {name for names in table.values() for name in names}
    rest = [name for name in tensors.keys() - used if name.startswith(encoder)]
    if rest:
        raise ModelError(
            f"{source} has {len(rest)} encoder tensors that RNA-MSM of this size does not have, {min(rest)} first;"
            " reading on would drop them in silence"
        )
    return ours


def _by_our_tokens(x: Tensor, theirs: tuple[str, ...], source: str) -> Tensor:
    """Rows in the order of our tokens; where theirs lack one, zero, and -30 for a bias."""
    ids = {token: i for i, token in enumerate(theirs)}
    missing = [TOKENS[i] for i in (CLS, MASK, *ANSWERS) if TOKENS[i] not in ids]
    if missing:
        raise ModelError(f"{source} lacks {', '.join(missing)}, so the weights cannot be read for alignments")
    moved = torch.full((len(TOKENS), *x.shape[1:]), 0.0 if x.dim() > 1 else NEVER)
    known = [i for i, token in enumerate(TOKENS) if token in ids]
    moved[known] = x[[ids[TOKENS[i]] for i in known]]
    return moved


def _count_blocks(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(pattern, name))), default=0)


def _take(state: dict[str, Tensor], names: tuple[str, ...], source: str, shape: list[int] | None = None) -> Tensor:
    """The tensors ``names`` joined along dimension 0, in fp32; together they must have ``shape`` if one is given."""
    for name in names:
        if name not in state:
            raise ModelError(
                f"{source} has no tensor {name}, which every RNA-MSM has; it is incomplete, or holds another model"
                f" (its {len(state)} tensors start with {', '.join(sorted(state)[:3])})"
            )
        found = list(state[name].shape)
        if shape is not None and found != [shape[0] // len(names), *shape[1:]]:
            raise ModelError(
                f"{source}: {name} has shape {found} where an RNA-MSM of the file's own sizes has"
                f" {[shape[0] // len(names), *shape[1:]]}"
            )
    return torch.cat([state[name] for name in names]).float()


def _require_vocabulary(config: RNAMSMConfig) -> None:
    if config.vocab != len(TOKENS):
        raise ModelError(f"the model has {config.vocab} tokens where RNA-MSM's vocabulary has {len(TOKENS)}")
