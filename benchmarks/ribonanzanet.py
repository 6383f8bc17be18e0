"""Training steps of RibonanzaNet on CPU: this project against the published formulas written plainly, and the authors'.

    python benchmarks/ribonanzanet.py --batch 4
    git clone https://github.com/Shujun-He/RibonanzaNet && python benchmarks/ribonanzanet.py --original RibonanzaNet

One step is forward, mean absolute error and backward in training mode on one batch without padding, from the same
weights; no optimizer. Compared:

    plain       tests/models/reference_ribonanzanet.py, one sequence after the other, everything kept for one backward
                pass; what it does head by head is a hundredth of the arithmetic
    original    where a clone is given, the authors' `Network.py` (its unused import of matplotlib is replaced)
    ours        as it is by default; with checkpointing; with `skip_last_pair_update` off

Every run is a process of its own, in `--rounds` rounds of one run each. "CPU" counts processor seconds of the process
(all threads), which stay meaningful on a machine that others use. Memory is measured in runs of their own: the highest
resident size during one step above that before it, which holds activations and all gradients, with glibc told to return
every large block at once (MALLOC_MMAP_THRESHOLD_; otherwise what it holds back triples the figure of the checkpointed
run, and slows nothing). The loss without dropout is printed to show that all compute the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.own_process import RETURN_MEMORY, add_products, measured, prepare  # noqa: E402

SYSTEMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "original": {},
    "ours": {},
    "ours, checkpointing": {"checkpointing": True},
    "ours, all pair updates": {"skip_last_pair_update": False},
}


def original_model(folder: Path, layers: int) -> Any:
    """The authors' network at their published size."""
    for name in ("matplotlib", "matplotlib.pyplot"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(folder))
    from Network import RibonanzaNet as Original  # type: ignore[import-not-found]

    config = {"ninp": 256, "nlayers": layers, "nhead": 8, "k": 5, "ntoken": 5, "nclass": 2, "dropout": 0.05}
    config |= {"use_triangular_attention": False, "pairwise_dimension": 64}
    with contextlib.redirect_stdout(io.StringIO()):
        return Original(types.SimpleNamespace(**config))


def plain_model(state: dict[str, Any], config: Any) -> Any:
    """The formulas, sequence by sequence, on trainable tensors under the authors' names."""
    import torch
    from torch.nn.functional import dropout

    from tests.models.reference_ribonanzanet import keep_all, reference_outputs

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = list(state)
            self.tensors = torch.nn.ParameterList([torch.nn.Parameter(x) for x in state.values()])

        def forward(self, tokens: Any) -> Any:
            named = dict(zip(self.names, self.tensors, strict=True))
            drop = dropout if self.training else keep_all
            return torch.stack([reference_outputs(named, config, ids, drop) for ids in tokens])

    return Plain()


def run(options: argparse.Namespace) -> dict[str, float]:
    """One system in this process."""
    import torch

    from models.layouts.ribonanzanet import to_original
    from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig

    torch.set_num_threads(options.threads)
    prepare(options)
    torch.manual_seed(0)
    config = RibonanzaNetConfig.named("base", layers=options.layers, **SYSTEMS[options.system])
    model: Any = RibonanzaNet(config)
    tokens = torch.randint(0, 4, (options.batch, options.length))
    targets = torch.rand(options.batch, options.length, 2)
    inputs = (tokens,)
    if options.system == "original":
        state = to_original(model.state_dict(), config)
        model = original_model(options.original, options.layers)
        model.load_state_dict(state)
        inputs = (tokens, torch.ones_like(tokens, dtype=torch.bool))
    elif options.system == "plain":
        model = plain_model(to_original(model.state_dict(), config), config)
    model.train()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, walls = [], []
    for _ in range(options.steps + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        model.zero_grad(set_to_none=True)
        (model(*inputs) - targets).abs().mean().backward()
        seconds.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    with torch.no_grad():
        loss = float((model.eval()(*inputs) - targets).abs().mean())
    return {
        "cpu": statistics.median(seconds[1:] or seconds),
        "wall": statistics.median(walls[1:] or walls),
        "mib": peak / 1024,
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, help="a clone of the authors' repository")
    parser.add_argument("--length", type=int, default=177)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="measured ones, after one to warm up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    add_products(parser)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(run(options)))
        return
    compared = [name for name in SYSTEMS if name != "original" or options.original is not None]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    for _ in range(options.rounds):
        for name, runs in results.items():
            timed = measured([*sys.argv, "--system", name], os.environ)
            held = measured([*sys.argv, "--system", name, "--steps", "0"], os.environ | RETURN_MEMORY)
            runs.append(timed | {"mib": held["mib"]})
    print(
        f"{options.layers} layers, {options.batch} x {options.length} nucleotides, {options.threads} thread(s), fp32 "
        f"products by {prepare(options)}"
    )
    base = {key: statistics.median(r[key] for r in results["plain"]) for key in ("cpu", "wall", "mib")}
    for name, runs in results.items():
        cpu, wall, mib = (statistics.median(r[key] for r in runs) for key in ("cpu", "wall", "mib"))
        print(
            f"{name:24s} {cpu:7.2f} CPU s/step ({base['cpu'] / cpu:.1f}x)  {wall:7.2f} s wall"
            f"  {mib:7.0f} MiB (1/{base['mib'] / mib:.1f}), loss {runs[0]['loss']:.6f}"
        )


if __name__ == "__main__":
    main()
