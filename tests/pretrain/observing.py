"""What launch/pretrain.py is made to tell or write down for tests, put into it as faults are (faults.py)."""

from __future__ import annotations


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


OBSERVERS = (print_config, dump_state, dump_restored, note_samples)
