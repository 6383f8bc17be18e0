"""A rank that is gone is named; what is no loss of contact keeps its traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from pretrain.contact import LOST_CONTACT, LostContact, is_lost_contact, lost_ranks, sentence, told_when_lost
from pretrain.distributed import Peer, World
from pretrain.errors import PretrainError
from tests.pretrain import faults
from tests.ranks import QUICK, finish, logged_steps, pretrain_well, records, start, wait_for

FAULTS = Path(faults.__file__)
HERE = socket.gethostname()
CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:38535. "
    "This is typically caused by a remote worker crashing."
)
SILENT = "[/pytorch/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation to complete"


def world(*peers: Peer) -> World:
    return World(0, len(peers), 0, 1, torch.device("cpu"), peers)


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_dead_process_of_this_host_is_the_lost_rank() -> None:
    peers = [Peer(HERE, "127.0.0.1", os.getpid()), Peer(HERE, "127.0.0.1", os.getppid())]
    assert lost_ranks(world(*peers), CLOSED) == []
    assert lost_ranks(world(*peers, Peer(HERE, "127.0.0.1", dead_process())), CLOSED) == [2]


def test_a_rank_that_has_ended_and_is_not_waited_for_counts_as_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        time.sleep(0.2)
        peers = [Peer(HERE, "", os.getpid()), Peer(HERE, "", process.pid)]
        assert lost_ranks(world(*peers), SILENT) == [1]


def test_ranks_of_another_host_are_found_by_its_address() -> None:
    peers = [Peer(HERE, "10.0.0.1", os.getpid()), *(Peer("node7", "10.0.0.7", pid) for pid in (11, 12))]
    assert lost_ranks(world(*peers, Peer("node8", "10.0.0.8", 11)), CLOSED) == [1, 2]
    assert lost_ranks(world(*peers), SILENT) == []
    text = sentence(world(*peers[:2]), CLOSED, 10)
    assert text.startswith(
        "rank 0 lost contact with rank 1 (process 11 on node7): Connection closed by peer [10.0.0.7]"
    )
    assert "did not answer for 0.5 minutes (compute.timeout_minutes)" in sentence(world(*peers), SILENT, 0.5)


@pytest.mark.parametrize("text", [CLOSED, SILENT, "NCCL error: remote process exited or there was a network error"])
def test_errors_of_collectives_are_lost_contact(text) -> None:
    peers = (Peer(HERE, "", os.getpid()), Peer("elsewhere", "", 1))
    with pytest.raises(LostContact) as raised, told_when_lost(world(*peers), 10):
        raise RuntimeError(text)
    assert raised.value.exit_code == LOST_CONTACT


@pytest.mark.parametrize("text", ["shapes [2, 3] and [4] do not fit", "CUDA error: the launch timed out", "timeout"])
def test_other_errors_are_not(text) -> None:
    assert not is_lost_contact(RuntimeError(text))
    with pytest.raises(RuntimeError, match=text[:6]), told_when_lost(world(*[Peer(HERE, "", 1)] * 2), 10):
        raise RuntimeError(text)


def test_one_rank_alone_cannot_lose_contact() -> None:
    with pytest.raises(RuntimeError) as raised, told_when_lost(world(Peer(HERE, "", 1)), 10):
        raise RuntimeError(CLOSED)
    assert not isinstance(raised.value, PretrainError)


@pytest.mark.slow
def test_a_rank_whose_others_never_come_ends_with_a_sentence(synthetic_corpus, tmp_path) -> None:
    arguments = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "compute.timeout_minutes=0.05"]
    begun = time.monotonic()
    ((code, _, err),) = finish(start(arguments, ranks=1, env={"WORLD_SIZE": "2"}), timeout=60)
    assert time.monotonic() - begun < 60
    assert code == 2
    assert "rank 0 of 2 could not meet the others" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_by_the_others_and_the_run_continues(synthetic_corpus, tmp_path) -> None:
    arguments = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run"]
    arguments += ["checkpoint.every_steps=2", "compute.timeout_minutes=2"]
    ranks = start(["slow_steps=0.1", "--", *arguments], 3, script=FAULTS)
    wait_for(lambda: logged_steps(tmp_path / "run") >= 5)
    ranks[1].kill()
    results = finish(ranks, timeout=60)
    assert [code for code, _, _ in results] == [LOST_CONTACT, -9, LOST_CONTACT], results
    for rank in (0, 2):
        said = f"rank {rank} lost contact with "
        (told,) = [line for line in results[rank][2].splitlines() if line.startswith("error:")]
        log = (tmp_path / "run" / "logs" / f"rank-{rank:05d}.log").read_text().splitlines()
        for line in (told, log[-1]):
            assert said in line
            assert f"rank 1 (process {ranks[1].pid} on {HERE})" in line
        assert "Traceback" not in results[rank][2]
    pretrain_well(arguments, 2)
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, 21))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB."),
        RuntimeError(
            "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_lack_of_memory_says_what_to_lower(error, ranks) -> None:
    with pytest.raises(PretrainError) as raised, told_when_lost(world(*[Peer(HERE, "", os.getpid())] * ranks), 10):
        raise error
    assert not isinstance(raised.value, LostContact)
    assert "rank 0 has no memory left on cpu (tried to allocate " in str(raised.value)
    assert "lower batch.tokens_per_micro_batch" in str(raised.value)
    assert "objective.max_tokens, which changes samples" in str(raised.value)
