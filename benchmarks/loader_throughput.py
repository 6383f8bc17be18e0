"""Nucleotides per second that a loader delivers: this project's against WebDataset, datasets and litdata.

    python benchmarks/loader_throughput.py --fasta real.fasta.gz --rounds 5

Two tables. "Letters": sequences in random order as uint8 arrays or bytes, nothing else. "Ready batches": corrupted for
masked language modelling and batched as tensors, what a training loop takes: ours packed into micro-batches by the
loader thread, the others cut at 1022 nucleotides, turned into ids and padded by `DataCollatorForLanguageModeling` in
batches of 64. The ids come from MultiMolecule's `RnaTokenizer` ("tokenizer"), or from a table as ours do ("table").

- ours: blocks of about 1 MiB, global random order, every sequence by number
- WebDataset, plain: one .txt member per sequence, shardshuffle and a shuffle buffer of 1000, 0 or 2 worker processes
- datasets: Arrow on local disk, `shuffle()`, hence every row by number
- litdata: 64 MB chunks, `StreamingDataset(shuffle=True)`; left out where it is not installed

Files are in the page cache, torch uses one thread, and a run counts from its first batch on for --seconds. The order of
WebDataset and litdata is only locally random. "CPU" counts processor seconds of the process and is left out where
worker processes do the work. Not compared: remote storage, decompression, reading by several ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.index import Corpus  # noqa: E402
from data.loader import StepPlanner, prefetched  # noqa: E402
from data.order import Order  # noqa: E402
from pretrain.objectives.mlm import MLM, MLMConfig  # noqa: E402

BATCH, LONGEST, SEED, PER_SHARD = 64, 1022, 1, 10_000
Run = Iterable[int]  # nucleotides of each sequence or batch, endless


def prepare(folder: Path, fasta: Path) -> None:
    """The same sequences in the same order for everyone; made once per folder."""
    if not (folder / "corpus/manifest.json").exists():
        command = [sys.executable, ROOT / "launch/prepare.py", "--fasta", fasta, "--to", folder / "corpus"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    corpus = Corpus.open(folder / "corpus")
    texts = [text.tobytes() for text in corpus.letters(np.arange(corpus.count))]
    if not (folder / "webdataset").exists():
        import webdataset

        (folder / "webdataset").mkdir()
        for shard, start in enumerate(range(0, len(texts), PER_SHARD)):
            with webdataset.TarWriter(str(folder / f"webdataset/{shard:06d}.tar"), encoder=False) as writer:
                for i, text in enumerate(texts[start : start + PER_SHARD], start):
                    writer.write({"__key__": f"{i:09d}", "txt": text})
    if not (folder / "datasets").exists():
        import datasets

        datasets.Dataset.from_dict({"letters": texts}).save_to_disk(folder / "datasets")
    if litdata_installed() and not (folder / "litdata/index.json").exists():
        # Chunks are written in a process of their own: litdata's writer changes signal handlers and working state.
        program = (
            "import sys, litdata, datasets\n"
            "rows = datasets.load_from_disk(sys.argv[1])\n"
            "def letters(i): return rows[i]['letters']\n"
            "if __name__ == '__main__':\n"
            "    litdata.optimize(letters, list(range(len(rows))), sys.argv[2], chunk_bytes='64MB', num_workers=1)\n"
        )
        (folder / "write_litdata.py").write_text(program)
        command = [sys.executable, folder / "write_litdata.py", folder / "datasets", folder / "litdata"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def litdata_installed() -> bool:
    try:
        import litdata  # noqa: F401
    except ImportError:
        return False
    return True


def our_letters(folder: Path) -> Run:
    corpus = Corpus.open(folder / "corpus")
    order = Order(corpus.block_counts, SEED, 512)
    return (len(text) for step in itertools.count() for text in corpus.letters(order.step(step)[1]))


def our_batches(folder: Path) -> Run:
    corpus, objective = Corpus.open(folder / "corpus"), MLM(MLMConfig(max_tokens=LONGEST + 2))
    order = Order(corpus.block_counts, SEED, 512)
    planner = StepPlanner(corpus, order, objective, 16384)
    return (int(b.lengths.sum()) for step in prefetched(planner, 0, 10**9) for b in step.micro_batches)


def webdataset_texts(folder: Path) -> Any:
    import webdataset

    shards = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node)
    return stream.shuffle(1000).map(lambda sample: sample["txt"]).repeat()


def datasets_texts(folder: Path) -> Iterator[bytes]:
    import datasets

    rows = datasets.load_from_disk(folder / "datasets")
    for epoch in itertools.count():
        for batch in rows.shuffle(seed=epoch).iter(BATCH):
            yield from batch["letters"]


def litdata_texts(folder: Path) -> Iterator[bytes]:
    import litdata

    rows = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, seed=SEED)
    while True:
        yield from rows


def their_letters(texts: Callable[[Path], Iterable[bytes]]) -> Callable[[Path], Run]:
    return lambda folder: map(len, texts(folder))


class Batches:
    """Letters -> ids -> padded, masked batches, in this process or in a worker's."""

    def __init__(self, how: str):
        from multimolecule import RnaTokenizer
        from transformers import DataCollatorForLanguageModeling

        self.how, self.tokenizer = how, RnaTokenizer()
        self.table = np.zeros(256, dtype=np.int64)
        for letter in "ACGUNRYSWKMBDHVI":
            self.table[ord(letter)] = self.tokenizer.convert_tokens_to_ids(letter)
        self.ends = np.array([self.tokenizer.cls_token_id]), np.array([self.tokenizer.eos_token_id])
        self.collator = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=0.15)

    def row(self, text: bytes) -> dict[str, Any]:
        if self.how == "tokenizer":
            limits = {"truncation": True, "max_length": LONGEST + 2}
            return dict(self.tokenizer(text.decode(), return_special_tokens_mask=True, **limits))
        ids = np.concatenate([self.ends[0], self.table[np.frombuffer(text[:LONGEST], np.uint8)], self.ends[1]])
        special = np.zeros(len(ids), dtype=np.int64)
        special[[0, -1]] = 1
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "special_tokens_mask": special}

    def __call__(self, texts: list[bytes]) -> tuple[Any, int]:
        return self.collator([self.row(text) for text in texts]), sum(min(len(text), LONGEST) for text in texts)


def their_batches(texts: Callable[[Path], Any], how: str, workers: int = 0) -> Callable[[Path], Run]:
    def run(folder: Path) -> Run:
        collate, source = Batches(how), texts(folder)
        if workers:
            loader = torch.utils.data.DataLoader(source, BATCH, collate_fn=collate, num_workers=workers)
            return (count for _, count in loader)
        stream = iter(source)
        return (collate(list(itertools.islice(stream, BATCH)))[1] for _ in itertools.count())

    return run


LETTERS: dict[str, Callable[[Path], Run]] = {
    "ours": our_letters,
    "WebDataset, plain": their_letters(webdataset_texts),
    "datasets": their_letters(datasets_texts),
    "litdata": their_letters(litdata_texts),
}
READY: dict[str, Callable[[Path], Run]] = {
    "ours": our_batches,
    "WebDataset, plain, tokenizer": their_batches(webdataset_texts, "tokenizer"),
    "WebDataset, plain, tokenizer, 2 workers": their_batches(webdataset_texts, "tokenizer", 2),
    "WebDataset, plain, table": their_batches(webdataset_texts, "table"),
    "WebDataset, plain, table, 2 workers": their_batches(webdataset_texts, "table", 2),
    "datasets, table": their_batches(datasets_texts, "table"),
    "litdata, table": their_batches(litdata_texts, "table"),
}


def measure(run: Run, seconds: float) -> tuple[float, float]:
    """Nucleotides per second of wall time and of processor time."""
    stream = iter(run)
    next(stream)
    nucleotides, wall, cpu = 0, time.perf_counter(), time.process_time()
    for number, count in enumerate(stream):
        nucleotides += count
        if number % 16 == 0 and time.perf_counter() - wall > seconds:
            break
    return nucleotides / (time.perf_counter() - wall), nucleotides / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, default=Path("../shared/data/corpus/real_ncrna_distinct.fasta.gz"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="scratch space, about 1 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        table, name = options.worker
        print(json.dumps(measure({"letters": LETTERS, "ready": READY}[table][name](options.folder), options.seconds)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder, options.fasta)
    for title, table in (("letters", LETTERS), ("ready", READY)):
        names = [name for name in table if "litdata" not in name or litdata_installed()]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                command = [sys.executable, *sys.argv, "--worker", title, name]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[name].append(tuple(json.loads(done.stdout.splitlines()[-1])))
        print(f"\n| {title} | Mnt/s wall (range) | Mnt/s CPU | ours over it, wall | CPU |\n|---|---|---|---|---|")
        for name, runs in found.items():
            walls = [wall for wall, _ in runs]
            ratios = [
                statistics.median(ours[i] / run[i] for ours, run in zip(found["ours"], runs, strict=True))
                for i in (0, 1)
            ]
            cpu = statistics.median(run[1] for run in runs) / 1e6
            hidden = "workers" in name
            print(
                f"| {name} | {statistics.median(walls) / 1e6:.2f} ({min(walls) / 1e6:.2f} to {max(walls) / 1e6:.2f}) | "
                f"{'-' if hidden else f'{cpu:.2f}'} | {ratios[0]:.1f} | {'-' if hidden else f'{ratios[1]:.1f}'} |"
            )


if __name__ == "__main__":
    main()
