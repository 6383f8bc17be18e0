"""RibonanzaNet's config.json and tokenizer_config.json as MultiMolecule 0.2.2 reads them: read and written.

Source: RibonanzaNet specification 9. Tensors are the affair of `ribonanzanet.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.layouts import multimolecule
from models.layouts.reading import read_json
from models.ribonanzanet import RibonanzaNetConfig

MODEL_TYPE = "ribonanzanet"
REACH = 8  # of relative positions, fixed in their class
LAYER_NORM_EPS = 1e-5  # theirs is one number for all norms; the model's one norm with 1e-6 differs negligibly

_NUMBERS = {  # ours -> theirs
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "pair": "pairwise_size",
    "outer": "pairwise_attention_size",
    "kernel_size": "kernel_size",
    "triangle_heads": "pairwise_num_attention_heads",
}
_DEFAULTS = {  # what their class takes for a key that is absent (the published config.json leaves many out)
    "num_hidden_layers": 9,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "pairwise_size": 64,
    "pairwise_attention_size": 32,
    "kernel_size": 5,
    "pairwise_num_attention_heads": 4,
}


def read_config(path: Path) -> RibonanzaNetConfig:
    """RibonanzaNet's configuration out of a MultiMolecule config.json; ModelError if it is of another kind of model.

    Their two ways of treating padding are our ``fixed`` (fix_attention_mask) and ``signed``, which the published files
    have. A tokenizer with <cls> and <eos> does not make them letters of the model: the published ones never
    learned them.
    """
    content = read_json(path)
    if content.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path}: model_type is {content.get('model_type')!r} where {MODEL_TYPE!r} was expected")
    always = {"hidden_act": "gelu", "pairwise_hidden_act": "relu"}
    always["pairwise_intermediate_size"] = 4 * content.get("pairwise_size", _DEFAULTS["pairwise_size"])
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but RibonanzaNet has {value!r}")
    numbers = {}
    for ours, theirs in _NUMBERS.items():
        numbers[ours] = content.get(theirs, _DEFAULTS[theirs])
        if not isinstance(numbers[ours], int):
            raise ModelError(f"{path}: {theirs} must be a whole number, not {numbers[ours]!r}")
    return RibonanzaNetConfig(
        **numbers,
        triangle_attention=bool(content.get("use_triangular_attention", False)),
        dropout=content.get("hidden_dropout", 0.05),
        attention_dropout=content.get("attention_dropout", 0.05),
        attention_residual="single" if content.get("fix_attention_residual") else "double",
        mask_mode="fixed" if content.get("fix_attention_mask") else "signed",
        pair_dropout_in_axis="column" if content.get("fix_pairwise_dropout") else "row",
        special_tokens=content.get("cls_token_id") is not None and content.get("rnafoundry_special_tokens", False),
    )


def write_config(config: RibonanzaNetConfig, tokens: int) -> dict[str, Any]:
    """The whole config.json of a directory with a vocabulary of ``tokens``.

    Raises ModelError for a model that their class cannot express. The mask modes ``none`` and ``zero_logit`` exist
    nowhere in it; without padding all modes agree, so these are written as ``fixed``.
    """
    refused = {
        "reach": (config.reach, REACH),
        "channels": (config.channels, 2),
    }
    for name, (value, theirs) in refused.items():
        if value != theirs:
            raise ModelError(f"MultiMolecule's RibonanzaNet has {name} {theirs}, but this model has {value}")
    content: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in _NUMBERS.items()}
    special = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2} if config.special_tokens else {}
    if config.mask_mode == "signed":  # their other attention implementations drop a part of this rule
        content["attn_implementation"] = "eager"
    return content | {
        "architectures": ["RibonanzaNetForPreTraining"],
        "attention_dropout": config.attention_dropout,
        "bos_token_id": None,
        "cls_token_id": None,
        "dtype": "float32",
        "eos_token_id": None,
        "fix_attention_mask": config.mask_mode != "signed",
        "fix_attention_residual": config.attention_residual == "single",
        "fix_pairwise_dropout": config.pair_dropout_in_axis == "column",
        "head": None,
        "hidden_act": "gelu",
        "hidden_dropout": config.dropout,
        "initializer_range": 0.02,
        "layer_norm_eps": LAYER_NORM_EPS,
        "mask_token_id": 4,
        "model_type": MODEL_TYPE,
        "null_token_id": 5,
        "num_labels": 1,
        "output_pairwise_states": False,
        "pad_token_id": 0,
        "pairwise_hidden_act": "relu",
        "pairwise_intermediate_size": 4 * config.pair,
        "rnafoundry_special_tokens": config.special_tokens,
        "tie_word_embeddings": False,
        "transformers_version": "5.23.0",
        "type_vocab_size": 2,
        "unk_token_id": 3,
        "use_triangular_attention": config.triangle_attention,
        "vocab_size": tokens,
        **special,
    }


def tokenizer_config(config: RibonanzaNetConfig) -> dict[str, Any]:
    """tokenizer_config.json: one nucleotide per token, and no <cls> and <eos> unless the model was trained with them.

    Their default tokenizer adds both, which shifts and disturbs every output of a model that never saw them (spec 9).
    """
    content = multimolecule.tokenizer_config()
    if not config.special_tokens:
        content |= dict.fromkeys(("bos_token", "cls_token", "eos_token", "sep_token"))
    return content
