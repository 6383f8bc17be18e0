"""The job scripts for Slurm, with stand-ins for its programs (tests/launch/slurm.py) and real ranks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.distributed import free_port
from pretrain.signals import RESUBMIT
from tests.launch import slurm
from tests.launch.test_launchers import shell
from tests.ranks import QUICK, ROOT, last, logged_steps, losses, pretrain_well, same_bits, wait_for

FOLDER = ROOT / "launch" / "slurm"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
BY_NAME = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


class Job:
    """One start of a job script."""

    def __init__(self, folder: Path, script: Path, arguments: list[str], ranks: int = 2, **environment: object):
        programs = folder / "bin"
        if not programs.exists():
            slurm.install(folder)
        self.calls_file = folder / "calls"
        per_node = {"SLURM_TEST_TASKS_PER_NODE": ranks, "SLURM_TEST_NODES": 1}
        if script.stem.endswith("torchrun"):
            per_node = {"SLURM_TEST_NODES": 1, "RANKS_PER_NODE": ranks}
        self.id = free_port()  # decides the port where ranks meet
        given = {"SLURM_TEST_CALLS": self.calls_file, "SLURM_TEST_JOB": self.id, **per_node, **environment}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [str(programs / "sbatch"), str(script), *arguments],
            cwd=ROOT,
            env=shell(PYTHON=sys.executable, PATH=path, DS_ACCELERATOR="cpu") | slurm.text(given),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """(exit code, output) of the batch script."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, output

    def requeued(self) -> bool:
        return f"scontrol requeue {self.id}" in self.calls_file.read_text().splitlines()


def program(folder: Path, body: str) -> Path:
    """Something to be run in place of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("path", [*SCRIPTS, FOLDER / "job.sh"], ids=lambda path: path.name)
def test_the_syntax_is_right(path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-e", "SC1091,SC2015,SC2016", str(path)], check=True, cwd=ROOT)


@BY_NAME
def test_what_is_asked_of_slurm(script) -> None:
    options = slurm.directives(script)
    assert re.fullmatch(r"\d+-\d+", options["nodes"]), "a range, so that fewer nodes will do"
    seconds = re.fullmatch(r"USR1@(\d+)", options["signal"])  # not B:, which would tell the batch script alone
    assert seconds
    assert int(seconds[1]) >= 120
    assert "requeue" in options
    assert options["open-mode"] == "append"


@BY_NAME
@pytest.mark.parametrize(("code", "again"), [(75, True), (0, False), (1, False), (2, False), (76, False), (137, False)])
def test_75_is_requeued_and_every_other_code_passed_on(tmp_path, script, code, again) -> None:
    job = Job(tmp_path, script, ["--config", "a.yaml"], PYTHON=program(tmp_path, f"exit {code}"))
    ended, output = job.end()
    assert ended == code
    assert job.requeued() == again
    assert ("not requeued" in output) == (code not in (0, 75))


def test_a_job_that_cannot_be_requeued_says_so(tmp_path) -> None:
    job = Job(tmp_path, SCRIPTS[0], [], PYTHON=program(tmp_path, "exit 75"), SLURM_TEST_SCONTROL=1)
    code, output = job.end()
    assert code == 75
    assert "error: requeueing failed" in output


def test_a_job_submitted_elsewhere_says_where_to_submit_it(tmp_path) -> None:
    (tmp_path / "launch" / "slurm").mkdir(parents=True)
    shutil.copy(FOLDER / "job.sh", tmp_path / "launch" / "slurm")
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", str(SCRIPTS[0])], env=environment, text=True, capture_output=True)
    assert done.returncode == 2
    assert "submit job scripts from the repository root" in done.stderr


def test_ranks_get_threads_an_address_and_their_arguments_unchanged(tmp_path) -> None:
    shown = program(tmp_path, 'echo "$MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS $NCCL_DEBUG"; printf "<%s>" "$@"')
    script = next(path for path in SCRIPTS if path.stem == "pretrain")
    job = Job(tmp_path, script, ["--config", "a b.yaml", "run.name=x"], ranks=1, PYTHON=shown)
    code, output = job.end()
    assert code == 0
    assert f"localhost {20000 + job.id % 20000} 1 WARN" in output
    assert "<-u><launch/pretrain.py><--config><a b.yaml><run.name=x>" in output


@pytest.fixture(scope="module")
def base(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    directory = tmp_path_factory.mktemp("slurm")
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={directory}", "budget.steps=3000"]
    return [*QUICK, *settings, "compute.timeout_minutes=1"], directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "number"),
    [
        pytest.param(
            script,
            number,
            marks=() if first == (number == signal.SIGUSR1) else pytest.mark.soak,
            id=f"{script.stem}-{number.name}",
        )
        for script, first in zip(SCRIPTS, (True, False), strict=True)
        for number in (signal.SIGUSR1, signal.SIGTERM)
    ],
)
def test_a_signal_to_the_batch_script_reaches_the_ranks_which_save(base, tmp_path, script, number) -> None:
    """Then the requeued job continues, here on one rank fewer, to the losses of a run that was never stopped."""
    name = f"{script.stem}-{number.name}"
    arguments, run = [*base[0], f"run.name={name}"], base[1] / name
    job = Job(tmp_path, script, arguments)
    wait_for(lambda: logged_steps(run) >= 20 or job.process.poll() is not None, timeout=90)
    job.process.send_signal(number)
    code, output = job.end()
    assert code == RESUBMIT, output
    assert job.requeued()
    stopped = last(run).progress.step
    assert 20 <= stopped < 3000
    assert len(losses(run)) == stopped

    again = [*arguments, f"budget.steps={stopped + 20}", "schedule.decay_steps=2996"]
    code, output = Job(tmp_path, script, again, ranks=1).end()
    assert code == 0, output
    assert f"at step {stopped}" in output
    whole = [*base[0], "run.name=whole", f"budget.steps={stopped + 20}", "schedule.decay_steps=2996"]
    pretrain_well([*whole, f"run.directory={tmp_path}"])
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def listening(name: str) -> list[int]:
    """Processes of a run, ranks or torchrun, that handle SIGUSR1 by now."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")[1:3]
            status = (process / "status").read_text()
            ours = process.name.isdigit() and f"run.name={name}".encode() in (process / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        handled = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
        if ours and {b"launch/pretrain.py", b"launch/torchrun.py"} & set(command):
            found += [int(process.name)] * (handled >> (signal.SIGUSR1 - 1) & 1)
    return found


@pytest.mark.slow
@BY_NAME
def test_a_signal_before_the_first_step_is_requeued_too(base, tmp_path, script) -> None:
    name = f"{script.stem}-early"
    job = Job(tmp_path, script, [*base[0], f"run.name={name}"])
    first = 2 if script.stem == "pretrain" else 1
    wait_for(lambda: len(listening(name)) >= first)
    job.process.send_signal(signal.SIGUSR1)
    code, output = job.end()
    assert code == RESUBMIT, output
    assert job.requeued()


@pytest.mark.slow
def test_two_ranks_started_by_srun_and_by_torchrun_are_the_same_run(base, tmp_path) -> None:
    runs = []
    for script in SCRIPTS:
        runs.append(base[1] / f"same-{script.stem}")
        job = Job(tmp_path / script.stem, script, [*base[0], f"run.name={runs[-1].name}", "budget.steps=6"])
        code, output = job.end()
        assert code == 0, output
    assert losses(runs[0]) == losses(runs[1])
    assert same_bits(last(runs[0]), last(runs[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("body", "code"), [("exit 75", 75), ("exit 1", 1), ("kill -9 $$", 137), ("exit 0", 0)])
def test_our_torchrun_passes_exit_codes_on(tmp_path, body, code) -> None:
    command = [sys.executable, ROOT / "launch" / "torchrun.py", "--nproc-per-node", "2", "--standalone", "--no-python"]
    script = program(tmp_path, body)
    done = subprocess.run([*map(str, command), str(script)], env=shell(), capture_output=True, text=True, timeout=90)
    assert done.returncode == code, done.stderr
