"""AIDO.RNA in the layout of MultiMolecule 0.0.8, the only released version that has the model (26 tokens).

Source: AIDO.RNA specification 2.3, 7.1, 7.5 and 8 (b); no code of that library is used or needed. Their "U" is our T:
GenBio's models are trained on DNA, and their own converter keeps the row of U (id 9), which training never used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.aido_rna import NORM_EPS, AidoRNAConfig
from models.errors import ModelError
from models.layouts import huggingface
from models.layouts.aido_rna_table import (
    TOKENS,
    UNTRAINED,
    T,
    U,
    joined,
    refuse_rest,
    refuse_untied,
    released,
    require_vocabulary,
    rows,
    shapes,
)
from models.layouts.multimolecule import UNTRAINED_BIAS, read_vocabulary, tokenizer_config, vocabulary
from models.layouts.reading import read_directory, read_json
from models.layouts.releasing import WriteOptions

MODEL_TYPE = "aido.rna"
THEIR_TOKEN = {  # ours -> theirs; U, [BOS], [EOS] and [UNUSED*] have no counterpart
    **{"[PAD]": "<pad>", "[MASK]": "<mask>", "[CLS]": "<cls>", "[SEP]": "<eos>", "[UNK]": "<unk>"},
    **{"A": "A", "G": "G", "C": "C", "T": "U", "N": "N"},
}
AMBIGUOUS = {  # codes that stand for several letters, with U for T
    **{"R": "AG", "Y": "CU", "S": "CG", "W": "AU", "K": "GU", "M": "AC"},
    **{"B": "CGU", "D": "AGU", "H": "ACU", "V": "ACG", "X": "ACGU"},
}
PREFIXES = ("aido_rna.", "model.", "")  # of encoder names: 0.0.8, the last source before its removal, a bare encoder
# Names of ours -> of their config.json.
_SIZES = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
_SIZES |= {"ffn": "intermediate_size"}
_DROPOUTS = {"attention_dropout": "attention_dropout", "residual_dropout": "hidden_dropout"}


def expresses(config: AidoRNAConfig) -> bool:
    """Whether their class can be this model: it always has LayerNorm and biases, which the size 1m has not."""
    return config.norm == "layer" and config.bias


def to_multimolecule(
    state: dict[str, Tensor], config: AidoRNAConfig, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors in fp32) of a MultiMolecule 0.0.8 directory.

    Ambiguity codes get the mean of the rows that they stand for, so that they can be fed; other tokens without a
    counterpart N(0, 0.02), the same for the same ``seed``. The decoder bias of all that was never trained is -30, so
    that filling masks returns real letters only. Raises ModelError if their class cannot express the model.
    """
    require_vocabulary(config)
    if not expresses(config):
        raise ModelError(
            "MultiMolecule's AIDO.RNA always has LayerNorm and biases; this model (the size 1m has neither) cannot be"
            " released in its layout, so choose the other layouts"
        )
    theirs = vocabulary(26)
    ours_of = [(theirs.index(their), TOKENS.index(our)) for our, their in THEIR_TOKEN.items()]
    to, of = (list(x) for x in zip(*ours_of, strict=True))
    tensors: dict[str, Tensor] = {}
    for row in rows(config):
        x = released(state)[row.ours].float()
        if row.ours == "embed.weight":
            spread = torch.randn(26, x.shape[1], generator=torch.Generator().manual_seed(seed)) * 0.02
            spread[to] = x[of]
            for code, letters in AMBIGUOUS.items():
                spread[theirs.index(code)] = spread[[theirs.index(letter) for letter in letters]].mean(0)
            x = spread
        elif row.by_token:
            x = torch.full((26,), UNTRAINED_BIAS).index_copy(0, torch.tensor(to), x[of])
        for name, part in zip(row.multimolecule, x.chunk(len(row.multimolecule)), strict=True):
            tensors[name if name.startswith("lm_head.") else PREFIXES[0] + name] = part.clone()
    return write_config(config), tensors


def write(directory: Path, state: dict[str, Tensor], config: AidoRNAConfig, options: WriteOptions) -> Path:
    """Write config.json, the weights, tokenizer_config.json and vocab.txt."""
    content, tensors = to_multimolecule(state, config)
    content["torch_dtype"] = str(options.dtype).removeprefix("torch.")
    tensors = {name: x.to(options.dtype) for name, x in tensors.items()}
    huggingface.write_directory(
        directory, content, tensors, tokenizer_config(), list(vocabulary(26)), options.shard_bytes
    )
    return directory


def read(directory: Path) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """A directory of theirs -> (configuration, our state).

    Their row of U becomes that of T and of U; tokens that they lack get rows of zeros, and all that is never trained
    the bias -30. Raises ModelError naming file and key if something is missing, unknown or of another shape.
    """
    config, source = read_config(directory / "config.json"), str(directory)
    theirs = read_vocabulary(directory)
    absent = [token for token in THEIR_TOKEN.values() if token not in theirs]
    if absent:
        raise ModelError(f"{directory / 'vocab.txt'} lacks {', '.join(absent)}, so the weights cannot be read")
    tensors = read_directory(directory)
    prefix = next((p for p in PREFIXES if p + "embeddings.word_embeddings.weight" in tensors), PREFIXES[0])
    copies = {"lm_head.decoder.weight": prefix + "embeddings.word_embeddings.weight"}
    refuse_untied(tensors, copies | {"lm_head.decoder.bias": "lm_head.bias"}, source)
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    expected = shapes(config)
    for row in rows(config):
        names = tuple(name if name.startswith("lm_head.") else prefix + name for name in row.multimolecule)
        shape = [len(theirs), *expected[row.ours][1:]] if row.by_token else expected[row.ours]
        x = joined(tensors, names, source, shape)
        ours[row.ours] = _our_rows(x, theirs) if row.by_token else x
        used.update(names)
    refuse_rest([n for n in tensors.keys() - used if n.startswith(prefix + "encoder.")], source)
    return config, ours


def _our_rows(theirs_V: Tensor, tokens: list[str]) -> Tensor:
    """[V', ...] in the order of their ``tokens`` -> [16, ...] in ours."""
    fill = UNTRAINED_BIAS if theirs_V.dim() == 1 else 0.0
    ours = theirs_V.new_full((len(TOKENS), *theirs_V.shape[1:]), fill)
    for our, their in THEIR_TOKEN.items():
        ours[TOKENS.index(our)] = theirs_V[tokens.index(their)]
    if theirs_V.dim() == 1:
        ours[list(UNTRAINED)] = UNTRAINED_BIAS
    else:
        ours[U] = ours[T]
    return ours


def read_config(path: Path) -> AidoRNAConfig:
    """Our configuration out of their config.json; ModelError for what AIDO.RNA does not have."""
    content = read_json(path)
    always = {"hidden_act": "silu", "position_embedding_type": "rotary", "layer_norm_eps": NORM_EPS}
    for key, value in always.items():
        if content.get(key, value) != value:
            raise ModelError(f"{path}: {key} is {content[key]!r}, but AIDO.RNA always has {value!r}")
    for key in _SIZES.values():
        if not isinstance(content.get(key), int):
            raise ModelError(f"{path}: {key} must be a whole number, not {content.get(key)!r}")
    given = {ours: content[theirs] for ours, theirs in (_SIZES | _DROPOUTS).items() if theirs in content}
    return AidoRNAConfig(**given)


def write_config(config: AidoRNAConfig) -> dict[str, Any]:
    """The whole config.json (spec 7.5). The block `lm_head` is needed: without it, its norm has another eps."""
    head: dict[str, Any] = {"act": None, "bias": True, "dropout": 0.0, "hidden_size": None, "layer_norm_eps": NORM_EPS}
    head |= {"num_labels": 26, "output_name": None, "transform": "nonlinear", "transform_act": "gelu"}
    return {
        "architectures": ["AidoRnaForPreTraining"],
        **{theirs: getattr(config, ours) for ours, theirs in (_SIZES | _DROPOUTS).items()},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head": None,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_norm_eps": NORM_EPS,
        "lm_head": head,
        "mask_token_id": 4,
        "max_position_embeddings": 1024,
        "model_type": MODEL_TYPE,
        "null_token_id": 5,
        "num_labels": 1,
        "pad_token_id": 0,
        "position_embedding_type": "rotary",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "unk_token_id": 3,
        "use_cache": True,
        "vocab_size": 26,
    }
