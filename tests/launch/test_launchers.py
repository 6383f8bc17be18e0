"""The same command under every launcher gives the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.distributed import free_port
from tests.ranks import PRETRAIN, QUICK, ROOT, losses, pretrain_well

BIN = Path(sys.executable).parent
TOLD_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_")


@pytest.fixture(scope="module")
def settings(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list, Path]]:
    directory = tmp_path_factory.mktemp("runs")
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={directory}", "budget.steps=6"]
    return lambda name: ([*base, f"run.name={name}"], directory / name)


@pytest.fixture(scope="module")
def reference(settings) -> list[float]:
    arguments, run = settings("reference")
    pretrain_well(arguments)
    return losses(run)


def shell(**added: object) -> dict[str, str]:
    """The environment of a person's shell: nothing in it tells ranks."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(TOLD_BY_LAUNCHERS)}
    return {**plain, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in added.items()}}


def run_command(command: list[object], cwd: Path = ROOT, **environment: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=shell(**environment), text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require_same(run: Path, reference: list[float], ranks: int) -> None:
    np.testing.assert_allclose(losses(run), reference, rtol=1e-5)
    assert len(list((run / "logs").glob("rank-*.log"))) == ranks


@pytest.mark.slow
def test_deepspeed_command(settings, reference) -> None:
    arguments, run = settings("deepspeed")
    run_command([BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), "launch/pretrain.py", *arguments])
    require_same(run, reference, ranks=2)


@pytest.mark.slow
def test_torchrun(settings, reference) -> None:
    arguments, run = settings("torchrun")
    run_command([BIN / "torchrun", "--nproc-per-node", 2, "--standalone", "launch/pretrain.py", *arguments])
    require_same(run, reference, ranks=2)


@pytest.mark.slow
def test_srun(settings, reference) -> None:
    """Two tasks as Slurm starts them on one node: no RANK, no MASTER_ADDR."""
    arguments, run = settings("srun")
    slurm = {
        "SLURM_NTASKS": 2,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": free_port(),
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    command = [sys.executable, str(PRETRAIN), *arguments]
    tasks = [
        subprocess.Popen(
            command,
            env=shell(**slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        outputs = [task.communicate(timeout=120)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], outputs
    require_same(run, reference, ranks=2)


@pytest.mark.slow
def test_plain_python_from_another_directory(settings, reference, tmp_path) -> None:
    arguments, run = settings("elsewhere")
    run_command([sys.executable, PRETRAIN, *arguments], cwd=tmp_path)
    require_same(run, reference, ranks=1)


@pytest.mark.slow
def test_python_module(settings, reference) -> None:
    arguments, run = settings("module")
    run_command([sys.executable, "-m", "launch.pretrain", *arguments])
    require_same(run, reference, ranks=1)


@pytest.mark.slow
def test_deepspeed_command_from_another_directory_with_relative_paths(settings, reference, tmp_path) -> None:
    arguments, _ = settings("relative")
    arguments = [argument for argument in arguments if not argument.startswith("run.directory")]
    launcher = [BIN / "deepspeed", "--num_gpus", 1, "--master_port", free_port()]
    run_command([*launcher, PRETRAIN, *arguments], cwd=tmp_path)
    require_same(tmp_path / "runs" / "relative", reference, ranks=1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_wrong_setting_is_told_once_under_a_launcher(settings, launcher) -> None:
    arguments, _ = settings("wrong")
    starts = {
        "deepspeed": [BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port()],
        "torchrun": [BIN / "torchrun", "--nproc-per-node", 2, "--standalone"],
    }
    command = [str(part) for part in [*starts[launcher], PRETRAIN, *arguments, "data.corpus=nowhere"]]
    done = subprocess.run(command, cwd=ROOT, env=shell(), text=True, capture_output=True, timeout=240)
    assert done.returncode != 0
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "nowhere" in told[0]
