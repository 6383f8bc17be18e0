"""AIDO.RNA's tensor names as one table: ours, GenBio's class, MultiMolecule 0.0.8's; and the rows that never train.

Source: AIDO.RNA specification 2 and 7. The layouts themselves are in `aido_rna_genbio.py`,
`aido_rna_multimolecule.py` and `aido_rna_transformers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.aido_rna import AidoRNA, AidoRNAConfig
from models.errors import ModelError
from models.layouts.multimolecule import UNTRAINED_BIAS

TOKENS = (  # ids 0 to 15 (spec 2.1): the order of the letters is A, G, C, T
    *("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *"AGCTUN", "[BOS]", "[EOS]"),
    *("[UNUSED1]", "[UNUSED2]", "[UNUSED3]"),
)
T, U = TOKENS.index("T"), TOKENS.index("U")
# Tokens that are neither in a training row nor an answer: sequences are spelled with T, packed rows have no padding.
UNTRAINED = tuple(
    TOKENS.index(t) for t in ("[PAD]", "[UNK]", "U", "[BOS]", "[EOS]", "[UNUSED1]", "[UNUSED2]", "[UNUSED3]")
)


@dataclass(frozen=True)
class Row:
    """One tensor: its name in each layout. Several names in one place are joined along dimension 0."""

    ours: str
    genbio: tuple[str, ...]
    multimolecule: tuple[str, ...]  # names in front of "lm_head." carry a prefix
    by_token: bool = False  # dimension 0 is the vocabulary


def _pairs(ours: str, genbio: str, multimolecule: str) -> tuple[Row, ...]:
    return tuple(Row(f"{ours}.{x}", (f"{genbio}.{x}",), (f"{multimolecule}.{x}",)) for x in ("weight", "bias"))


_GENBIO, _MM = "bert.encoder.layer.{i}.", "encoder.layer.{i}."
_QKV = ("query", "key", "value")
BLOCK_ROWS = (
    *_pairs("blocks.{i}.attn_norm", _GENBIO + "attention.ln", _MM + "attention.layer_norm"),
    *(
        Row(
            f"blocks.{{i}}.attn.qkv.{x}",
            tuple(f"{_GENBIO}attention.self.{part}.{x}" for part in _QKV),
            tuple(f"{_MM}attention.self.{part}.{x}" for part in _QKV),
        )
        for x in ("weight", "bias")
    ),
    *_pairs("blocks.{i}.attn.out", _GENBIO + "attention.output.dense", _MM + "attention.output.dense"),
    *_pairs("blocks.{i}.ffn_norm", _GENBIO + "ln", _MM + "layer_norm"),
    # MultiMolecule calls the SiLU branch dense and the plain one gate: the reverse of GenBio's gate and up.
    *_pairs("blocks.{i}.ffn.swish", _GENBIO + "mlp.gate_proj", _MM + "intermediate.dense"),
    *_pairs("blocks.{i}.ffn.plain", _GENBIO + "mlp.up_proj", _MM + "intermediate.gate"),
    *_pairs("blocks.{i}.ffn.down", _GENBIO + "mlp.down_proj", _MM + "output.dense"),
)
OUTER_ROWS = (
    Row(
        "embed.weight",
        ("bert.embeddings.word_embeddings.weight",),
        ("embeddings.word_embeddings.weight",),
        by_token=True,
    ),
    *_pairs("final_norm", "bert.encoder.ln", "encoder.layer_norm"),
    *_pairs("head.dense", "cls.predictions.transform.dense", "lm_head.transform.dense"),
    *_pairs("head.norm", "cls.predictions.transform.LayerNorm", "lm_head.transform.layer_norm"),
    Row("head.out.bias", ("cls.predictions.bias",), ("lm_head.bias",), by_token=True),
)


def rows(config: AidoRNAConfig) -> list[Row]:
    """The table of one model: with RMSNorm or without biases, some tensors do not exist."""

    def at(row: Row, i: int) -> Row:
        genbio, multimolecule = (tuple(n.format(i=i) for n in names) for names in (row.genbio, row.multimolecule))
        return Row(row.ours.format(i=i), genbio, multimolecule)

    exist = shapes(config)
    table = [*OUTER_ROWS, *(at(row, i) for i in range(config.layers) for row in BLOCK_ROWS)]
    return [row for row in table if row.ours in exist]


def shapes(config: AidoRNAConfig) -> dict[str, list[int]]:
    """The shape of every tensor of ours, from the module itself."""
    with torch.device("meta"):
        return {name: list(x.shape) for name, x in AidoRNA(config).state_dict().items()}


def require_vocabulary(config: AidoRNAConfig) -> None:
    """Raises ModelError if the model has not the 16 tokens, which every layout here presupposes."""
    if config.vocab != len(TOKENS):
        raise ModelError(f"the model has {config.vocab} tokens where AIDO.RNA's vocabulary has {len(TOKENS)}")


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` as it is published: U can be fed, and only what was trained is predicted (spec 8).

    The row of U, which training on T never used, becomes that of T; the bias of every token that was never trained
    becomes -30. Idempotent; nothing else changes.
    """
    embed, bias = state["embed.weight"].clone(), state["head.out.bias"].clone()
    embed[U] = embed[T]
    bias[list(UNTRAINED)] = UNTRAINED_BIAS
    return state | {"embed.weight": embed, "head.out.bias": bias}


def joined(state: dict[str, Tensor], names: tuple[str, ...], source: str, shape: list[int]) -> Tensor:
    """The tensors ``names`` joined along dimension 0, in fp32; together they must have ``shape``."""
    for name in names:
        if name not in state:
            raise ModelError(
                f"{source} has no tensor {name}, which an AIDO.RNA of this configuration has; it is incomplete, or"
                f" holds another model (its {len(state)} tensors start with {', '.join(sorted(state)[:3])})"
            )
        found = list(state[name].shape)
        if found != [shape[0] // len(names), *shape[1:]]:
            raise ModelError(
                f"{source}: {name} has shape {found} where an AIDO.RNA of the file's own sizes has"
                f" {[shape[0] // len(names), *shape[1:]]}"
            )
    return torch.cat([state[name] for name in names]).float()


def refuse_rest(rest: list[str], source: str) -> None:
    """Raises ModelError if tensors of the encoder are left over."""
    if rest:
        raise ModelError(
            f"{source} has {len(rest)} encoder tensors that an AIDO.RNA of this configuration does not have,"
            f" {min(rest)} first; reading on would drop them in silence"
        )


def refuse_untied(state: dict[str, Tensor], copies: dict[str, str], source: str) -> None:
    """Raises ModelError if a tied copy (name -> name of what it copies) in ``state`` differs from its original."""
    for name, original in copies.items():
        if name in state and original in state and not torch.equal(state[name], state[original]):
            raise ModelError(
                f"{source}: {name} differs from {original}, but AIDO.RNA's decoder is its embedding; the weights were"
                " untied, which this model cannot express"
            )
