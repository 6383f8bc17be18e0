"""Speed and memory of `launch/prepare.py` on random sequences with RNAcentral's lengths (median 370, mean 640 nt).

    python benchmarks/prepare_corpus.py --sequences 1000000 --folder /some/scratch

The FASTA is made once per folder and count; --gzip compresses it. The time includes starting Python.
"""

from __future__ import annotations

import argparse
import gzip
import math
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MEDIAN, MEAN = 370.0, 640.0
SHORTEST, LONGEST, LINE = 16, 8192, 80


def write_fasta(path: Path, sequences: int, compress: bool) -> None:
    """Log-normal lengths, uniform letters, 80-column lines, RNAcentral's headers."""
    generator = np.random.default_rng(0)
    sigma = math.sqrt(2 * math.log(MEAN / MEDIAN))
    lengths = np.clip(np.exp(generator.normal(math.log(MEDIAN), sigma, sequences)), SHORTEST, LONGEST).astype(np.int64)
    types = ("rRNA", "tRNA", "lncRNA", "miRNA", "sRNA", "snoRNA")
    aside = path.with_suffix(".tmp")
    with gzip.open(aside, "wb", compresslevel=6) if compress else open(aside, "wb") as file:
        for start in range(0, sequences, 10_000):
            batch = lengths[start : start + 10_000]
            letters = np.frombuffer(b"ACGU", dtype=np.uint8)[generator.integers(0, 4, int(batch.sum()))].tobytes()
            at, lines = 0, []
            for i, length in enumerate(batch.tolist(), start):
                lines.append(b">URS%010X %s from %d species\n" % (i, types[i % 6].encode(), 1 + i % 20))
                lines += [letters[p : min(p + LINE, at + length)] + b"\n" for p in range(at, at + length, LINE)]
                at += length
            file.write(b"".join(lines))
    aside.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="scratch space, about 2 kB per sequence")
    parser.add_argument("--gzip", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    fasta = options.folder / f"random-{options.sequences}.fa{'.gz' if options.gzip else ''}"
    if not fasta.exists():
        write_fasta(fasta, options.sequences, options.gzip)
    output = options.folder / "corpus"
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, ROOT / "launch/prepare.py", "--fasta", fasta, "--to", output]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{options.sequences:,} sequences, {fasta.stat().st_size / 1e6:,.0f} MB of FASTA in {seconds:.1f} s")
    print(
        f"{options.sequences / seconds:,.0f} sequences/s; CPU {used.ru_utime:.1f} s user, {used.ru_stime:.1f} s system"
    )
    print(f"peak memory {used.ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
