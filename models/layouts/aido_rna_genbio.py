"""AIDO.RNA in GenBio's layout: the directory that their class `RNABertForMaskedLM` reads, and files of its weights.

Source: AIDO.RNA specification 7.1 to 7.3 and 8 (a). The 16 rows are ours, in the same order, so nothing is moved: a
conversion there and back is bit for bit the same. A release alone changes the row and bias of tokens that never train.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.aido_rna import NORM_EPS, AidoRNAConfig
from models.errors import ModelError
from models.layouts import huggingface
from models.layouts.aido_rna_table import (
    TOKENS,
    joined,
    refuse_rest,
    refuse_untied,
    released,
    require_vocabulary,
    rows,
    shapes,
)
from models.layouts.reading import read_directory, read_json, read_tensors
from models.layouts.releasing import WriteOptions

MODEL_TYPE = "rnabert"
HEADS_OF_WIDTH = {128: 8, 512: 16, 1280: 20, 2048: 32}  # the published sizes; a bare file does not say
NORMS = {"LayerNorm": "layer", "RMSNorm": "rms"}
TORCH_INDEX = "pytorch_model.bin.index.json"
_EMBED, _GATE = "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.mlp.gate_proj.weight"
_COPIES = {"cls.predictions.decoder.weight": _EMBED, "cls.predictions.decoder.bias": "cls.predictions.bias"}


def to_genbio(state: dict[str, Tensor], config: AidoRNAConfig) -> dict[str, Tensor]:
    """Their names, values unchanged, without the tied copy of the embedding but with that of the bias.

    Their class ties the decoder's bias when it is built. Under transformers 4.38 that survives loading; under 4.46 it
    does not, and a file without the copy, even one that their class saved, leaves that bias uninitialised.
    """
    require_vocabulary(config)
    tensors: dict[str, Tensor] = {}
    for row in rows(config):
        for name, part in zip(row.genbio, state[row.ours].chunk(len(row.genbio)), strict=True):
            tensors[name] = part.clone()
    return tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}


def from_tensors(tensors: dict[str, Tensor], config: AidoRNAConfig, source: str) -> dict[str, Tensor]:
    """Our state out of their tensors, with or without the tied copies of the decoder.

    Raises ModelError if a tensor is missing, unknown, of another shape, or a copy is not tied.
    """
    require_vocabulary(config)
    refuse_untied(tensors, _COPIES, source)
    if "cls.predictions.bias" not in tensors and "cls.predictions.decoder.bias" in tensors:
        tensors = tensors | {"cls.predictions.bias": tensors["cls.predictions.decoder.bias"]}
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    expected = shapes(config)
    for row in rows(config):
        ours[row.ours] = joined(tensors, row.genbio, source, expected[row.ours])
        used.update(row.genbio)
    refuse_rest([n for n in tensors.keys() - used if n.startswith("bert.encoder.")], source)
    return ours


def write(directory: Path, state: dict[str, Tensor], config: AidoRNAConfig, options: WriteOptions) -> Path:
    """Write config.json, the weights and vocab.txt; their class has its tokenizer in its package."""
    tensors = {name: x.to(options.dtype) for name, x in to_genbio(released(state), config).items()}
    content = write_config(config) | {"torch_dtype": str(options.dtype).removeprefix("torch.")}
    huggingface.write_directory(directory, content, tensors, {}, list(TOKENS), options.shard_bytes)
    return directory


def read(directory: Path) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """A directory of theirs, safetensors or `.bin`, in one file or several. Raises ModelError as `from_tensors`."""
    config = read_config(directory / "config.json")
    return config, from_tensors(_read_weights(directory), config, str(directory))


def recognises(names: set[str]) -> bool:
    """Whether the names are those of a file with the weights of their class."""
    return {_EMBED, _GATE} <= names


def from_file(tensors: dict[str, Tensor], heads: int | None, source: str) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """The weights of their class without a config.json: sizes come from the shapes, the heads from ``heads``.

    Without ``heads`` the width must be that of a published size.
    """
    vocab, width = tensors[_EMBED].shape
    if vocab != len(TOKENS):
        raise ModelError(f"{source}: {_EMBED} has {vocab} rows where AIDO.RNA's vocabulary has {len(TOKENS)}")
    if heads is None and width not in HEADS_OF_WIDTH:
        raise ModelError(
            f"{source} does not say how many attention heads the model has, and no published size is {width} wide;"
            " put the config.json that belongs to it beside it and read the directory"
        )
    found = [int(m[1]) for name in tensors if (m := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))]
    config = AidoRNAConfig(
        layers=1 + max(found),
        width=width,
        heads=heads or HEADS_OF_WIDTH[width],
        ffn=tensors[_GATE].shape[0],
        norm="layer" if "bert.encoder.ln.bias" in tensors else "rms",
        bias="bert.encoder.layer.0.mlp.gate_proj.bias" in tensors,
    )
    return config, from_tensors(tensors, config, source)


def read_config(path: Path) -> AidoRNAConfig:
    """Our configuration out of their config.json, with their class's defaults for what it leaves out.

    Raises ModelError for a key that switches on something AIDO.RNA does not have.
    """
    content = read_json(path)
    always = {"hidden_act": "swiglu", "position_embedding_type": "rope", "rotary_percent": 1.0, "vocab_size": 16}
    always |= {"seq_len_interpolation_factor": None, "layer_norm_eps": NORM_EPS}
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but AIDO.RNA always has {value!r}")
    sizes = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
    sizes |= {"ffn": "intermediate_size"}
    for key in sizes.values():
        if not isinstance(content.get(key), int):
            raise ModelError(f"{path}: {key} must be a whole number, not {content.get(key)!r}")
    norm = content.get("normalization_type", "RMSNorm")  # their default, although most released models have LayerNorm
    if norm not in NORMS:
        raise ModelError(f"{path}: normalization_type must be {' or '.join(NORMS)}, not {norm!r}")
    config = AidoRNAConfig(**{ours: content[theirs] for ours, theirs in sizes.items()})
    return replace(
        config,
        norm=NORMS[norm],
        bias=bool(content.get("add_linear_bias", True)),
        residual_dropout=float(content.get("hidden_dropout_prob", 0.0)),
        attention_dropout=float(content.get("attention_probs_dropout_prob", 0.0)),
    )


def write_config(config: AidoRNAConfig) -> dict[str, Any]:
    """The whole config.json (spec 7.3): every key, because their class's defaults are those of no released model."""
    return {
        "add_linear_bias": config.bias,
        "architectures": ["RNABertForMaskedLM"],
        "attention_probs_dropout_prob": config.attention_dropout,
        "hidden_act": "swiglu",
        "hidden_dropout_prob": config.residual_dropout,
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn,
        "layer_norm_eps": NORM_EPS,
        "max_position_embeddings": 1024,
        "model_type": MODEL_TYPE,
        "normalization_type": {ours: theirs for theirs, ours in NORMS.items()}[config.norm],
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": 0,
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "seq_len_interpolation_factor": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": config.vocab,
    }


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """As `read_directory`, and also the `.bin` shards with an index that GenBio's largest model comes in."""
    index = directory / TORCH_INDEX
    if any(directory.glob("*.safetensors")) or not index.exists():
        return read_directory(directory)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} has no weight_map that says which file holds which tensor")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(".bin"):
            raise ModelError(f"{index} points to {name!r}, which is not a .bin file of the same directory")
        tensors |= read_tensors(directory / name)
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise ModelError(f"{index} promises {len(absent)} tensors that no shard holds, {absent[0]} first")
    return tensors
