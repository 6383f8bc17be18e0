"""RNA-MSM's config.json as MultiMolecule writes it: read into our configuration, and written from it.

Source: RNA-MSM specification 8 and 9. Tensors are the affair of `rnamsm.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.layouts.reading import read_json
from models.rnamsm import MAX_ROWS, RNAMSMConfig

MODEL_TYPE = "rnamsm"
_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "max_positions": "max_position_embeddings",
}


def read_config(path: Path) -> RNAMSMConfig:
    """RNA-MSM's configuration out of a MultiMolecule config.json; ModelError if it is of another kind of model.

    An older release on the hub says layer_type "standard" and layer_norm_eps 1e-12, with which their own class cannot
    run an alignment; the model is axial with 1e-5 all the same, so neither key is asked for (spec 9, points 9 and 10).
    """
    content = read_json(path)
    if content.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path}: model_type is {content.get('model_type')!r} where {MODEL_TYPE!r} was expected")
    always = {"hidden_act": "gelu", "embed_positions_msa": True, "attention_bias": True, "attention_type": "standard"}
    always |= {"position_embedding_type": "absolute"}
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but RNA-MSM always has {value!r}")
    found: dict[str, Any] = {}
    for ours, theirs in _SIZES.items():
        value = content.get(theirs, MAX_ROWS if ours == "max_positions" else None)
        if not isinstance(value, int):
            raise ModelError(f"{path}: {theirs} must be a whole number, not {value!r}")
        found[ours] = value
    dropouts = {"attention_dropout": "attention_dropout", "residual_dropout": "hidden_dropout"}
    found |= {ours: float(content[theirs]) for ours, theirs in dropouts.items() if theirs in content}
    return RNAMSMConfig(**found)


def write_config(config: RNAMSMConfig, tokens: int) -> dict[str, Any]:
    """The whole config.json (spec 8) of a directory with a vocabulary of ``tokens``.

    Raises ModelError if the table of positions is not as long as that of rows: MultiMolecule has one number for both.
    """
    if config.max_positions != MAX_ROWS:
        raise ModelError(
            f"MultiMolecule's RNA-MSM has as many positions as rows, {MAX_ROWS}; model.max_positions is"
            f" {config.max_positions}"
        )
    head: dict[str, Any] = {"act": None, "bias": True, "dropout": 0.0, "hidden_size": None, "layer_norm_eps": 1e-5}
    head |= {"loss_weight": None, "num_labels": tokens, "output_name": None}
    head |= {"transform": "nonlinear", "transform_act": "gelu"}
    return {
        "add_cross_attention": False,
        "architectures": ["RnaMsmForMaskedLM"],
        "attention_bias": True,
        "attention_dropout": config.attention_dropout,
        "attention_type": "standard",
        "bos_token_id": 1,
        "dtype": "float32",
        "embed_positions_msa": True,
        "eos_token_id": 2,
        "head": None,
        "hidden_act": "gelu",
        "hidden_dropout": config.residual_dropout,
        "hidden_size": config.width,
        "id2label": None,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn,
        "is_decoder": False,
        "label2id": None,
        "layer_norm_eps": 1e-5,
        "layer_type": "axial",
        "lm_head": head,
        "mask_token_id": 4,
        "max_position_embeddings": config.max_positions,
        "max_tokens_per_msa": 2**14,
        "model_type": MODEL_TYPE,
        "null_token_id": 5,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_labels": 1,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "unk_token_id": 3,
        "use_cache": True,
        "vocab_size": tokens,
    }
