"""RiNALMo's config.json as MultiMolecule writes it: read into our configuration, and written from it.

Source: RiNALMo specification 8.2. Tensors are the affair of `rinalmo.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.layouts.reading import read_json
from models.rinalmo import RiNALMoConfig

MODEL_TYPE = "rinalmo"


def read_config(path: Path) -> RiNALMoConfig:
    """RiNALMo's configuration out of a MultiMolecule config.json; ModelError if it is of another kind of model."""
    content = read_json(path)
    if content.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path}: model_type is {content.get('model_type')!r} where {MODEL_TYPE!r} was expected")
    always = {"token_dropout": True, "learnable_beta": True, "position_embedding_type": "rotary"}
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but RiNALMo always has {value!r}")
    numbers = {}
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        if not isinstance(content.get(key), int):
            raise ModelError(f"{path}: {key} must be a whole number, not {content.get(key)!r}")
        numbers[key] = content[key]
    layers, width, heads, intermediate = numbers.values()
    dropouts = {"attention_dropout": "attention_dropout", "residual_dropout": "hidden_dropout"}
    given = {ours: content[theirs] for ours, theirs in dropouts.items() if theirs in content}
    return RiNALMoConfig(layers=layers, width=width, heads=heads, ffn=int(2 / 3 * intermediate), **given)


def write_config(config: RiNALMoConfig, tokens: int) -> dict[str, Any]:
    """The whole config.json (spec 8.2) of a directory with a vocabulary of ``tokens``."""
    # Their class computes its inner width as int(2/3 · intermediate_size): find the number that gives ours.
    candidates = (4 * config.width, math.ceil(1.5 * config.ffn), math.ceil(1.5 * config.ffn) + 1)
    intermediate = next(n for n in candidates if int(2 / 3 * n) == config.ffn)
    head: dict[str, Any] = {"act": None, "bias": True, "dropout": 0.0, "hidden_size": None, "layer_norm_eps": 1e-5}
    head |= {"loss_weight": None, "num_labels": tokens, "output_name": None}
    head |= {"transform": "nonlinear", "transform_act": "gelu"}
    return {
        "add_cross_attention": False,
        "architectures": ["RiNALMoForPreTraining"],
        "attention_dropout": config.attention_dropout,
        "bos_token_id": 1,
        "dtype": "float32",
        "eos_token_id": 2,
        "head": None,
        "hidden_act": "gelu",
        "hidden_dropout": config.residual_dropout,
        "hidden_size": config.width,
        "id2label": None,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "is_decoder": False,
        "label2id": None,
        "layer_norm_eps": 1e-5,
        "learnable_beta": True,
        "lm_head": head,
        "mask_token_id": 4,
        "max_position_embeddings": 1024,
        "model_type": MODEL_TYPE,
        "null_token_id": 5,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_labels": 1,
        "pad_token_id": 0,
        "position_embedding_type": "rotary",
        "tie_word_embeddings": False,
        "token_dropout": True,
        "transformers_version": "5.23.0",
        "unk_token_id": 3,
        "use_cache": True,
        "vocab_size": tokens,
    }
