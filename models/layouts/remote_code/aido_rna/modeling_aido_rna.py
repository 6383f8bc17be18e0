"""AIDO.RNA for transformers, complete in this file. Part of rnafoundry; SPDX-License-Identifier: Apache-2.0.

A pre-norm encoder with rotary positions (half-split, base 10000) and SwiGLU feed-forward layers; the decoder of the
masked-language model is the embedding itself. Sequences of any length; padding is told by ``attention_mask``.
Attention weights are never stored, so there is no ``output_attentions``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_aido_rna import AidoRnaConfig

EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, cast back, then times the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def build_norm(config: AidoRnaConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, eps=EPS) if config.norm == "layer" else RMSNorm(config.hidden_size)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, H, L, D] by the angles [L, D/2]; computed in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=config.use_bias)
        self.out = nn.Linear(width, width, bias=config.use_bias)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, is_key: Tensor | None) -> Tensor:
        batch, length, width = h.shape
        # [B, L, 3, H, D] -> three times [B, H, L, D]
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            rotary(q, cos, sin), rotary(k, cos, sin), v, attn_mask=is_key, dropout_p=dropout
        )
        return self.out(out.transpose(1, 2).reshape(batch, length, width))


class SwiGLU(nn.Module):
    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__()
        self.swish = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.plain = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.down(F.silu(self.swish(z)) * self.plain(z))


class AidoRnaBlock(nn.Module):
    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__()
        self.attn_norm = build_norm(config)
        self.attn = SelfAttention(config)
        self.ffn_norm = build_norm(config)
        self.ffn = SwiGLU(config)
        self.drop = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, is_key: Tensor | None) -> Tensor:
        x = x + self.drop(self.attn(self.attn_norm(x), cos, sin, is_key))
        return x + self.drop(self.ffn(self.ffn_norm(x)))


class VocabularyBias(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias


class Head(nn.Module):
    """Everything of the language-model head but the decoder's matrix, which is the embedding."""

    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = build_norm(config)
        self.out = VocabularyBias(config.vocab_size)

    def forward(self, r: Tensor, embedding: Tensor) -> Tensor:
        return self.out(F.linear(self.norm(F.gelu(self.dense(r))), embedding))


class AidoRnaPreTrainedModel(PreTrainedModel):
    config_class = AidoRnaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["AidoRnaBlock"]  # noqa: RUF012 - a list, as transformers expects

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
            if getattr(module, "padding_idx", None) is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.LayerNorm, RMSNorm)):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class AidoRnaModel(AidoRnaPreTrainedModel):
    """The encoder: ids [B, L] -> representations [B, L, d], those of padding being meaningless."""

    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.drop = nn.Dropout(config.hidden_dropout)
        self.blocks = nn.ModuleList(AidoRnaBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """``attention_mask`` [B, L]: 1 at tokens and 0 at padding. Other keywords, such as token types, are ignored.

        With ``output_hidden_states`` there is one for the embedding and one per block, the last one normalised.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.drop(self.embed(input_ids) if inputs_embeds is None else inputs_embeds)
        is_key = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        frequency = 10000.0 ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * frequency[None, :]
        cos, sin = angle.cos(), angle.sin()
        states = [x]
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x, cos, sin, is_key)
            else:
                x = block(x, cos, sin, is_key)
            states.append(x)
        x = states[-1] = self.final_norm(x)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutput(last_hidden_state=x, hidden_states=tuple(states) if wanted else None)
        return output.to_tuple() if return_dict is False else output


class AidoRnaForMaskedLM(AidoRnaPreTrainedModel):
    """The encoder and the language-model head: logits [B, L, V], and the loss where ``labels`` are not -100."""

    def __init__(self, config: AidoRnaConfig) -> None:
        super().__init__(config)
        self.model = AidoRnaModel(config)
        self.head = Head(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        encoded = self.model(input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict=True)
        logits = self.head(encoded.last_hidden_state, self.model.embed.weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.view(-1))
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return output.to_tuple() if return_dict is False else output
