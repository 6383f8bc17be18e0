"""AIDO.RNA's forward pass written a second time, plainly: a padded batch, einsum, complex rotations, nothing shared.

The formulas of specs/aido_rna 1.2, and nothing of models/aido_rna.py. `dropout(x, p)` is called where the authors drop.
"""

import torch


def keep_all(x, p):
    return x


def rotate(x_BHLD):
    """Half-split rotary positions as a multiplication of complex numbers."""
    half = x_BHLD.shape[-1] // 2
    turns = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(x_BHLD.shape[-2], dtype=torch.float64), turns)
    z = torch.complex(x_BHLD[..., :half].double(), x_BHLD[..., half:].double()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((z.real, z.imag), -1).to(x_BHLD.dtype)


def reference(state, config, ids_BL, dropout=keep_all):
    """(logits [B, L, V], hidden [B, L, d]) of ids padded with 0, from a state with our names; ignore padding's."""
    is_real = ids_BL != 0

    def norm(x, name):
        if config.norm == "rms":
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[name + ".weight"]
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[name + ".weight"] + state[name + ".bias"]

    def linear(x, name):
        out = torch.einsum("...i,oi->...o", x, state[name + ".weight"])
        return out + state[name + ".bias"] if name + ".bias" in state else out

    def split(x):
        return x.unflatten(-1, (config.heads, -1)).transpose(1, 2)

    x = dropout(state["embed.weight"][ids_BL], config.residual_dropout)
    for i in range(config.layers):
        b = f"blocks.{i}."
        q, k, v = (split(part) for part in linear(norm(x, b + "attn_norm"), b + "attn.qkv").chunk(3, -1))
        scores = torch.einsum("bhqd,bhkd->bhqk", rotate(q), rotate(k)) / config.head_dim**0.5
        weights = scores.masked_fill(~is_real[:, None, None, :], -torch.inf).softmax(-1)
        attended = torch.einsum("bhqk,bhkd->bhqd", weights, v).transpose(1, 2).flatten(2)
        a = x + dropout(linear(attended, b + "attn.out"), config.residual_dropout)
        z = norm(a, b + "ffn_norm")
        u = linear(z, b + "ffn.swish")
        gated = u / (1 + torch.exp(-u)) * linear(z, b + "ffn.plain")
        x = a + dropout(linear(gated, b + "ffn.down"), config.residual_dropout)
    r = norm(x, "final_norm")
    t = linear(r, "head.dense")
    t = norm(0.5 * t * (1 + torch.erf(t / 2**0.5)), "head.norm")
    return torch.einsum("...d,vd->...v", t, state["embed.weight"]) + state["head.out.bias"], r
