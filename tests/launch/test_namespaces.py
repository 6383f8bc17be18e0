"""Two nodes on one machine: network namespaces joined by a cable that can be pulled.

Each has its own interfaces and host name; they share the disk, as the nodes of a cluster do. Needs root and `ip` of
iproute2, and is skipped elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pretrain.contact import LOST_CONTACT
from pretrain.distributed import free_port
from tests.launch.test_launchers import shell
from tests.pretrain import faults
from tests.ranks import PRETRAIN, QUICK, ROOT, last, logged_steps, losses, pretrain_well, records, same_bits, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.soak]

BIN = Path(sys.executable).parent
FAULTS = Path(faults.__file__)
STEPS = 20
TIMEOUT = 0.25  # minutes that a rank waits for another


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], text=True, capture_output=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Node:
    """A network namespace with one cable."""

    def __init__(self, number: int):
        self.number, self.name = number, f"rnafoundry-{os.getpid()}-{number}"
        self.interface, self.address = "cable0", f"10.77.0.{number + 1}"
        ip("netns", "add", self.name)

    def plug(self, cable: str) -> None:
        ip("link", "set", cable, "netns", self.name, "name", self.interface)
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", self.interface)
        for interface in ("lo", self.interface):
            ip("-n", self.name, "link", "set", interface, "up")

    def unplug(self) -> None:
        ip("-n", self.name, "link", "set", self.interface, "down")

    def start(self, command: list[object], output: Path) -> subprocess.Popen[str]:
        """Run ``command`` here, under a host name of its own."""
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
        environment = shell(GLOO_SOCKET_IFNAME=self.interface, DS_ACCELERATOR="cpu")
        with output.open("w") as file:
            return subprocess.Popen(
                [*inside, f"node{self.number}", *map(str, command)],
                env=environment,
                cwd=ROOT,
                text=True,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """As a power cut does: every process at once."""
        for pid in ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        self.kill()
        ip("netns", "delete", self.name)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    if os.geteuid() != 0:
        pytest.skip("only root may create network namespaces")
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"network namespaces need `{tool}` (packages iproute2 and util-linux)")
    made: list[Node] = []
    ends = [f"rf{os.getpid()}{end}" for end in "ab"]  # an interface's name has at most 15 characters
    try:
        try:
            made += [Node(0)]
            made += [Node(1)]
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for node, end in zip(made, ends, strict=True):
                node.plug(end)
        except OSError as error:
            pytest.skip(f"network namespaces cannot be created here ({error})")
        yield made
    finally:
        for node in made:
            node.remove()


@pytest.fixture(scope="module")
def base(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(arguments but run.name, run.directory)."""
    directory = tmp_path_factory.mktemp("nodes")
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={directory}", f"budget.steps={STEPS}"]
    return [*QUICK, *settings, "checkpoint.every_steps=5", "deepspeed.zero_stage=2"], directory


@pytest.fixture(scope="module")
def whole(base) -> Path:
    """One node with two ranks, uninterrupted."""
    pretrain_well([*base[0], "run.name=whole"], ranks=2)
    return base[1] / "whole"


Launcher = Callable[[int, int, Path], list[object]]


def torchrun(number: int, port: int, directory: Path) -> list[object]:
    static = ["--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1]
    return [BIN / "torchrun", *static, "--master-addr", "10.77.0.1", "--master-port", port]


def deepspeed(number: int, port: int, directory: Path) -> list[object]:
    hosts = directory / "hosts"
    hosts.write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
    here = ["--no_ssh", "--node_rank", number, "--master_addr", "10.77.0.1", "--master_port", port]
    return [BIN / "deepspeed", "-H", hosts, *here]


def start(
    nodes: list[Node], launcher: Launcher, script: list[object], directory: Path
) -> list[tuple[subprocess.Popen[str], Path]]:
    port = free_port()
    outputs = [directory / f"node{node.number}.txt" for node in nodes]
    return [
        (node.start([*launcher(node.number, port, directory), *script], output), output)
        for node, output in zip(nodes, outputs, strict=True)
    ]


def finish(started: list[tuple[subprocess.Popen[str], Path]], timeout: float) -> list[tuple[int, str]]:
    """(exit code, output) of every node's launcher."""
    until = time.monotonic() + timeout
    return [(process.wait(max(1.0, until - time.monotonic())), output.read_text()) for process, output in started]


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_two_nodes_give_the_losses_of_two_ranks_on_one(nodes, base, whole, tmp_path, launcher) -> None:
    name = f"two-{launcher.__name__}"
    results = finish(start(nodes, launcher, [PRETRAIN, *base[0], f"run.name={name}"], tmp_path), timeout=300)
    assert [code for code, _ in results] == [0, 0], results
    run = base[1] / name
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))
    assert len(list((run / "logs").glob("rank-*.log"))) == 2


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
@pytest.mark.parametrize("fault", ["power", "cable"])
def test_the_loss_of_a_node_ends_the_other_and_the_run_goes_on_without_it(
    nodes, base, whole, tmp_path, launcher, fault
) -> None:
    """A dead node is noticed at once and named; one that is silent, after the time-out. Then one rank finishes."""
    name = f"{fault}-{launcher.__name__}"
    arguments, run = [*base[0], f"run.name={name}"], base[1] / name
    slow = [FAULTS, "slow_steps=0.2", "--", *arguments, f"compute.timeout_minutes={TIMEOUT}"]
    started = start(nodes, launcher, slow, tmp_path)
    wait_for(lambda: logged_steps(run) >= 8 or started[0][0].poll() is not None, timeout=300)
    assert 8 <= logged_steps(run) < STEPS, started[0][1].read_text()
    nodes[1].kill() if fault == "power" else nodes[1].unplug()
    lost = time.monotonic()
    ((code, output),) = finish(started[:1], timeout=60 * TIMEOUT + 45)
    waited = time.monotonic() - lost
    assert waited < (45 if fault == "power" else 60 * TIMEOUT + 40)
    assert code == (LOST_CONTACT if launcher is deepspeed else 1), output
    log = (run / "logs" / "rank-00000.log").read_text()
    if fault == "power":
        assert "rank 0 lost contact with rank 1 (process" in log.splitlines()[-1]
        assert "on node1)" in log.splitlines()[-1]
        assert "error: rank 0 lost contact with rank 1" in output
    else:
        assert "lost contact" in log or "no progress for" in log, log
        assert "error: " in output
        (cut_off,) = finish(started[1:], timeout=60 * TIMEOUT + 45)  # the node that was cut off does not hang either
        assert cut_off[0] != 0
    assert last(run).progress.step == 5 * (len(losses(run)) // 5)

    pretrain_well(arguments, ranks=1)
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-5)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert last(run).progress.step == STEPS
