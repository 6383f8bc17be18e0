"""Nucleotides per second of RiNALMo training on one CPU: this project against MultiMolecule under Hugging Face's Trainer.

    python benchmarks/training_throughput.py --rounds 3

Compared: `launch/pretrain.py` as a user runs it (DeepSpeed, ZeRO 0, fp32) and `RiNALMoForMaskedLM` under
`transformers.Trainer` with `DataCollatorForLanguageModeling`, (a) `random`: dynamic padding, random order, and
(b) `grouped`: `train_sampling_strategy="group_by_length"`. Every run starts a process, loads the same weights and trains
once on the same pool of steps x sequences: the first samples of our order. AdamW, gradient clipping at 1, at most 1024
tokens per sequence, the same number of sequences per step, of threads, and of tokens that one forward pass may hold
(--micro x 1024). The Trainer's side gets its sequences tokenised beforehand, from memory, with special-token masks.
Runs of one round follow one another, so that a change of the machine's load meets all; the table holds medians.

Not compared: GPUs, several ranks, start-up and saving time. (b) draws other steps than (a) and we do: its step holds
sequences of about one length, ours and (a)'s are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MAX_TOKENS = 1024
SYSTEMS = ("ours", "random", "grouped")
SEED = 1


def prepare(options: argparse.Namespace) -> None:
    """The corpus and, for each dropout, the initial weights as a MultiMolecule directory; made once per folder."""
    import torch

    from models.layouts.rinalmo import write_multimolecule
    from models.rinalmo import RiNALMo, RiNALMoConfig

    if not (options.folder / "corpus/manifest.json").exists():
        command = [sys.executable, ROOT / "launch/prepare.py", "--fasta", options.fasta, "--to", options.folder / "corpus"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for rate in options.dropout:
        torch.manual_seed(SEED)
        config = RiNALMoConfig.named(options.size, attention_dropout=rate, residual_dropout=rate)
        write_multimolecule(weights_of(options, rate), RiNALMo(config).state_dict(), config)


def weights_of(options: argparse.Namespace, rate: float) -> Path:
    return options.folder / f"{options.size}-{rate}"


def train_ours(options: argparse.Namespace, rate: float) -> dict[str, float]:
    """One run of launch/pretrain.py; figures from its metrics.jsonl, over all steps."""
    shutil.rmtree(options.folder / "runs", ignore_errors=True)
    recipe = options.folder / "recipe.yaml"
    sections: dict[str, Any] = {
        "run": {"name": "ours", "directory": str(options.folder / "runs"), "seed": SEED},
        "model": {"name": "rinalmo", "size": options.size, "attention_dropout": rate, "residual_dropout": rate},
        "init_from": str(weights_of(options, rate)),
        "data": {"corpus": str(options.folder / "corpus")},
        "objective": {"name": "mlm", "max_tokens": MAX_TOKENS},
        "batch": {"sequences": options.sequences, "tokens_per_micro_batch": options.micro * MAX_TOKENS},
        "budget": {"steps": options.steps},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"name": "constant"},
        "compute": {"threads": options.threads},
        "validation": {"sequences": 0},
        "tracking": {"log_every_steps": 1},
    }
    recipe.write_text(json.dumps(sections))  # JSON is YAML
    log = options.folder / "ours.log"
    with open(log, "w") as file:
        command = [sys.executable, ROOT / "launch/pretrain.py", "--config", recipe]
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
            raise SystemExit(log.read_text())
    lines = (options.folder / "runs/ours/metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    seconds = sum(record["seconds_per_step"] for record in records)
    padded = sum(r["tokens_per_second"] * r["seconds_per_step"] / (1 - r["padding"]) for r in records)
    tokens = sum(r["tokens_per_second"] * r["seconds_per_step"] for r in records)
    return {
        "nucleotides_per_second": records[-1]["nucleotides"] / seconds,
        "padding": 1 - tokens / padded,
        "loss": statistics.fmean(record["loss"] for record in records),
    }


def train_theirs(options: argparse.Namespace, system: str, rate: float) -> dict[str, float]:
    """One run of transformers' Trainer in this process; called in a process of its own."""
    import datasets
    import torch
    from multimolecule import RiNALMoForMaskedLM, RnaTokenizer
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from data.index import Corpus
    from data.order import Order

    torch.set_num_threads(options.threads)
    corpus = Corpus.open(options.folder / "corpus")
    _, ids = Order(corpus.block_counts, SEED, options.sequences).positions(0, options.steps * options.sequences)
    tokenizer = RnaTokenizer()
    rows = [
        tokenizer(text.tobytes().decode(), truncation=True, max_length=MAX_TOKENS, return_special_tokens_mask=True)
        for text in corpus.letters(ids)
    ]
    keys = ("input_ids", "attention_mask", "special_tokens_mask")
    columns = {key: [row[key] for row in rows] for key in keys}
    pool = datasets.Dataset.from_dict(columns | {"length": [len(row["input_ids"]) for row in rows]})
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    counts = {"nucleotides": 0, "tokens": 0, "padded": 0}

    def counted(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(examples)
        counts["tokens"] += int(batch["attention_mask"].sum())
        counts["nucleotides"] += int(batch["attention_mask"].sum()) - 2 * len(examples)
        counts["padded"] += batch["input_ids"].numel()
        return batch  # type: ignore[no-any-return]

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(options.folder / "theirs"),
        use_cpu=True,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=options.sequences // options.micro,
        num_train_epochs=1,
        train_sampling_strategy="group_by_length" if system == "grouped" else "random",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=SEED,
    )
    model = RiNALMoForMaskedLM.from_pretrained(weights_of(options, rate))
    trainer = Trainer(model=model, args=arguments, train_dataset=pool, data_collator=counted, callbacks=[clock])
    result = trainer.train()
    return {
        "nucleotides_per_second": counts["nucleotides"] / (clock.ended - clock.began),
        "padding": 1 - counts["tokens"] / counts["padded"],
        "loss": result.training_loss,
    }


def measure(options: argparse.Namespace, system: str, rate: float) -> dict[str, float]:
    if system == "ours":
        return train_ours(options, rate)
    command = [sys.executable, *sys.argv, "--worker", system, "--worker-dropout", str(rate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, default=Path("../shared/data/corpus/real_ncrna_distinct.fasta.gz"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="scratch space")
    parser.add_argument("--size", default="nano", help="published size of RiNALMo")
    parser.add_argument("--sequences", type=int, default=64, help="per step (global batch)")
    parser.add_argument("--micro", type=int, default=8, help="sequences of 1024 tokens that one forward pass may hold")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--worker-dropout", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.worker:
        print(json.dumps(train_theirs(options, options.worker, options.worker_dropout)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options)
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for rate in options.dropout:
            for system in options.systems:
                figures = measure(options, system, rate)
                found.setdefault((rate, system), []).append(figures)
                print(f"round {number + 1}, dropout {rate}, {system}: {figures}", file=sys.stderr)
    print("| dropout | system | nucleotides/s (median, range) | padding | mean loss | ours is faster by |")
    print("|---|---|---|---|---|---|")
    for (rate, system), runs in found.items():
        speeds = [run["nucleotides_per_second"] for run in runs]
        pairs = zip(found.get((rate, "ours"), []), runs, strict=False)
        ratio = statistics.median(a["nucleotides_per_second"] / b["nucleotides_per_second"] for a, b in pairs)
        print(
            f"| {rate} | {system} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | "
            f"{runs[0]['padding']:.0%} | {runs[0]['loss']:.3f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
