"""What benchmarks that compare training steps share: runs in processes of their own, and who multiplies matrices."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping

# For runs that measure memory: glibc returns every large block at once.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def measured(command: list[str], environment: Mapping[str, str]) -> dict[str, float]:
    """What a benchmark's `run` returns in a process of its own."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def add_products(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--products",
        choices=("onednn", "mkl"),
        default="onednn",
        help="what multiplies fp32 matrices, in all systems; onednn: where the processor suits it, as in training",
    )


def prepare(options: argparse.Namespace) -> str:
    """Make this process ready for steps to be measured; returns what multiplies fp32 matrices in it."""
    import torch._dynamo  # noqa: F401  # recomputing imports it, which is not a step's memory

    from pretrain.products import products_by, try_onednn

    if options.products == "onednn":
        try_onednn()
    return products_by()
