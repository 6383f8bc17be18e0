"""A launcher that was killed is missed by the processes below it, at whatever moment it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT, wait_for

RANK = """
import sys
sys.path.insert(0, {root!r})

def wait(moment):
    if moment == {moment!r}:
        print("ready", flush=True)
        sys.stdin.readline()

wait("before it looks")
from pretrain.signals import StopRequest, end_when_asked
end_when_asked()
wait("while it imports")
stop = StopRequest()
wait("in training")
wait("never")
print(stop.requested(), stop.reason, flush=True)
"""
MOMENTS = ["before it looks", "while it imports", "in training", "never"]
LAUNCH = ["-m", "deepspeed.launcher.launch"]  # a stand-in with the command line of DeepSpeed's
ABOVE = {  # what is above a rank, the first of which is killed, and what the rank's environment says
    "torchrun": (["torchrun"], {"TORCHELASTIC_RUN_ID": "none"}),
    "deepspeed": (["deepspeed-command", *LAUNCH, "--log_level=info"], {"CROSS_RANK": "0"}),
    "deepspeed, the child": ([*LAUNCH, "--log_level=info"], {"CROSS_RANK": "0"}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stand-ins for launchers, each of which starts what follows its options and waits for it."""
    package = tmp_path / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.touch()
    chain = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[{first}:]])"
    (package / "launch.py").write_text(chain.format(first=2))
    for name in ("torchrun", "deepspeed-command"):
        (tmp_path / name).write_text(chain.format(first=1))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("how", ABOVE)
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_is_missed_whenever_it_went(folder: Path, how: str, moment: str) -> None:
    chain, told = ABOVE[how]
    (folder / "rank.py").write_text(RANK.format(root=str(ROOT), moment=moment))
    started = subprocess.Popen(
        [sys.executable, *chain, "rank.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, **told},
    )
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    if moment != "never":
        started.kill()
        started.wait(60)
    expected = "False None" if moment == "never" else "True the launcher is gone"
    if moment == "while it imports":  # there is nothing to save: it does not wait until it is through
        expected = "the launcher is gone; training had not begun"
    else:
        started.stdin.write("go on\n")
        started.stdin.flush()
    assert started.stdout.read().strip() == expected
    started.stdin.close()
    started.wait(60)


def test_the_launcher_that_pdsh_starts_on_another_node_has_no_command_above_it(folder: Path) -> None:
    """Its parent is a shell that ssh started; nothing is missing."""
    (folder / "rank.py").write_text(RANK.format(root=str(ROOT), moment="no moment"))
    command = " ".join([sys.executable, *LAUNCH, "--node_rank=1", "rank.py", ">", "told"])
    environment = {**os.environ, "CROSS_RANK": "1"}
    subprocess.run(["sh", "-c", f"sleep 0.2; ({command}) &"], cwd=folder, env=environment, timeout=60, check=True)
    wait_for(lambda: (folder / "told").exists() and (folder / "told").read_text().endswith("\n"))
    assert (folder / "told").read_text() == "False None\n"
