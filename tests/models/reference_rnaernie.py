"""RNAErnie's forward pass written a second time, plainly: a padded batch, a 0/1 mask, loops over heads, nothing shared.

The formulas of the RNAErnie specification 1, and nothing of models/rnaernie.py. `dropout(x, p)` is called where the
original drops, so that a test can put a deterministic function there.
"""

import math

import torch
from torch.nn.functional import layer_norm


def keep_all(x, p):
    return x


def padded(rows):
    """(ids [B, L] with 0 as padding, mask [B, L] of 0 and 1) of token rows."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=0)
    return ids, torch.nn.utils.rnn.pad_sequence([torch.ones(len(r)) for r in rows], batch_first=True)


def reference_logits(state, config, rows, dropout=keep_all):
    """(logits [T, V], representation [T, d], pooled [B, d] or None) of token rows, padding cut off again."""

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], 1e-12)

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    ids, mask = padded(rows)
    blocked = ((1 - mask) * -1e4).to(state["embed.weight"].dtype)[:, None, :]  # [B, 1, L]: keys
    batch, length = ids.shape
    position = torch.arange(length).expand(batch, length)
    types = torch.zeros_like(ids)
    x = state["embed.weight"][ids] + state["positions.weight"][position] + state["token_type.weight"][types]
    x = dropout(norm(x, "embed_norm"), config.residual_dropout)
    size = config.width // config.heads
    for i in range(config.layers):
        b = f"blocks.{i}."
        q, k, v = linear(x, b + "attn.qkv").chunk(3, dim=-1)
        heads = []
        for n in range(config.heads):
            part = slice(n * size, (n + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size) + blocked
            heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
        attended = linear(torch.cat(heads, dim=-1), b + "attn.out")
        a = norm(x + dropout(attended, config.residual_dropout), b + "attn_norm")
        fed = linear(linear(a, b + "ffn.up").clamp(min=0), b + "ffn.down")
        x = norm(a + dropout(fed, config.residual_dropout), b + "ffn_norm")
    t = norm(linear(x, "head.dense").clamp(min=0), "head.norm")
    logits = t @ state["embed.weight"].T + state["head.out.bias"]
    pooled = torch.tanh(linear(x[:, 0], "pooler")) if "pooler.weight" in state else None
    return logits[mask.bool()], x[mask.bool()], pooled
