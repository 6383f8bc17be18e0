"""Time and memory of finding the samples of any training step in a corpus of 40 million sequences.

    python benchmarks/seek.py

The corpus is simulated: only its block counts exist and, in the second table, the row pointers of its clusters (random
sizes), as `Order` knows nothing else of a corpus. Measured: setting the order up; the samples of random steps over
several epochs, each asked for for the first time; the steps that span two epochs, each in a new order; steps that
follow one another, as in training; and the peak of resident memory over what the process held before, the pointers
included. Wall and processor time: on a machine that others use the first says little. The letters themselves are not
read, and their lengths (4 bytes a sequence, mapped from disk) are not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.order import Order

PER_BLOCK = 1024


def memory_mib(kind: str) -> float:
    """Of this process: VmRSS is held now, VmHWM is the most since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def block_counts(sequences: int, generator: np.random.Generator) -> np.ndarray:
    counts = generator.integers(PER_BLOCK // 2, PER_BLOCK + 1, size=2 * sequences // PER_BLOCK)
    return counts[: np.searchsorted(np.cumsum(counts), sequences) + 1]


def cluster_pointers(sequences: int, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """uint32 [clusters + 1]: where each cluster begins; sizes of at least 1, at random."""
    inside = np.sort(generator.permutation(sequences - 1)[: clusters - 1]) + 1
    return np.concatenate([[0], inside, [sequences]]).astype(np.uint32)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of wall and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def measure(options: argparse.Namespace, clusters: int) -> None:
    generator = np.random.default_rng(0)
    counts = block_counts(options.sequences, generator)
    pointers = cluster_pointers(int(counts.sum()), clusters, generator) if clusters else None
    held = memory_mib("VmRSS") - (pointers.nbytes / 2**20 if pointers is not None else 0)
    reset_peak()

    def new_order() -> Order:
        return Order(counts, seed=1, global_batch=options.global_batch, pointers=pointers)

    setup = np.array([timed(new_order) for _ in range(5)])
    order = new_order()
    last = options.epochs * order.samples_per_epoch // options.global_batch
    chosen = generator.integers(0, last, options.steps).tolist()
    random = np.array([timed(lambda step=step: order.step(step)) for step in chosen])
    across = [epoch * order.samples_per_epoch // options.global_batch for epoch in range(1, options.epochs)]
    orders = [new_order() for _ in across]
    spanning = np.array([timed(lambda o=o, step=step: o.step(step)) for o, step in zip(orders, across, strict=True)])
    begin = int(generator.integers(0, last - 1000))
    following = np.array(timed(lambda: [order.step(step) for step in range(begin, begin + 1000)])) / 1000

    what = f"{clusters:,} clusters" if clusters else "no clusters"
    print(f"\n{counts.sum():,} sequences, {len(counts):,} blocks, {what}, {options.global_batch} per step\n")
    print("| what | wall | CPU |\n|---|---|---|")
    rows = {
        "set-up, median of 5": np.median(setup, 0),
        f"a random step, first touch: median of {options.steps}": np.median(random, 0),
        f"a random step, first touch: maximum of {options.steps}": random.max(0),
        f"a step across two epochs, new order: maximum of {len(across)}": spanning.max(0),
        "a step after the one before: mean of 1000": following,
    }
    for name, (wall, cpu) in rows.items():
        print(f"| {name} | {wall:.2f} ms | {cpu:.2f} ms |")
    print(f"| memory at most, pointers included | {memory_mib('VmHWM') - held:.0f} MiB | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=40_000_000)
    parser.add_argument("--clusters", type=int, default=17_000_000)
    parser.add_argument("--global-batch", type=int, default=1344)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100, help="random ones")
    options = parser.parse_args()
    Order(np.array([PER_BLOCK]), 1, 1).step(0)  # first use of numpy's and the hash's code
    measure(options, clusters=0)
    measure(options, clusters=options.clusters)


if __name__ == "__main__":
    main()
