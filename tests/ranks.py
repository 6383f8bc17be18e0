"""Starting real training processes from tests: N ranks of launch/pretrain.py, as a launcher would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pretrain.distributed import free_port

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "model.size=null",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.ffn=40",
    "model.attention_dropout=0",
    "model.residual_dropout=0",
]


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun and deepspeed give a worker."""
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return {**os.environ, **{name: str(value) for name, value in own.items()}}


def start(arguments: list[str], ranks: int = 1, cwd: Path | None = None) -> list[subprocess.Popen[str]]:
    """One process per rank, output captured."""
    port = free_port()
    command = [sys.executable, str(ROOT / "launch" / "pretrain.py"), *arguments]
    return [
        subprocess.Popen(
            command,
            env=environment(rank, ranks, port),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finish(processes: list[subprocess.Popen[str]], timeout: float = 240) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of every rank; kills all when one does not end in time."""
    try:
        return [(p.returncode, *texts) for p in processes for texts in [p.communicate(timeout=timeout)]]
    finally:
        for process in processes:
            process.kill()


def pretrain(arguments: list[str], ranks: int = 1, cwd: Path | None = None) -> list[tuple[int, str, str]]:
    return finish(start(arguments, ranks, cwd))


def pretrain_well(arguments: list[str], ranks: int = 1, cwd: Path | None = None) -> str:
    """As `pretrain`, for runs that must succeed; returns what rank 0 printed."""
    results = pretrain(arguments, ranks, cwd)
    assert [code for code, _, _ in results] == [0] * ranks, results
    return results[0][1]


def losses(run: Path) -> list[float]:
    """Training losses by step; asserts that every logged step stands in the file once."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [record for record in records if record["kind"] == "train"]
    steps = [record["step"] for record in training]
    assert steps == sorted(set(steps))
    return [record["loss"] for record in training]
