"""RNA-MSM's forward pass written a second time, plainly: one unpadded alignment, loops over heads, rows and columns.

The formulas of the RNA-MSM specification 1.1, and nothing of models/rnamsm.py or its layers. The row embedding is
added, as the authors do, so that a test shows that leaving it out changes nothing.
"""

import math

import torch
from torch.nn.functional import layer_norm


def reference(state, config, tokens_RL):
    """(logits [R, L, V], row maps [layers * heads, L, L], representation [R, L, d]) from a state with our names."""

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[name + "_weight"], state[name + "_bias"], 1e-5)

    def parts(x, name):
        return x @ state[name + "_weight"].T + state[name + "_bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    rows, columns = tokens_RL.shape
    size = config.width // config.heads
    x = state["embed.weight"][tokens_RL] + state["stem.position"][2 : columns + 2]
    x = x + state["stem.row"][:rows, None, None]
    x = layer_norm(x, x.shape[-1:], state["stem.norm.weight"], state["stem.norm.bias"], 1e-5)
    maps = []
    for i in range(config.layers):
        b = f"blocks.{i}."
        q, k, v = parts(norm(x, b + "row.norm"), b + "row.qkv").chunk(3, dim=-1)
        heads = []
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            scores = sum(q[r, :, part] @ k[r, :, part].T for r in range(rows)) / math.sqrt(size) / math.sqrt(rows)
            maps.append(torch.softmax(scores, dim=-1))
            heads.append(torch.stack([maps[-1] @ v[r, :, part] for r in range(rows)]))
        x = x + parts(torch.cat(heads, dim=-1), b + "row.out")
        q, k, v = parts(norm(x, b + "column.norm"), b + "column.qkv").chunk(3, dim=-1)
        heads = []
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            mixed = [
                torch.softmax(q[:, c, part] @ k[:, c, part].T / math.sqrt(size), dim=-1) @ v[:, c, part]
                for c in range(columns)
            ]
            heads.append(torch.stack(mixed, dim=1))
        x = x + parts(torch.cat(heads, dim=-1), b + "column.out")
        x = x + parts(gelu(parts(norm(x, b + "ffn.norm"), b + "ffn.up")), b + "ffn.down")
    x = layer_norm(x, x.shape[-1:], state["final_norm.weight"], state["final_norm.bias"], 1e-5)
    t = gelu(x @ state["head.dense.weight"].T + state["head.dense.bias"])
    t = layer_norm(t, t.shape[-1:], state["head.norm.weight"], state["head.norm.bias"], 1e-5)
    return t @ state["embed.weight"].T + state["head.out.bias"], torch.stack(maps), x
