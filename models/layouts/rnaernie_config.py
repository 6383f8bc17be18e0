"""RNAErnie's config.json and tokenizer_config.json as MultiMolecule writes them.

Source: RNAErnie specification 8. Tensors are the affair of `rnaernie.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.layouts import multimolecule
from models.layouts.reading import read_json
from models.layouts.rnaernie_rows import ADDED, STRIPPED
from models.rnaernie import NORM_EPS, TOKEN_TYPES, RNAErnieConfig

MODEL_TYPE = "rnaernie"


def read_config(path: Path, vocab: int) -> RNAErnieConfig:
    """RNAErnie's configuration, without pooler, out of a MultiMolecule config.json, with ``vocab`` tokens.

    Raises ModelError if it is of another kind of model, or of a conversion that is known to be wrong (spec 0.1, 8).
    """
    content = read_json(path)
    if content.get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path}: model_type is {content.get('model_type')!r} where {MODEL_TYPE!r} was expected")
    always = {"hidden_act": "relu", "layer_norm_eps": NORM_EPS, "position_embedding_type": "absolute"}
    always |= {"tie_word_embeddings": True, "type_vocab_size": TOKEN_TYPES, "is_decoder": False}
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but RNAErnie always has {value!r}")
    head = content.get("lm_head") or {}
    if head.get("transform_act", "relu") != "relu":
        raise ModelError(
            f"{path}: lm_head.transform_act is {head['transform_act']!r}, as MultiMolecule wrote before 0.2.0, when its"
            " conversion of RNAErnie left matrices untransposed; such weights are wrong, take a later release"
        )
    numbers = {}
    for ours, theirs in (
        ("layers", "num_hidden_layers"),
        ("width", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("ffn", "intermediate_size"),
        ("max_positions", "max_position_embeddings"),
    ):
        if not isinstance(content.get(theirs), int):
            raise ModelError(f"{path}: {theirs} must be a whole number, not {content.get(theirs)!r}")
        numbers[ours] = content[theirs]
    dropouts = {"attention_dropout": "attention_dropout", "residual_dropout": "hidden_dropout"}
    given = {ours: content[theirs] for ours, theirs in dropouts.items() if theirs in content}
    return RNAErnieConfig(vocab=vocab, **numbers, **given)


def write_config(config: RNAErnieConfig, tokens: int) -> dict[str, Any]:
    """The whole config.json (spec 8) of a directory with a vocabulary of ``tokens``."""
    head: dict[str, Any] = {"act": None, "bias": True, "dropout": 0.0, "hidden_size": None}
    head |= {"layer_norm_eps": NORM_EPS, "loss_weight": None, "num_labels": tokens, "output_name": None}
    head |= {"transform": "nonlinear", "transform_act": "relu"}
    return {
        "add_cross_attention": False,
        "architectures": ["RnaErnieForPreTraining"],
        "attention_dropout": config.attention_dropout,
        "bos_token_id": 1,
        "dtype": "float32",
        "eos_token_id": 2,
        "head": None,
        "hidden_act": "relu",
        "hidden_dropout": config.residual_dropout,
        "hidden_size": config.width,
        "id2label": None,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn,
        "is_decoder": False,
        "label2id": None,
        "layer_norm_eps": NORM_EPS,
        "lm_head": head,
        "mask_token_id": 4,
        "max_position_embeddings": config.max_positions,
        "model_type": MODEL_TYPE,
        "null_token_id": 5,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_labels": 1,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "type_vocab_size": TOKEN_TYPES,
        "unk_token_id": 3,
        "use_cache": True,
        "vocab_size": tokens,
    }


def tokenizer_config(config: RNAErnieConfig, tokens: int) -> dict[str, Any]:
    """tokenizer_config.json; with 57 ``tokens``, [IND] and the types are special tokens, each one token of a text.

    The length that the tokenizer may truncate to is the model's: longer rows fail in the position table (spec 8).
    """
    content = multimolecule.tokenizer_config() | {"model_max_length": config.max_tokens}
    if tokens <= len(STRIPPED):
        return content
    like = content["added_tokens_decoder"]["0"]
    content["added_tokens_decoder"] |= {str(28 + i): {**like, "content": token} for i, token in enumerate(ADDED)}
    return content | {"extra_special_tokens": [*ADDED, *content["extra_special_tokens"]]}
