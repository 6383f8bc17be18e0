"""How fast a recipe trains here: `deepspeed launch/benchmark.py --config rinalmo.yaml [section.key=value ...]`.

Runs a few real steps on the recipe's data, under any launcher and on any number of ranks, and prints time per step,
throughput, MFU, padding, peak memory, and how long the whole recipe would take. Nothing is saved. The MFU is what
`launch/plan.py --mfu` asks for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as launch/pretrain.py

from launch.cli import load_recipe, main_guard  # noqa: E402

if TYPE_CHECKING:
    from pretrain.measuring import Measurement


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a recipe: a path, or a name in configs/")
    parser.add_argument("--steps", type=int, default=10, help="that are measured (10)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before, which are not (3)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by some launchers; not needed")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the recipe; keys: docs/keys.md"
    )
    arguments = parser.parse_args()

    from pretrain import contact, distributed
    from pretrain.measuring import measure

    settings = load_recipe(arguments.config, arguments.overrides)
    world = distributed.start(settings.compute.threads, settings.compute.timeout_minutes)
    with contact.told_when_lost(world, settings.compute.timeout_minutes):
        found = measure(settings, world, arguments.warm_up, arguments.steps)
        distributed.finish()
    if world.first and arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
    elif world.first:
        _print(found)
    return 0


def _print(found: Measurement) -> None:
    from pretrain.console import duration, quantity

    of = f", stage {found.stage}" if found.stage else ""
    mfu = "unknown peak: set compute.peak_tflops" if found.mfu is None else f"{found.mfu:.1%}, --mfu {found.mfu:.2f}"
    rows = {
        "seconds per step": f"{found.seconds_per_step:.3f} ({found.fastest:.3f} to {found.slowest:.3f})",
        "nucleotides per second": quantity(found.nucleotides_per_second),
        "tokens per second": quantity(found.tokens_per_second),
        "padding": f"{found.padding:.1%}",
        "TFLOP/s per device": f"{found.tflops_per_device:.3g}",
        "MFU": mfu,
        "peak memory per rank": f"{found.peak_bytes / 2**30:.2f} GiB" + " of tensors" * (found.device != "CPU"),
        "the whole recipe": f"{found.run_steps:,} steps, {duration(found.run_seconds)} without saving and validating",
    }
    print(f"{found.steps} steps on {found.ranks} x {found.device}{of}")
    for name, value in rows.items():
        print(f"  {name:24s}{value}")


if __name__ == "__main__":
    code = main_guard(main)()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as launch/pretrain.py
