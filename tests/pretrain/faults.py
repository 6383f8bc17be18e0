"""launch/pretrain.py with a fault put into it: `faults.py FAULT=VALUE ... -- arguments of launch/pretrain.py`.

Faults live here, not in the product. Each takes its value as text and patches the loaded modules before training.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)


def nan_loss(where: str) -> None:
    """`nan_loss=RANK:FIRST:LAST`: on one rank the loss of steps [FIRST, LAST] (counted from 0) is not a number."""
    from pretrain.objectives.mlm import MLM
    from pretrain.trainer import Trainer

    rank, first, last = map(int, where.split(":"))
    plain_loss, plain_run, trainers = MLM.loss, Trainer.run, []

    def run(self):
        trainers.append(self)
        return plain_run(self)

    def loss(self, model, batch):
        total, counts = plain_loss(self, model, batch)
        wrong = trainers[0].world.rank == rank and first <= trainers[0].progress.step <= last
        return total * float("nan") if wrong else total, counts

    MLM.loss, Trainer.run = loss, run


def infinite_gradient(where: str) -> None:
    """`infinite_gradient=RANK:FIRST:LAST`: on one rank a gradient of these steps overflows, its loss being finite."""
    import torch

    from pretrain.objectives.mlm import MLM
    from pretrain.trainer import Trainer

    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    rank, first, last = map(int, where.split(":"))
    plain_loss, plain_run, trainers = MLM.loss, Trainer.run, []

    def run(self):
        trainers.append(self)
        return plain_run(self)

    def loss(self, model, batch):
        total, counts = plain_loss(self, model, batch)
        wrong = trainers[0].world.rank == rank and first <= trainers[0].progress.step <= last
        return Overflowing.apply(total) if wrong else total, counts

    MLM.loss, Trainer.run = loss, run


def kill_in_save(where: str) -> None:
    """`kill_in_save=RANK:STEP:PLACE`: the rank kills itself while step STEP is saved, at one of the places below."""
    from pretrain import checkpoint

    rank, step, place = where.split(":")

    def die(*_: object) -> None:
        if int(os.environ["RANK"]) == int(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(name: str, applies, after: bool = False) -> None:
        plain = getattr(checkpoint, name)

        def patched(*arguments):
            if after:
                plain(*arguments)
            if applies(*map(str, arguments)):
                die()
            return None if after else plain(*arguments)

        setattr(checkpoint, name, patched)

    partial = f".step-{int(step):08d}.partial"
    if place == "before-write":
        dying("save_file", lambda tensors, path: partial in path)
    elif place == "torn-write":

        def torn(tensors, path, plain=checkpoint.save_file):
            plain(tensors, path)
            if partial in str(path) and int(os.environ["RANK"]) == int(rank):
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoint.save_file = torn
    elif place == "before-hash":
        dying("file_sha256", lambda path: partial in path)
    elif place == "before-manifest":
        dying("_write_text", lambda path, text: partial in path and path.endswith(checkpoint.MANIFEST))
    elif place == "before-rename":
        dying("_write_text", lambda path, text: partial in path and path.endswith(checkpoint.MANIFEST), after=True)
    elif place == "before-rotate":
        dying("rotate", lambda directory, keep, permanent: (Path(directory) / f"step-{int(step):08d}").is_dir())
    else:
        raise SystemExit(f"no place {place}")


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
    from pretrain.objectives.mlm import MLM
    from pretrain.trainer import Trainer

    step, factor = where.split(":")
    plain_loss, plain_run, trainers = MLM.loss, Trainer.run, []

    def run(self):
        trainers.append(self)
        return plain_run(self)

    def loss(self, model, batch):
        total, counts = plain_loss(self, model, batch)
        here = trainers[0].progress.step == int(step)
        return total * float(factor) if here else total, counts

    MLM.loss, Trainer.run = loss, run


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


def print_config(_: str) -> None:
    """`print_config=1`: print the configuration that DeepSpeed works with."""
    import json

    from pretrain.engine import Engine

    plain = Engine.__init__

    def init(self, *arguments):
        plain(self, *arguments)
        print("DEEPSPEED", json.dumps(self.deepspeed.config, default=str), flush=True)

    Engine.__init__ = init


def dump_state(path: str) -> None:
    """`dump_state=FILE`: write masters and optimizer state as DeepSpeed's own functions gather them, at the end."""
    from pretrain.trainer import Trainer

    plain = Trainer._conclude

    def conclude(self):
        write_state(self, path)
        plain(self)

    Trainer._conclude = conclude


def dump_restored(path: str) -> None:
    """`dump_restored=FILE`: the same before the first step of this start."""
    from pretrain.trainer import Trainer

    plain = Trainer.run

    def run(self):
        write_state(self, path)
        return plain(self)

    Trainer.run = run


def write_state(trainer, path: str) -> None:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    from safetensors.torch import save_file

    engine, found = trainer.engine, {}
    for name, parameter in engine.deepspeed.module.named_parameters():
        if engine.stage == 0:
            state = engine.base.state[parameter]
            found |= {f"weight|{name}": parameter.data, **{f"{kind}|{name}": state[kind] for kind in engine.kinds}}
        else:
            found[f"weight|{name}"] = safe_get_full_fp32_param(parameter)
            for kind in engine.kinds:
                found[f"{kind}|{name}"] = safe_get_full_optimizer_state(parameter, kind)
    if trainer.world.first:
        tensors = {name: value.detach().clone().float() for name, value in found.items()}
        save_file(tensors, path, metadata={"optimizer_steps": str(engine.optimizer_steps)})


def vanish_in_save(where: str) -> None:
    """`vanish_in_save=STEP:DIRECTORY:TO`: when rank 1 comes to write its file of that step, DIRECTORY is renamed."""
    from pretrain import checkpoint as module

    with contextlib.suppress(ImportError):
        from pretrain import saving as module  # type: ignore[no-redef]

    step, directory, to = where.split(":")
    plain = module.save_file

    def save_file(tensors, path):
        if f".step-{int(step):08d}.partial" in str(path) and os.environ["RANK"] == "1":
            os.rename(directory, to)
        plain(tensors, path)

    module.save_file = save_file


def note_samples(path: str) -> None:
    """`note_samples=FILE`: every rank appends {rank, ranks, step, samples} once a step is done; steps from 1."""
    import json
    import threading

    from data.loader import StepPlanner
    from pretrain.meter import Meter

    plain_step, plain_done, read_by_step, busy = StepPlanner.step, Meter.step, {}, threading.Lock()

    def step(self, number):
        samples, read = [], self.objective.read

        def noting(corpus, ids):
            samples.extend(ids.tolist())
            return read(corpus, ids)

        with busy:
            self.objective.read = noting
            try:
                return plain_step(self, number)
            finally:
                del self.objective.read
                read_by_step[number] = samples

    def done(self, step):
        plain_done(self, step)
        line = {"rank": self.world.rank, "ranks": self.world.ranks, "step": step.number + 1}
        with open(path, "a") as file:
            file.write(json.dumps({**line, "samples": read_by_step.pop(step.number)}) + "\n")

    StepPlanner.step, Meter.step = step, done


FAULTS = (
    nan_loss,
    infinite_gradient,
    kill_in_save,
    no_file_above,
    slow_steps,
    hang,
    spike,
    slow_validation,
    print_config,
    dump_state,
    dump_restored,
    vanish_in_save,
    note_samples,
)

if __name__ == "__main__":
    from pretrain.signals import end_when_asked

    end_when_asked()  # as launch/pretrain.py does: before faults import what is slow
    divide = sys.argv.index("--")
    launcher = [argument for argument in sys.argv[1:divide] if argument.startswith("--local_rank")]
    for fault in sys.argv[1 + len(launcher) : divide]:
        name, _, value = fault.partition("=")
        {fault.__name__: fault for fault in FAULTS}[name](value)
    script = str(ROOT / "launch" / "pretrain.py")
    sys.argv = [script, *launcher, *sys.argv[divide + 1 :]]
    runpy.run_path(script, run_name="__main__")
