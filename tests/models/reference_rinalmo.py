"""RiNALMo's forward pass written a second time, plainly: one sequence at a time, loops over heads, nothing shared.

The formulas of specs/rinalmo 1.2 and 1.3, and nothing of models/rinalmo.py. `dropout(x, p)` is called at the three
places where the authors drop, so that a test can put a deterministic function there.
"""

import math

import torch
from torch.nn.functional import layer_norm


def keep_all(x, p):
    return x


def rotate(x_LD):
    length, dim = x_LD.shape
    half = dim // 2
    out = torch.empty_like(x_LD)
    for j in range(half):
        angle = torch.arange(length, dtype=torch.float64) * 10000.0 ** (-2 * j / dim)
        cos, sin = angle.cos().to(x_LD.dtype), angle.sin().to(x_LD.dtype)
        out[:, j] = x_LD[:, j] * cos - x_LD[:, j + half] * sin
        out[:, j + half] = x_LD[:, j + half] * cos + x_LD[:, j] * sin
    return out


def attend(q_LD, k_LD, v_LD):
    weights = torch.softmax(q_LD @ k_LD.T / math.sqrt(q_LD.shape[1]), dim=-1)
    return weights @ v_LD


def reference_logits(state, config, ids, dropout=keep_all, normalised_residual=True):
    """Logits [L, V] of one sequence of token ids [L], from a state with our names."""

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], 1e-5)

    def linear(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    masked = ids == 4
    ratio = masked.double().mean().item()
    x = state["embed.weight"][ids] * (~masked)[:, None] * (0.88 / (1 - ratio) if ratio < 1 else 1.0)
    for i in range(config.layers):
        b = f"blocks.{i}."
        h = norm(x, b + "attn_norm")
        q, k, v = (h @ w.T for w in state[b + "attn.qkv.weight"].chunk(3))
        heads = []
        for n in range(config.heads):
            part = slice(n * config.head_dim, (n + 1) * config.head_dim)
            heads.append(attend(rotate(q[:, part]), rotate(k[:, part]), v[:, part]))
        attended = torch.cat(heads, dim=-1) @ state[b + "attn.out.weight"].T
        a = (h if normalised_residual else x) + dropout(attended, config.residual_dropout)
        z = norm(a, b + "ffn_norm")
        u, p = linear(z, b + "ffn.swish"), linear(z, b + "ffn.plain")
        g = u * torch.sigmoid(state[b + "ffn.beta"] * u) * p
        g = dropout(g, config.transition_dropout)
        x = a + dropout(linear(g, b + "ffn.down"), config.residual_dropout)
    r = norm(x, "final_norm")
    t = linear(r, "head.dense")
    t = 0.5 * t * (1 + torch.erf(t / math.sqrt(2)))
    return linear(norm(t, "head.norm"), "head.out")
