"""launch/pretrain.py with a fault put into it: `faults.py FAULT=VALUE ... -- arguments of launch/pretrain.py`.

Faults live here, not in the product. Each takes its value as text and patches the loaded modules before training; so do
the observers of observing.py.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)


def changed_loss(change, applies) -> None:
    """Let ``change`` have the loss of every micro-batch for whose trainer (rank, steps done) ``applies``."""
    from pretrain.objectives.mlm import MLM
    from pretrain.trainer import Trainer

    plain_loss, plain_run, trainers = MLM.loss, Trainer.run, []

    def run(self):
        trainers.append(self)
        return plain_run(self)

    def loss(self, model, batch):
        total, counts = plain_loss(self, model, batch)
        here = applies(trainers[0].world.rank, trainers[0].progress.step)
        return change(total) if here else total, counts

    MLM.loss, Trainer.run = loss, run


def on_rank(where: str):
    """`RANK:FIRST:LAST`: on that rank, in steps [FIRST, LAST], counted from 0."""
    rank, first, last = map(int, where.split(":"))
    return lambda at_rank, step: at_rank == rank and first <= step <= last


def nan_loss(where: str) -> None:
    """`nan_loss=RANK:FIRST:LAST`: on one rank the loss of these steps is not a number."""
    changed_loss(lambda total: total * float("nan"), on_rank(where))


def infinite_gradient(where: str) -> None:
    """`infinite_gradient=RANK:FIRST:LAST`: on one rank a gradient of these steps overflows, its loss being finite."""
    import torch

    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    changed_loss(Overflowing.apply, on_rank(where))


def kill_in_save(where: str) -> None:
    """`kill_in_save=RANK:STEP:PLACE`: the rank kills itself while step STEP is saved, at one of the places below."""
    from pretrain import saving

    rank, step, place = where.split(":")

    def die(*_: object) -> None:
        if int(os.environ["RANK"]) == int(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(name: str, applies, after: bool = False) -> None:
        plain = getattr(saving, name)

        def patched(*arguments):
            if after:
                plain(*arguments)
            if applies(*map(str, arguments)):
                die()
            return None if after else plain(*arguments)

        setattr(saving, name, patched)

    partial = f".step-{int(step):08d}.partial"
    if place == "before-write":
        dying("save_file", lambda tensors, path: partial in path)
    elif place == "torn-write":

        def torn(tensors, path, plain=saving.save_file):
            plain(tensors, path)
            if partial in str(path) and int(os.environ["RANK"]) == int(rank):
                os.truncate(path, path.stat().st_size // 2)
                die()

        saving.save_file = torn
    elif place == "before-hash":
        dying("file_sha256", lambda path: partial in path)
    elif place == "before-manifest":
        dying("_write_text", lambda path, text: partial in path and path.endswith(saving.MANIFEST))
    elif place == "before-rename":
        dying("_write_text", lambda path, text: partial in path and path.endswith(saving.MANIFEST), after=True)
    elif place == "before-rotate":
        dying("rotate", lambda directory, keep, permanent: (Path(directory) / f"step-{int(step):08d}").is_dir())
    else:
        raise SystemExit(f"no place {place}")


def slow_save(seconds: str) -> None:
    """`slow_save=SECONDS`: writing a rank's file takes so much longer, as on a slow disk."""
    import time

    from pretrain import saving

    plain = saving.save_file

    def save_file(tensors, path):
        time.sleep(float(seconds))
        plain(tensors, path)

    saving.save_file = save_file


def full_disk_at(step: str) -> None:
    """`full_disk_at=STEP`: from the save of that step on, no rank can write its file."""
    import errno

    from pretrain import saving

    plain = saving.save_file

    def save_file(tensors, path):
        if int(path.parent.name.split("-")[1].split(".")[0]) >= int(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(tensors, path)

    saving.save_file = save_file


def no_file_above(size: str) -> None:
    """`no_file_above=BYTES`: every write beyond that size fails, as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def slow_steps(seconds: str) -> None:
    """`slow_steps=SECONDS`: every step waits, so that a test can act at a known step."""
    import time

    from pretrain.engine import Engine

    plain = Engine.step

    def step(self, learning_rate):
        time.sleep(float(seconds))
        return plain(self, learning_rate)

    Engine.step = step


def spike(where: str) -> None:
    """`spike=STEP:FACTOR`: the loss of that step (counted from 0) is so many times as large."""
    at, factor = where.split(":")
    changed_loss(lambda total: total * float(factor), lambda rank, step: step == int(at))


def hang(where: str) -> None:
    """`hang=RANK:STEP`: reading the data of that step never ends on that rank."""
    import time

    from data.loader import StepPlanner

    rank, at = map(int, where.split(":"))
    plain = StepPlanner.step

    def step(self, number):
        while number == at and self.rank == rank:
            time.sleep(1)
        return plain(self, number)

    StepPlanner.step = step


def slow_validation(seconds: str) -> None:
    """`slow_validation=SECONDS`: every micro-batch of a validation waits."""
    import time

    from pretrain.validation import Validation

    plain = Validation._sums

    def sums(self, *arguments):
        time.sleep(float(seconds))
        return plain(self, *arguments)

    Validation._sums = sums


def lock_patience(seconds: str) -> None:
    """`lock_patience=SECONDS`: how long a start waits for another process that holds the run."""
    from pretrain import run_lock

    run_lock.PATIENCE = run_lock.PATIENCE_ELSEWHERE = float(seconds)


def no_locks(code: str) -> None:
    """`no_locks=ERRNO`: the file system answers a request for a lock with that error, such as ENOLCK."""
    import errno
    import fcntl

    def flock(fd, operation):
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


def vanish_in_save(where: str) -> None:
    """`vanish_in_save=STEP:DIRECTORY:TO`: when rank 1 comes to write its file of that step, DIRECTORY is renamed."""
    from pretrain import saving

    step, directory, to = where.split(":")
    plain = saving.save_file

    def save_file(tensors, path):
        if f".step-{int(step):08d}.partial" in str(path) and os.environ["RANK"] == "1":
            os.rename(directory, to)
        plain(tensors, path)

    saving.save_file = save_file


FAULTS = (nan_loss, infinite_gradient, kill_in_save, slow_save, full_disk_at, no_file_above, vanish_in_save)
FAULTS += (slow_steps, slow_validation, hang, spike, lock_patience, no_locks)

if __name__ == "__main__":
    from pretrain.signals import end_when_asked

    end_when_asked()  # as launch/pretrain.py does: before faults import what is slow
    from tests.pretrain.observing import OBSERVERS

    divide = sys.argv.index("--")
    launcher = [argument for argument in sys.argv[1:divide] if argument.startswith("--local_rank")]
    for fault in sys.argv[1 + len(launcher) : divide]:
        name, _, value = fault.partition("=")
        {fault.__name__: fault for fault in (*FAULTS, *OBSERVERS)}[name](value)
    script = str(ROOT / "launch" / "pretrain.py")
    sys.argv = [script, *launcher, *sys.argv[divide + 1 :]]
    runpy.run_path(script, run_name="__main__")
