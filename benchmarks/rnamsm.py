"""Training steps of RNA-MSM on CPU: this project against plain einsum attention, in seconds and in peak memory.

    python benchmarks/rnamsm.py [--rows 162 --columns 101] [--dropout 0.1] [--precision bf16]

One step is forward, mean cross-entropy over 15 % of the tokens and backward on one alignment of 2^14 tokens, from the
same weights; no optimizer. Compared: the model as its formulas are written (`einsum` below, after RNA-MSM specification
1.1: [R, L, d] streams, attention by torch.einsum with whole probability tensors, torch's dropout, logits of every
token), ours as it is by default, and ours with checkpointing. Every run is a process of its own, in `--rounds` rounds
of one run each; "CPU" counts processor seconds of the process, which stay meaningful on a machine that others use.
Memory is measured in runs of their own: the highest resident size during one step above that before it, which holds
activations and all gradients, with glibc told to return every large block at once. The loss without dropout is printed
to show that all compute the same; FLOPs are torch's count of ours beside the formula of models/rnamsm_cost.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.own_process import RETURN_MEMORY, add_products, measured, prepare  # noqa: E402

SYSTEMS: dict[str, dict[str, Any]] = {"einsum": {}, "ours": {}, "ours, checkpointing": {"checkpointing": True}}


def einsum(state: Any, config: Any, tokens: Any, dropout: float) -> Any:
    """Logits [R, L, V] of one alignment [R, L], from a state with our names."""
    import torch
    import torch.nn.functional as F

    rows, columns = tokens.shape
    heads, size = config.heads, config.width // config.heads

    def norm(x: Any, weight: str, bias: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], state[weight], state[bias], 1e-5)

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, state[name + "_weight"], state[name + "_bias"])

    def drop(x: Any) -> Any:
        return F.dropout(x, dropout) if dropout else x

    def split(x: Any, name: str) -> Any:
        weights, biases = state[name + "_weight"].chunk(3), state[name + "_bias"].chunk(3)
        return [F.linear(x, w, b).view(rows, columns, heads, size) for w, b in zip(weights, biases, strict=True)]

    x = state["embed.weight"][tokens] + state["stem.position"][2 : columns + 2] + state["stem.row"][:rows, None, None]
    x = drop(norm(x, "stem.norm.weight", "stem.norm.bias"))
    for i in range(config.layers):
        b = f"blocks.{i}."
        q, k, v = split(norm(x, b + "row.norm_weight", b + "row.norm_bias"), b + "row.qkv")
        q = q / math.sqrt(size * rows)
        probabilities = drop(torch.einsum("rihd,rjhd->hij", q, k).softmax(-1))
        context = torch.einsum("hij,rjhd->rihd", probabilities, v).reshape(rows, columns, -1)
        x = x + drop(linear(context, b + "row.out"))
        q, k, v = split(norm(x, b + "column.norm_weight", b + "column.norm_bias"), b + "column.qkv")
        probabilities = drop(torch.einsum("ichd,jchd->hcij", q / math.sqrt(size), k).softmax(-1))
        context = torch.einsum("hcij,jchd->ichd", probabilities, v).reshape(rows, columns, -1)
        x = x + drop(linear(context, b + "column.out"))
        inner = drop(F.gelu(linear(norm(x, b + "ffn.norm_weight", b + "ffn.norm_bias"), b + "ffn.up")))
        x = x + drop(linear(inner, b + "ffn.down"))
    x = norm(x, "final_norm.weight", "final_norm.bias")
    x = F.gelu(F.linear(x, state["head.dense.weight"], state["head.dense.bias"]))
    x = norm(x, "head.norm.weight", "head.norm.bias")
    return F.linear(x, state["embed.weight"], state["head.out.bias"])


def run(options: argparse.Namespace) -> dict[str, float]:
    """One system in this process."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from models.rnamsm import ANSWERS, RNAMSM, RNAMSMConfig, flops

    torch.set_num_threads(options.threads)
    prepare(options)
    torch.manual_seed(0)
    sizes = {"layers": options.layers, "width": options.width, "heads": options.width // 64, "ffn": 4 * options.width}
    dropouts = {"attention_dropout": options.dropout, "residual_dropout": options.dropout}
    config = RNAMSMConfig(**sizes, **dropouts, **SYSTEMS[options.system])
    model = RNAMSM(config)
    tokens = torch.tensor(ANSWERS)[torch.randint(0, len(ANSWERS), (options.rows, options.columns))]
    tokens[:, 0] = 1
    chosen = (torch.rand(tokens.numel()) < 0.15).nonzero().flatten()
    targets = tokens.flatten()[chosen]

    def loss(dropout: float) -> Any:
        with torch.autocast("cpu", enabled=options.precision == "bf16"):
            if options.system == "einsum":
                logits = einsum(dict(model.named_parameters()), config, tokens, dropout).flatten(0, 1)[chosen]
            else:
                logits = model.train(dropout > 0)(tokens[None], target_index=chosen)
        return F.cross_entropy(logits.float(), targets)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, walls = [], []
    for _ in range(options.steps + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        model.zero_grad(set_to_none=True)
        loss(options.dropout).backward()
        seconds.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {
        "cpu": statistics.median(seconds[1:] or seconds),
        "wall": statistics.median(walls[1:] or walls),
        "mib": peak / 1024,
    }
    if options.steps:
        with torch.no_grad():
            found["loss"] = float(loss(0.0))
    if options.system == "ours" and options.steps:
        # torch does not count its CPU kernel of attention, but the products that the plain one is made of.
        # The counter does not see products added to a tensor in place, as training's are: three times the forward
        # pass without dropout, as the specification counts.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss(0.0)
        found["counted"] = 3 * counter.get_total_flops()
        found["formula"] = flops(config, [(options.rows, options.columns)], len(chosen))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=162)
    parser.add_argument("--columns", type=int, default=101, help="<cls> included")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="64 per head, feed-forward four times as wide")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, in all systems")
    parser.add_argument("--steps", type=int, default=2, help="measured ones, after one to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    add_products(parser)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(run(options)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for number in range(options.rounds):
        for name, runs in results.items():
            timed = measured([*sys.argv, "--system", name], os.environ)
            if not number:
                held = measured([*sys.argv, "--system", name, "--steps", "0"], os.environ | RETURN_MEMORY)
            else:  # memory does not vary
                held = runs[0]
            runs.append(timed | {"mib": held["mib"]})
    print(
        f"{options.layers} layers, width {options.width}, {options.rows} rows x {options.columns} columns, dropout "
        f"{options.dropout}, {options.threads} thread(s), {options.precision}, fp32 products by "
        f"{prepare(options)}, {options.rounds} rounds"
    )
    for name, runs in results.items():
        cpu, wall, mib = (statistics.median(r[key] for r in runs) for key in ("cpu", "wall", "mib"))
        faster, shorter = (
            statistics.median(b[key] / r[key] for b, r in zip(results["einsum"], runs, strict=True))
            for key in ("cpu", "wall")
        )
        print(
            f"{name:20s} {cpu:7.2f} CPU s/step ({faster:.2f}x)  {wall:7.2f} s wall ({shorter:.2f}x)"
            f"  {mib:6.0f} MiB (1/{results['einsum'][0]['mib'] / mib:.2f}), loss {runs[0]['loss']:.6f}"
        )
    ours = results["ours"][0]
    print(f"FLOPs of ours: torch counts {ours['counted']:.6e}, the formula gives {ours['formula']:.6e}")


if __name__ == "__main__":
    main()
