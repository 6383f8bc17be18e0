"""Nucleotides per second of RiNALMo training on CPU: this project against MultiMolecule under Hugging Face's Trainer.

    python benchmarks/training_throughput.py --fasta real.fasta.gz --rounds 3

Compared: our `Trainer` as launch/pretrain.py runs it (DeepSpeed, ZeRO 0, fp32) and `RiNALMoForMaskedLM` under
`transformers.Trainer` with `DataCollatorForLanguageModeling` in two ways: (a) `random`, dynamic padding of random
sequences, and (b) `grouped`, the order of `train_sampling_strategy="group_by_length"`. All start from the same
weights, use AdamW, clip gradients at 1, cut sequences at 1024 tokens, and have the same number of sequences per step,
of threads, and of tokens that one forward pass may hold (--micro x 1024). Each run is a process of its own; the runs
of one round follow one another. The Trainer gets its sequences tokenised beforehand, with special-token masks.

We and (a) train once on the same sequences: the first ones of our order. (b) sorts 50 global batches at a time, so that
a short run would see only long ones: it gets evenly spaced micro-batches of the order that the library's own sampler
gives for 200 global batches, hence its full-scale padding and the corpus's mixture of lengths.

Time is counted from the start of the first step to the end of the last. "CPU" counts processor seconds of the whole
process (all threads), which stay meaningful on a machine that others use; "wall" does not. The mean loss shows that
both sides learn alike; masks and dropout differ. Not compared: GPUs, several ranks, starting and saving. (b) is not
the same training: its steps hold sequences of one length.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
LEARNING_RATE = 1e-4


def prepare(options: argparse.Namespace) -> None:
    """The corpus and, for each dropout, the initial weights as a MultiMolecule directory; made once per folder."""
    import torch

    from models.layouts.releasing import WriteOptions
    from models.layouts.rinalmo import write_multimolecule
    from models.rinalmo import RiNALMo, RiNALMoConfig

    if not (options.folder / "corpus/manifest.json").exists():
        command = [sys.executable, ROOT / "launch/prepare.py", "--fasta", options.fasta]
        command += ["--to", options.folder / "corpus"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for rate in options.dropout:
        torch.manual_seed(SEED)
        config = RiNALMoConfig.named(options.size, attention_dropout=rate, residual_dropout=rate)
        write_multimolecule(weights_of(options, rate), RiNALMo(config).state_dict(), config, WriteOptions("model"))


def weights_of(options: argparse.Namespace, rate: float) -> Path:
    return options.folder / f"{options.size}-{rate}"


def train_ours(options: argparse.Namespace, rate: float) -> dict[str, float]:
    """One run of our Trainer in this process."""
    from pretrain import distributed, recipe
    from pretrain.signals import StopRequest
    from pretrain.trainer import Trainer

    class Timed(Trainer):
        def _steps(self) -> Any:
            self.began = clocks()
            return super()._steps()

        def _log(self, *arguments: Any) -> None:
            super()._log(*arguments)
            self.ended = clocks()

    shutil.rmtree(options.folder / "runs", ignore_errors=True)
    sections: dict[str, Any] = {
        "run": {"name": "ours", "directory": str(options.folder / "runs"), "seed": SEED},
        "model": {"name": "rinalmo", "size": options.size, "attention_dropout": rate, "residual_dropout": rate},
        "init_from": str(weights_of(options, rate)),
        "data": {"corpus": str(options.folder / "corpus")},
        "objective": {"name": "mlm", "max_tokens": MAX_TOKENS},
        "batch": {"sequences": options.sequences, "tokens_per_micro_batch": options.micro * MAX_TOKENS},
        "budget": {"steps": options.steps},
        "optimizer": {"learning_rate": LEARNING_RATE},
        "schedule": {"name": "constant"},
        "compute": {"threads": options.threads},
        "validation": {"sequences": 0},
        "tracking": {"log_every_steps": 1},
    }
    (options.folder / "recipe.yaml").write_text(json.dumps(sections))  # JSON is YAML
    world = distributed.start(options.threads)
    trainer = Timed(recipe.load(str(options.folder / "recipe.yaml"), []), world, StopRequest())
    trainer.run()
    distributed.finish()
    lines = (options.folder / "runs/ours/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]
    return speeds(trainer.progress.nucleotides, trainer.began, trainer.ended) | {"loss": statistics.fmean(losses)}


def train_theirs(options: argparse.Namespace, system: str, rate: float) -> dict[str, float]:
    """One run of transformers' Trainer in this process."""
    import datasets
    import torch
    from multimolecule import RiNALMoForMaskedLM, RnaTokenizer
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(options.threads)
    tokenizer = RnaTokenizer()
    settings = {"truncation": True, "max_length": MAX_TOKENS, "return_special_tokens_mask": True}
    rows = [tokenizer(text.tobytes().decode(), **settings) for text in their_sequences(options, system)]
    keys = ("input_ids", "attention_mask", "special_tokens_mask")
    pool = datasets.Dataset.from_dict({key: [row[key] for row in rows] for key in keys})

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = clocks()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = clocks()

    arguments = TrainingArguments(
        output_dir=str(options.folder / "theirs"),
        use_cpu=True,
        per_device_train_batch_size=options.micro,
        gradient_accumulation_steps=options.sequences // options.micro,
        num_train_epochs=1,
        train_sampling_strategy="sequential",  # the rows are in the order wanted
        learning_rate=LEARNING_RATE,
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
    timed, collate = Timed(), DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    model = RiNALMoForMaskedLM.from_pretrained(weights_of(options, rate), attn_implementation=options.attention)
    trainer = Trainer(model=model, args=arguments, train_dataset=pool, data_collator=collate, callbacks=[timed])
    result = trainer.train()
    nucleotides = sum(len(row["input_ids"]) - 2 for row in rows)
    # The class takes keyword arguments for the loss but no `num_items_in_batch`, so Trainer adds up micro-batches.
    loss = result.training_loss / arguments.gradient_accumulation_steps
    return speeds(nucleotides, timed.began, timed.ended) | {"loss": loss}


def their_sequences(options: argparse.Namespace, system: str) -> list[Any]:
    """The pool of a run, in the order of training."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from data.index import Corpus
    from data.order import Order

    corpus = Corpus.open(options.folder / "corpus")
    order, wanted = Order(corpus.block_counts, SEED, options.sequences), options.steps * options.sequences
    if system == "random":
        return corpus.letters(order.positions(0, wanted)[1])
    import torch

    ids = order.positions(0, 200 * options.sequences)[1]
    lengths = (corpus.lengths[ids].astype(int) + 2).clip(max=MAX_TOKENS).tolist()
    generator = torch.Generator().manual_seed(SEED)
    grouped = list(LengthGroupedSampler(options.sequences, lengths=lengths, generator=generator))
    micro = ids[grouped].reshape(-1, options.micro)
    apart = len(micro) * options.micro // wanted
    return corpus.letters(micro[apart // 2 :: apart][: wanted // options.micro].ravel())


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def speeds(nucleotides: int, began: tuple[float, float], ended: tuple[float, float]) -> dict[str, float]:
    wall, cpu = (end - begin for begin, end in zip(began, ended, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"wall": nucleotides / wall, "cpu": nucleotides / cpu, "gib": memory}


def measure(options: argparse.Namespace, system: str, rate: float) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--worker", system, "--worker-dropout", str(rate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, default=Path("../shared/data/corpus/real_ncrna_distinct.fasta.gz"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="scratch space")
    parser.add_argument("--size", default="nano", help="published size of RiNALMo")
    parser.add_argument("--sequences", type=int, default=64, help="per step (global batch)")
    parser.add_argument("--micro", type=int, default=8, help="sequences of 1024 tokens that one forward pass may hold")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--attention", default="sdpa", help="theirs; the class itself chooses eager, which is slower")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--worker-dropout", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.worker:
        rate = options.worker_dropout
        train = train_ours(options, rate) if options.worker == "ours" else train_theirs(options, options.worker, rate)
        print(json.dumps(train))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options)
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for rate in options.dropout:
            for system in options.systems:
                figures = measure(options, system, rate)
                found.setdefault((rate, system), []).append(figures)
                print(f"round {number + 1}, dropout {rate}, {system}: {figures}", file=sys.stderr, flush=True)
    print("| dropout | system | nt/s CPU (range) | nt/s wall | ours over it, CPU | wall | peak GiB | mean loss |")
    print("|---|---|---|---|---|---|---|---|")
    for (rate, system), runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        ours = found.get((rate, "ours"), runs)
        ratio = {
            key: statistics.median(a[key] / b[key] for a, b in zip(ours, runs, strict=True)) for key in ("cpu", "wall")
        }
        spread = f"{min(run['cpu'] for run in runs):,.0f} to {max(run['cpu'] for run in runs):,.0f}"
        print(
            f"| {rate} | {system} | {median['cpu']:,.0f} ({spread}) | {median['wall']:,.0f} | {ratio['cpu']:.2f} | "
            f"{ratio['wall']:.2f} | {median['gib']:.1f} | {median['loss']:.3f} |"
        )


if __name__ == "__main__":
    main()
