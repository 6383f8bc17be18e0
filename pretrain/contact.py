"""What a rank says when another one is gone or silent, instead of a traceback out of a collective.

A killed rank closes its connections and the others notice at once; a node that loses its network or power, or a rank
that hangs, is noticed after `compute.timeout_minutes`. Either way nothing can be saved any more, since a checkpoint
needs all ranks: the run ends, and continues from its newest checkpoint, on the nodes that are left if need be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist

from pretrain.distributed import USER_ERRORS, World
from pretrain.errors import PretrainError

LOST_CONTACT = 76  # exit code: nothing wrong with the recipe; start the same command again
_LOST = re.compile(
    "(gloo|nccl).*(closed|reset|refused|timed out|timeout|broken pipe|no route|unreachable|remote)", re.I | re.S
)
log = logging.getLogger("rnafoundry")


class LostContact(PretrainError):
    """Another rank does not answer."""

    exit_code = LOST_CONTACT


@contextlib.contextmanager
def told_when_lost(world: World, timeout_minutes: float) -> Iterator[None]:
    """Turn the failure of a collective into LostContact, and a lack of memory into a PretrainError.

    One sentence names the lost rank where that is known, or says what to lower.
    That sentence, and those of a user's mistakes, also become the last line of this rank's log file.
    """
    try:
        yield
    except USER_ERRORS as error:
        log.info("ended: %s", error)
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            text = no_memory(world, str(error))
            log.info("ended: %s", text)
            raise PretrainError(text) from error
        if world.ranks == 1 or not is_lost_contact(error):
            raise
        text = sentence(world, str(error), timeout_minutes)
        log.info("ended: %s", text)
        raise LostContact(text) from error


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed because of another rank: torch has no class of its own for it under gloo."""
    return isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of a device, or of the host, for which torch has no class."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def no_memory(world: World, said: str) -> str:
    """``said``: torch's message, whose advice about its allocator is left out."""
    asked = re.search(r"tried to allocate [\d.]+ \w+", said, re.I)
    return (
        f"rank {world.rank} has no memory left on {world.device}" + (f" ({asked[0].lower()})" if asked else "") + "; "
        "set model.checkpointing=true or a higher deepspeed.zero_stage, or lower batch.tokens_per_micro_batch, which "
        "changes no sample and no mask (an alignment is always alone in a micro-batch: there objective.max_tokens, "
        "which changes samples); launch/plan.py says what fits. The run then goes on from its last checkpoint"
    )


def sentence(world: World, said: str, timeout_minutes: float) -> str:
    """``said``: the message of the collective's error."""
    reason = re.sub(r"^\[\S*\]\s*", "", said.split("\n")[0]).split(". ")[0].strip(" .")[:200]
    lost = lost_ranks(world, said)
    named = [f"rank {rank} (process {world.peers[rank].pid} on {world.peers[rank].host})" for rank in lost]
    if named:
        who = ("one of " if len(named) > 1 else "") + ", ".join(named)
    elif re.search("timed out|timeout", said, re.I):
        who = f"another rank, which did not answer for {timeout_minutes:g} minutes (compute.timeout_minutes)"
    else:
        who = "another rank"
    return (
        f"rank {world.rank} lost contact with {who}: {reason}. Nothing was saved by this. The logs of the ranks, "
        "logs/rank-*.log, say how far each came; the same command continues from the newest checkpoint, also on fewer "
        "nodes"
    )


def lost_ranks(world: World, said: str) -> list[int]:
    """Other ranks that are known to be gone: dead processes of this host, else those at the address in ``said``."""
    others = [rank for rank in range(len(world.peers)) if rank != world.rank]
    host = socket.gethostname()
    here = [rank for rank in others if world.peers[rank].host == host]
    dead = [rank for rank in here if not _alive(world.peers[rank].pid)]
    if dead:
        return dead
    addresses = set(re.findall(r"\[([0-9a-fA-F.:]+)\]:\d+", said))
    return [rank for rank in others if rank not in here and world.peers[rank].address in addresses]


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
