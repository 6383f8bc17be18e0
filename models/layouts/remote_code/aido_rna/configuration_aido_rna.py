"""Configuration of AIDO.RNA for transformers. Part of rnafoundry; SPDX-License-Identifier: Apache-2.0."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class AidoRnaConfig(PretrainedConfig):
    """Sizes of the model; ``norm`` is "layer" or "rms", ``use_bias``: have the linear layers of the blocks a bias.

    Defaults are those of the 650M model. The vocabulary spells uracil T.
    """

    model_type = "aido_rna"

    def __init__(
        self,
        vocab_size: int = 16,
        hidden_size: int = 1280,
        num_hidden_layers: int = 33,
        num_attention_heads: int = 20,
        intermediate_size: int = 3392,
        norm: str = "layer",
        use_bias: bool = True,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.norm = norm
        self.use_bias = use_bias
        self.attention_dropout = attention_dropout
        self.hidden_dropout = hidden_dropout
        self.initializer_range = initializer_range
        super().__init__(pad_token_id=pad_token_id, **kwargs)
