"""AIDO.RNA as a directory that plain transformers loads, with modelling code of our own inside it (`auto_map`).

Source: AIDO.RNA specification 8 (c). Nothing but transformers and torch is needed to load it, with
`trust_remote_code=True`. The tokenizer is data, not code: tokenizer.json folds case, U and white space and turns every
other letter into N, one token each.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.aido_rna import INIT_STD, AidoRNAConfig
from models.errors import ModelError
from models.layouts import huggingface
from models.layouts.aido_rna_table import TOKENS, joined, refuse_rest, released, require_vocabulary, shapes
from models.layouts.reading import read_directory, read_json
from models.layouts.releasing import WriteOptions

MODEL_TYPE = "aido_rna"
CODE = Path(__file__).parent / "remote_code" / "aido_rna"
CODE_FILES = ("configuration_aido_rna.py", "modeling_aido_rna.py")
FIELDS = {  # of our configuration -> of theirs
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "norm": "norm",
    "bias": "use_bias",
    "attention_dropout": "attention_dropout",
    "residual_dropout": "hidden_dropout",
}
SPECIALS = tuple(token for token in TOKENS if len(token) > 1)
_CLS, _SEP = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")

USAGE = """```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

# The model's code is part of this directory, hence trust_remote_code; nothing but transformers and torch is needed.
model = AutoModelForMaskedLM.from_pretrained("PATH_OR_ID", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID", trust_remote_code=True)
```

Sequences may be in either case and spell uracil U or T (the vocabulary has T); letters other than A, C, G, U and T are
read as N.
"""


def write(directory: Path, state: dict[str, Tensor], config: AidoRNAConfig, options: WriteOptions) -> Path:
    """Write config.json, the weights, the tokenizer, vocab.txt and the modelling code."""
    require_vocabulary(config)
    content = write_config(config) | {"dtype": str(options.dtype).removeprefix("torch.")}
    tensors = {_theirs(name): x.to(options.dtype) for name, x in released(state).items()}
    huggingface.write_directory(directory, content, tensors, tokenizer_config(), list(TOKENS), options.shard_bytes)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(), indent=2) + "\n", encoding="utf-8")
    for name in CODE_FILES:
        shutil.copyfile(CODE / name, directory / name)
    return directory


def read(directory: Path) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """A directory that `write` made, or that its class saved -> (configuration, our state).

    Raises ModelError if a field or tensor is missing, unknown or of another shape.
    """
    path, source = directory / "config.json", str(directory)
    content = read_json(path)
    absent = [theirs for theirs in FIELDS.values() if theirs not in content]
    if absent:
        raise ModelError(f"{path} has no {absent[0]}; the directory is not a complete AIDO.RNA release")
    config = AidoRNAConfig(**{ours: content[theirs] for ours, theirs in FIELDS.items()})
    require_vocabulary(config)
    tensors = read_directory(directory)
    expected = shapes(config)
    ours = {name: joined(tensors, (_theirs(name),), source, shape) for name, shape in expected.items()}
    refuse_rest([n for n in tensors.keys() - set(map(_theirs, expected)) if n.startswith("model.")], source)
    return config, ours


def _theirs(name: str) -> str:
    """transformers finds the encoder inside a larger model by a prefix."""
    return name if name.startswith("head.") else "model." + name


def write_config(config: AidoRNAConfig) -> dict[str, Any]:
    """The whole config.json but for the dtype."""
    published = replace(config, kernel="auto", checkpointing=False)
    return {
        "architectures": ["AidoRnaForMaskedLM"],
        "auto_map": {
            "AutoConfig": "configuration_aido_rna.AidoRnaConfig",
            "AutoModel": "modeling_aido_rna.AidoRnaModel",
            "AutoModelForMaskedLM": "modeling_aido_rna.AidoRnaForMaskedLM",
        },
        **{theirs: getattr(published, ours) for ours, theirs in FIELDS.items()},
        "initializer_range": INIT_STD,
        "max_position_embeddings": 1024,
        "model_type": MODEL_TYPE,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "tokenizer_class": "PreTrainedTokenizerFast",  # without it, pipelines of transformers 4 look for none
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json: any transformers makes a fast tokenizer of it and tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }


def tokenizer_json() -> dict[str, Any]:
    """tokenizer.json: `[CLS]` letters `[SEP]`, one token per letter, whatever follows it."""
    single = [_special("[CLS]"), _sequence("A"), _special("[SEP]")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": TOKENS.index(token), "content": token, **flags} for token in SPECIALS],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                _replace(r"\s+", ""),
                _replace("[^ACGTUacgtu]", "N"),  # before upper case, which would make two letters of some
                *(_replace(old, new) for old, new in (("a", "A"), ("c", "C"), ("g", "G"), ("[tuU]", "T"))),
            ],
        },
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, _sequence("B"), _special("[SEP]")],
            "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]} for token, i in (("[CLS]", _CLS), ("[SEP]", _SEP))
            },
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate(TOKENS)},
            "unk_token": "[UNK]",
        },
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}
