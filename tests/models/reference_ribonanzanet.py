"""RibonanzaNet's forward pass written a second time, plainly: one sequence at a time, no padding, nothing shared.

The formulas of the RibonanzaNet spec, 1.3, under the authors' names of tensors (spec 8.1) and nothing of
models/ribonanzanet.py. `dropout(x, p)` is called where the authors drop, in their order, so that a test can put a
deterministic function there.
"""

import math

import torch
from torch.nn.functional import layer_norm


def keep_all(x, p):
    return x


def fill(shapes):
    """Weights for a dictionary of names and shapes, the same everywhere: no generator, only sines of the place.

    Norms' weights around 1, the padding letter's embedding zero. Every tensor differs from every other.
    """
    state = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        place = torch.arange(math.prod(shape), dtype=torch.float64)
        x = torch.sin((place + 1) * (1.7 + 0.618 * k) + 0.3 * torch.sin(place * 0.11 + k))
        is_norm_weight = ("norm" in name and name.endswith("weight")) or name.endswith("pair_transition.0.weight")
        scale = 0.3 if len(shape) == 1 else 1.5 * math.prod(shape[1:]) ** -0.5
        x = (x * scale + is_norm_weight).reshape(shape)
        if name == "encoder.weight":
            x = x / scale
            x[4] = 0
        state[name] = x.float()
    return state


def reference_outputs(state, config, ids, dropout=keep_all):
    """Outputs [L, channels] of one sequence of ids [L], from a state with the authors' names in fp64."""

    def norm(x, name, eps=1e-5):
        return layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)

    def linear(x, name):
        y = x @ state[name + ".weight"].T
        return y + state[name + ".bias"] if name + ".bias" in state else y

    def outer(s, prefix):
        x = linear(s, prefix + "outer_product_mean.proj_down1")
        product = torch.einsum("id,jc->ijcd", x, x).flatten(2)
        return linear(product, prefix + "outer_product_mean.proj_down2")

    def along(z, rate, axis):
        shape = list(z.shape)
        shape[axis] = 1
        return z * dropout(z.new_ones([1, *shape]), rate)[0]

    def update(z, name, outgoing):
        x = norm(z, name + "norm")
        left = linear(x, name + "left_proj") * torch.sigmoid(linear(x, name + "left_gate"))
        right = linear(x, name + "right_proj") * torch.sigmoid(linear(x, name + "right_gate"))
        o = torch.einsum("ikd,jkd->ijd" if outgoing else "kjd,kid->ijd", left, right)
        return linear(norm(o, name + "to_out_norm") * torch.sigmoid(linear(x, name + "out_gate")), name + "to_out")

    def triangle_attention(z, name, by_row):
        x = norm(z, name + "norm")
        q, k, v = linear(x, name + "to_qkv").chunk(3, -1)
        bias = linear(x, name + "linear_for_pair")  # [i, j, h]
        size = q.shape[-1] // config.triangle_heads
        out = torch.zeros_like(q)
        for h in range(config.triangle_heads):
            part = slice(h * size, (h + 1) * size)
            for r in range(len(z)):
                line = (r, slice(None), part) if by_row else (slice(None), r, part)
                weights = torch.softmax(q[line] @ k[line].T / math.sqrt(size) + bias[:, :, h], -1)
                out[line] = weights @ v[line]
        return linear(torch.sigmoid(linear(x, name + "to_gate.0")) * out, name + "to_out")

    length = len(ids)
    s = state["encoder.weight"][ids]
    offset = (torch.arange(length)[:, None] - torch.arange(length)[None, :]).clamp(-config.reach, config.reach)
    bins = torch.arange(-config.reach, config.reach + 1)
    one_hot = (offset[..., None] == bins).to(s.dtype)
    z = outer(s, "") + linear(one_hot, "pos_encoder.linear")
    for i in range(config.layers):
        b = f"transformer_encoder.{i}."
        kernel = state[b + "conv.weight"]  # [out, in, k]
        half = kernel.shape[2] // 2
        padded = torch.cat((s.new_zeros(half, s.shape[1]), s, s.new_zeros(half, s.shape[1])))
        conv = sum(padded[t : t + length] @ kernel[:, :, t].T for t in range(kernel.shape[2]))
        s = norm(s + conv + state[b + "conv.bias"], b + "norm3")
        bias = linear(norm(z, b + "pairwise_norm"), b + "pairwise2heads")
        q, k, v = (linear(s, b + "self_attn." + name) for name in ("w_qs", "w_ks", "w_vs"))
        size = config.width // config.heads
        parts = [slice(h * size, (h + 1) * size) for h in range(config.heads)]
        logits = [q[:, p] @ k[:, p].T / math.sqrt(size) + bias[:, :, h] for h, p in enumerate(parts)]
        weights = dropout(torch.softmax(torch.stack(logits), -1)[None], config.attention_dropout)[0]
        heads = torch.cat([weights[h] @ v[:, p] for h, p in enumerate(parts)], -1)
        attended = dropout(linear(heads, b + "self_attn.fc")[None], config.dropout)[0]
        a = norm(s + attended, b + "self_attn.layer_norm", 1e-6)
        s = norm(s + dropout(a[None], config.dropout)[0], b + "norm1") if config.attention_residual == "double" else a
        inner = linear(s, b + "linear1")
        inner = dropout((0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))[None], config.dropout)[0]
        s = norm(s + dropout(linear(inner, b + "linear2")[None], config.dropout)[0], b + "norm2")
        z = z + outer(s, b)
        z = z + along(update(z, b + "triangle_update_out.", True), config.dropout, 0)
        shared = 0 if config.pair_dropout_in_axis == "row" else 1
        z = z + along(update(z, b + "triangle_update_in.", False), config.dropout, shared)
        if config.triangle_attention:
            z = z + along(triangle_attention(z, b + "triangle_attention_out.", True), config.dropout, 0)
            z = z + along(triangle_attention(z, b + "triangle_attention_in.", False), config.dropout, 1)
        inner = linear(norm(z, b + "pair_transition.0"), b + "pair_transition.1")
        z = z + linear(inner.clamp(min=0), b + "pair_transition.3")
    return linear(s, "decoder") + 0 * z.mean()
