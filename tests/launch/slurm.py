"""The programs of Slurm that a job script calls, as far as it needs them; called by their names, with a log of calls.

`sbatch SCRIPT ARGUMENTS` reads the #SBATCH lines and runs a copy of the script, as Slurm does, in the submit directory.
`srun COMMAND` runs the job's tasks on this machine, passes SIGUSR1 and SIGTERM on to them, and ends with the largest
exit code. `scontrol show hostnames` and `scontrol requeue` answer as they should.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def install(folder: Path) -> Path:
    """A folder for PATH with these programs; their calls are logged to `folder/calls`."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol"):
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)
    return programs


def log(arguments: list[str]) -> None:
    with open(os.environ["SLURM_TEST_CALLS"], "a") as file:
        file.write(" ".join(arguments) + "\n")


def directives(script: Path) -> dict[str, str]:
    """The options of a job script's #SBATCH lines."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script.read_text(), re.MULTILINE)
    return {name: value for name, value in lines}


def sbatch(script: str, *arguments: str) -> int:
    options = directives(Path(script))
    nodes = int(os.environ["SLURM_TEST_NODES"])
    tasks = nodes * int(os.environ.get("SLURM_TEST_TASKS_PER_NODE", options["ntasks-per-node"]))
    given = {
        "SLURM_JOB_ID": os.environ["SLURM_TEST_JOB"],
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": tasks,
        "SLURM_CPUS_PER_TASK": 1,
        "SLURM_GPUS_ON_NODE": 2,
        "SLURM_SUBMIT_DIR": os.getcwd(),
    }
    spool = Path(tempfile.mkdtemp(), "slurm_script")
    shutil.copy(script, spool)
    os.chdir("/")
    os.execvpe("bash", ["bash", str(spool), *arguments], os.environ | text(given))


def srun(*arguments: str) -> int:
    command = list(arguments)
    while command[0].startswith("--"):
        command.pop(0)
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    processes = []
    for number in range(tasks):
        given = {
            "SLURM_PROCID": number,
            "SLURM_STEP_NUM_TASKS": tasks,
            "SLURM_NODEID": number * nodes // tasks,
            "SLURM_LOCALID": number % (tasks // nodes),
            "SLURM_STEP_TASKS_PER_NODE": f"{tasks // nodes}(x{nodes})",
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        }
        processes.append(subprocess.Popen(command, env=os.environ | text(given)))

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, forward)
    codes = [process.wait() for process in processes]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(*arguments: str) -> int:
    if arguments[:2] == ("show", "hostnames"):
        print(arguments[2])
    return int(os.environ.get("SLURM_TEST_SCONTROL", "0")) if arguments[0] == "requeue" else 0


def text(variables: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in variables.items()}


if __name__ == "__main__":
    log(sys.argv[1:])
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](*sys.argv[2:]))
