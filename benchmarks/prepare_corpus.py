"""Speed and memory of `launch/prepare.py` on random sequences with RNAcentral's lengths (median 370, mean 640 nt).

    python benchmarks/prepare_corpus.py --sequences 1000000 5000000 --folder /some/scratch --repeat 3

Each FASTA is made once per folder and count. The time includes starting Python. Memory is the largest sum over all
processes of the build, looked at every tenth of a second: what each has for itself (its anonymous pages), which is what
would not fit, and what is resident with mapped files, which the system may take back.
--peer also runs what one does without us: `seqkit rmdup -s`, then webdataset's TarWriter with one .txt per sequence.
"""

from __future__ import annotations

import argparse
import gzip
import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MEDIAN, MEAN = 370.0, 640.0
SHORTEST, LONGEST, LINE = 16, 8192, 80
PLAIN_WRITER = """
import sys, webdataset
def records(stream):
    name, lines = None, []
    for line in stream:
        if line.startswith(">"):
            if name is not None:
                yield name, "".join(lines)
            name, lines = line[1:].split()[0], []
        else:
            lines.append(line.strip())
    yield name, "".join(lines)
with webdataset.ShardWriter(sys.argv[1] + "/train-%06d.tar", maxsize=128_000_000, maxcount=10**9, verbose=0) as writer:
    for name, letters in records(sys.stdin):
        writer.write({"__key__": name, "txt": letters})
"""


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


class Watched:
    """Runs a command and measures it: ``seconds``, ``cpu`` (user and system), ``own`` and ``resident`` peak in MiB."""

    def __init__(self, command: Sequence[object] | str) -> None:
        self.own = self.resident = 0.0
        before, start = self._cpu(), time.perf_counter()
        shell = isinstance(command, str)
        parts = command if shell else [str(part) for part in command]
        process = subprocess.Popen(parts, shell=shell, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, ended))
        watcher.start()
        code = process.wait()
        self.seconds, self.cpu = time.perf_counter() - start, self._cpu() - before
        ended.set()
        watcher.join()
        if code:
            raise SystemExit(f"{command} failed with code {code}")

    @staticmethod
    def _cpu() -> float:
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def _watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            own = resident = 0
            for one in self._family(pid):
                try:
                    fields = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
                    own += int(fields.get("RssAnon", "0 kB").split()[0])
                    resident += int(fields.get("VmRSS", "0 kB").split()[0])
                except (OSError, ValueError):
                    continue
            self.own, self.resident = max(self.own, own / 1024), max(self.resident, resident / 1024)

    def _family(self, pid: int) -> list[int]:
        found = [pid]
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    found += self._family(int(child))
        except OSError:
            pass
        return found


def report(label: str, runs: list[Watched], sequences: int) -> None:
    seconds = statistics.median(run.seconds for run in runs)
    cpu = statistics.median(run.cpu for run in runs)
    best = min(run.seconds for run in runs)
    print(
        f"{label}: {sequences:,} sequences, median of {len(runs)}: {seconds:.1f} s, {sequences / seconds:,.0f} "
        f"sequences/s (best {sequences / best:,.0f}), CPU {cpu:.1f} s; peak of all processes "
        f"{max(run.own for run in runs):,.0f} MiB of their own, {max(run.resident for run in runs):,.0f} MiB resident",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path, required=True, help="scratch space, about 3 kB per sequence")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="also seqkit rmdup and a plain WebDataset writer")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the corpus, e.g. clusters.method=mmseqs")
    options = parser.parse_intermixed_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    output, plain = options.folder / "corpus", options.folder / "plain"
    for sequences in options.sequences:
        fasta = options.folder / f"random-{sequences}.fa{'.gz' if options.gzip else ''}"
        if not fasta.exists():
            write_fasta(fasta, sequences, options.gzip)
        ours, peers = [], []
        for _ in range(options.repeat):  # in turn, so that a busy minute of the machine meets both
            shutil.rmtree(output, ignore_errors=True)
            build = [sys.executable, ROOT / "launch/prepare.py", "--fasta", fasta, "--to", output, *options.overrides]
            ours.append(Watched(build))
            if options.peer:
                shutil.rmtree(plain, ignore_errors=True)
                plain.mkdir()
                peers.append(Watched(f"seqkit rmdup -s {fasta} | {sys.executable} -c '{PLAIN_WRITER}' {plain}"))
        report("prepare.py", ours, sequences)
        if peers:
            report("seqkit rmdup -s | webdataset, one .txt each", peers, sequences)
            ratio = statistics.median(b.seconds for b in peers) / statistics.median(a.seconds for a in ours)
            print(f"prepare.py is {ratio:.1f} times as fast", flush=True)


if __name__ == "__main__":
    main()
