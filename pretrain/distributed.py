"""Processes: who this rank is, under any launcher, and the few collectives that the loop itself uses.

Works under `deepspeed`, `torchrun`, `srun` and plain `python`. What DeepSpeed does not do by itself on a CPU is done
here (facts: specs deepspeed 0, 2): no JIT build of an unused op, threads per rank, a free port, a clean process end.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from data.errors import DataError
from models.errors import ModelError
from pretrain.errors import PretrainError
from pretrain.products import prepare_gpu

USER_ERRORS = (DataError, ModelError, PretrainError)
T = TypeVar("T")


class OtherRankFailed(PretrainError):
    """Another rank reports the reason; this one only has to end with the same exit code."""

    told_elsewhere = True


@dataclass(frozen=True)
class Peer:
    """Where a rank runs: what a report of its loss names, and how its loss is recognised (pretrain/contact.py)."""

    host: str
    address: str  # of the interface that leads to the first rank
    pid: int


@dataclass(frozen=True)
class World:
    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    device: torch.device
    peers: tuple[Peer, ...] = ()  # all ranks in order, where there are several

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, exact for counts up to 2**53."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """A picklable value of every rank, in rank order, on every rank."""
        if self.ranks == 1:
            return [value]
        values: list[T] = [value] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if it fails with a user's error on any, all ranks fail and one tells why."""
        problem, result = None, None
        try:
            result = work()
        except USER_ERRORS as error:
            problem = error
        self.fail_together(problem)
        return result  # type: ignore[return-value]

    def fail_together(self, problem: Exception | None) -> None:
        """Raise on every rank if any has a ``problem``; the first that has one tells it. All ranks must call this."""
        problems = self.gather(str(problem) if problem else None)
        failed = [(rank, text) for rank, text in enumerate(problems) if text is not None]
        if not failed:
            return
        if failed[0][0] != self.rank:
            raise OtherRankFailed(failed[0][1])
        raise problem  # type: ignore[misc]

    def meet(self, problem: Exception | None = None, stopping: bool = False) -> bool:
        """Before work that all do together: whether any rank is ``stopping``. Fails on all if any has a ``problem``."""
        stopped, failing = self.sum([stopping, problem is not None])
        if failing:
            self.fail_together(problem)
        return bool(stopped)

    def require_same(self, value: str, what: str) -> None:
        """Refuse to go on when ranks disagree on ``value``: a node that sees other files would train on other data."""
        values = self.gather(value)
        if len(set(values)) > 1:
            seen = ", ".join(value[:16] for value in values)
            text = f"the ranks do not agree on the {what}: {seen}; give all nodes the same files"
            raise PretrainError(text) if self.first else OtherRankFailed(text)

    def barrier(self) -> None:
        if self.ranks > 1:
            dist.barrier()


def start(threads: int | None, timeout_minutes: float = 10.0) -> World:
    """Join the other ranks. ``threads``: CPU threads of this rank; the node's cores over its ranks unless given.

    ``timeout_minutes`` bounds every wait for another rank, from the first meeting on: in gloo the waiting call then
    raises, in NCCL the watchdog ends the process.
    """
    on_gpu = torch.cuda.is_available()
    _fill_environment()
    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), _local_ranks()
    torch.set_num_threads(threads or _threads(local_ranks))
    import_deepspeed(on_gpu)
    import deepspeed

    if on_gpu:
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        # DeepSpeed takes it for the number of the GPU, which it is not where each task of a node sees one GPU alone.
        os.environ["LOCAL_RANK"] = str(device.index)
        prepare_gpu()
    else:
        device = torch.device("cpu")
    timeout = timedelta(minutes=timeout_minutes)
    try:
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False, timeout=timeout)
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PretrainError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not meet the others at {where} "
            f"({' '.join(str(error).split())[:200]}); start all ranks within {timeout_minutes:g} minutes of each "
            "other, with a free --master_port, and on several nodes name the network (docs/clusters.md)"
        ) from error
    # It makes groups of its own without saying how long to wait in them: torch's 10 minutes in NCCL, 30 in gloo.
    deepspeed.comm.comm.cdb.new_group = partial(dist.new_group, timeout=timeout)
    world = World(dist.get_rank(), dist.get_world_size(), local_rank, local_ranks, device)
    if world.ranks == 1:
        return world
    return replace(world, peers=tuple(world.gather(Peer(socket.gethostname(), _own_address(), os.getpid()))))


def import_deepspeed(on_gpu: bool) -> None:
    """Import DeepSpeed quietly, and without its CPU shared-memory op: half a minute of compiling, for nothing used."""
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"deepspeed.*")
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compatible_ops

    compatible_ops["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)


def finish() -> None:
    """Leave the process group. Without the barrier gloo aborts now and then at exit although all went well."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank_of_environment() -> int:
    """This process's rank before any process group exists."""
    in_step = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return int(os.environ.get("RANK", os.environ["SLURM_PROCID"] if in_step else "0"))


def _fill_environment() -> None:
    """RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous address, for launchers that do not set them."""
    environment = os.environ
    # Only a task of `srun` has a step of several tasks: the batch script itself has SLURM_NTASKS too, but no peers.
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment.setdefault(
            "MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", environment["SLURM_JOB_NODELIST"]))
        )
        # Every task computes the same port, and two jobs on one node get different ones.
        environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
    if "RANK" not in environment:
        environment.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(free_port())
    environment.setdefault("LOCAL_RANK", "0")


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list such as `gpu[03-05,09],login1`."""
    bracketed = re.match(r"([^,\[]+)\[(\d+)", nodes)
    return bracketed.group(1) + bracketed.group(2) if bracketed else nodes.split(",")[0]


def _own_address() -> str:
    """The address under which the first rank sees this node; no packet is sent to find it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            return str(probe.getsockname()[0])
    except OSError:  # an IPv6-only network: a lost rank is then named by its host alone
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _local_ranks() -> int:
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        ranks = re.match(r"\d+", os.environ.get(name, ""))  # Slurm writes `4(x2),3`
        if ranks:
            return int(ranks.group())
    return 1


def _threads(local_ranks: int) -> int:
    """Cores per rank, unless OMP_NUM_THREADS says otherwise: two ranks with all cores each run ten times slower."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)
