"""Which GPU a rank takes, where there are any, and how long collectives wait."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import deepspeed
import pytest
import torch

from pretrain import distributed
from tests.ranks import ROOT

# In a process of its own, which may join a group of ranks.
GROUPS = """
import torch
from pretrain import distributed
distributed.start(threads=1, timeout_minutes=3)
import deepspeed
for group in (torch.distributed.group.WORLD, deepspeed.comm.new_group([0])):
    print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
distributed.finish()
"""


@pytest.mark.parametrize(("local_rank", "gpus", "taken"), [(3, 8, 3), (3, 1, 0)], ids=["all", "its own alone"])
def test_a_rank_takes_a_gpu_that_it_sees_and_so_does_deepspeed(local_rank, gpus, taken, monkeypatch) -> None:
    """Slurm's --gpus-per-task shows each task one GPU, as number 0; DeepSpeed goes by LOCAL_RANK."""
    told: list[object] = []
    for name, value in {"RANK": 3, "WORLD_SIZE": 8, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(distributed, "import_deepspeed", lambda _: None)
    monkeypatch.setattr(distributed, "prepare_gpu", lambda: told.append("prepared"))
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda backend, **_: told.extend([backend, os.environ["LOCAL_RANK"]])
    )
    monkeypatch.setattr(deepspeed.comm.comm, "cdb", SimpleNamespace())
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 1)
    world = distributed.start(threads=1)
    assert told == [torch.device("cuda", taken), "prepared", "nccl", str(taken)]
    assert (world.device, world.local_rank) == (torch.device("cuda", taken), local_rank)


@pytest.mark.slow
def test_groups_that_deepspeed_makes_wait_as_long_as_all_ranks_together() -> None:
    done = subprocess.run([sys.executable, "-c", GROUPS], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.split() == ["180.0", "180.0"], done.stderr
