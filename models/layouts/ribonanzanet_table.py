"""RibonanzaNet's tensors in three layouts, as one table: ours, the authors' files, MultiMolecule's directories.

Source: RibonanzaNet specification 8.1 and 8.3. No shape changes anywhere; ours only joins what shares an input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.ribonanzanet import RibonanzaNetConfig


@dataclass(frozen=True)
class Row:
    """One tensor: its name in each layout. Several names in one place are joined along dimension 0."""

    ours: str
    original: tuple[str, ...]
    multimolecule: tuple[str, ...]
    by_token: bool = False  # dimension 0 is the vocabulary


def _pair(
    ours: str, original: str | Iterable[str], theirs: str | Iterable[str], kinds: str = "weight bias"
) -> list[Row]:
    """Rows of the weight and bias of one layer; a layer that others split has several names."""
    originals, others = ((x,) if isinstance(x, str) else tuple(x) for x in (original, theirs))
    return [
        Row(f"{ours}.{kind}", tuple(f"{x}.{kind}" for x in originals), tuple(f"{x}.{kind}" for x in others))
        for kind in kinds.split()
    ]


def _triangle_update(ours: str, original: str, theirs: str) -> list[Row]:
    fields = ("left_proj", "right_proj", "left_gate", "right_gate", "out_gate")  # the order of our fused tensor
    return [
        *_pair(ours + "norm", original + "norm", theirs + "in_norm"),
        *_pair(ours + "proj", [original + x for x in fields], [theirs + x for x in fields]),
        *_pair(ours + "out_norm", original + "to_out_norm", theirs + "out_norm"),
        *_pair(ours + "out", original + "to_out", theirs + "out_proj"),
    ]


def _triangle_attention(ours: str, original: str, theirs: str) -> list[Row]:
    fields = [theirs + "triangle." + x for x in ("query", "key", "value")]
    return [
        *_pair(ours + "norm", original + "norm", theirs + "triangle.layer_norm"),
        *_pair(ours + "qkv", original + "to_qkv", fields, "weight"),
        *_pair(ours + "bias", original + "linear_for_pair", theirs + "triangle.pairwise_bias", "weight"),
        *_pair(ours + "gate", original + "to_gate.0", theirs + "triangle.gate"),
        *_pair(ours + "out", original + "to_out", theirs + "output.dense"),
    ]


def _block_rows(config: RibonanzaNetConfig, i: int) -> list[Row]:
    ours, original, theirs = f"blocks.{i}.", f"transformer_encoder.{i}.", f"model.encoder.layer.{i}."
    attn, pair = original + "self_attn.", theirs + "pairwise."
    second = _pair(ours + "second_norm", original + "norm1", theirs + "attention.output.layer_norm2")
    attention = []
    if config.triangle_attention:
        for mine, name in (("row", "out"), ("column", "in")):
            names = (f"{ours}pair.attention_{mine}.", f"{original}triangle_attention_{name}.")
            attention += _triangle_attention(*names, f"{pair}triangle_attention_{name}.")
    return [
        *_pair(ours + "conv", original + "conv", theirs + "conv"),
        *_pair(ours + "conv_norm", original + "norm3", theirs + "conv_norm"),
        *_pair(ours + "attn.bias_norm", original + "pairwise_norm", theirs + "pairwise_bias_norm"),
        *_pair(ours + "attn.bias", original + "pairwise2heads", theirs + "pairwise_bias_proj", "weight"),
        *_pair(
            ours + "attn.qkv",
            [attn + x for x in ("w_qs", "w_ks", "w_vs")],
            [theirs + "attention.self." + x for x in ("query", "key", "value")],
            "weight",
        ),
        *_pair(ours + "attn.out", attn + "fc", theirs + "attention.output.dense", "weight"),
        *_pair(ours + "attn_norm", attn + "layer_norm", theirs + "attention.output.layer_norm"),
        *(second if config.attention_residual == "double" else []),
        *_pair(ours + "up", original + "linear1", theirs + "intermediate.dense"),
        *_pair(ours + "down", original + "linear2", theirs + "output.dense"),
        *_pair(ours + "ffn_norm", original + "norm2", theirs + "output.layer_norm"),
        *_outer(ours + "pair.outer.", original, pair),
        *_triangle_update(ours + "pair.triangle_out.", original + "triangle_update_out.", pair + "triangle_mixer_out."),
        *_triangle_update(ours + "pair.triangle_in.", original + "triangle_update_in.", pair + "triangle_mixer_in."),
        *attention,
        *_pair(ours + "pair.transition.norm", original + "pair_transition.0", pair + "intermediate.layer_norm"),
        *_pair(ours + "pair.transition.up", original + "pair_transition.1", pair + "intermediate.dense"),
        *_pair(ours + "pair.transition.down", original + "pair_transition.3", pair + "output.dense"),
    ]


def _outer(ours: str, original: str, theirs: str) -> list[Row]:
    original, theirs = original + "outer_product_mean.", theirs + "triangle_proj."
    return [
        *_pair(ours + "down", original + "proj_down1", theirs + "in_proj"),
        *_pair(ours + "up", original + "proj_down2", theirs + "out_proj"),
    ]


def rows(config: RibonanzaNetConfig) -> list[Row]:
    """The whole table of a model."""
    pairwise = "model.encoder.pairwise_embeddings."
    return [
        Row("embed.weight", ("encoder.weight",), ("model.embeddings.word_embeddings.weight",), by_token=True),
        *_outer("outer.", "", pairwise),
        *_pair("position", "pos_encoder.linear", pairwise + "position_embeddings"),
        *_pair("head", "decoder", ("a3c_head.decoder", "dms_head.decoder")),
        *(row for i in range(config.layers) for row in _block_rows(config, i)),
    ]
