"""One rank that measures what planning predicts: bytes that it holds, and bytes that collectives move.

Arguments: ZeRO stage, precision, optimizer, reduce_bucket_size. Rank 0 prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)

import deepspeed.comm  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from pretrain import distributed, recipe  # noqa: E402
from pretrain.engine import Engine  # noqa: E402
from pretrain.initialise import build_model  # noqa: E402
from pretrain.objectives import OBJECTIVES  # noqa: E402


def held() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()
    storages = {}
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    for tensor in tensors + [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def count_collectives() -> dict[str, int]:
    """Bytes of the largest tensor of every collective from now on, by name."""
    moved: dict[str, int] = {}
    backend = deepspeed.comm.comm.cdb

    def counted(name, call):
        def work(*args, **kwargs):
            tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)]
            moved[name] = moved.get(name, 0) + max(x.numel() * x.element_size() for x in tensors)
            return call(*args, **kwargs)

        return work

    for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(backend, name, counted(name, getattr(backend, name)))
    return moved


def main() -> None:
    stage, precision, optimizer, bucket = sys.argv[1:]
    small = ["model.size=null", "model.layers=4", "model.width=128", "model.heads=2", "model.ffn=256"]
    zero = f"{{zero_optimization: {{reduce_bucket_size: {bucket}, stage3_param_persistence_threshold: 0}}}}"
    settings = recipe.load(
        str(ROOT / "tests" / "tiny.yaml"),
        [
            "data.corpus=none",
            f"deepspeed.zero_stage={stage}",
            f"compute.precision={precision}",
            f"optimizer.name={optimizer}",
            f"deepspeed.config={zero}",
            *small,
        ],
    )
    world = distributed.start(1)
    engine = Engine(build_model(settings), settings, world)
    moved = count_collectives()
    objective = OBJECTIVES["mlm"][1](settings.objective)

    def backward() -> None:
        letters = [np.frombuffer(b"ACGUACGUACGU", np.uint8)] * 2
        loss, _ = objective.loss(engine.module, objective.collate(letters, np.arange(2).astype(np.uint64)))
        engine.backward(loss, 10.0)

    found = {"at rest": held()}
    for _ in range(2):  # the second step is as all later ones
        backward()
        moved.clear()
        backward()
        in_backward, between = dict(moved), held()
        moved.clear()
        engine.step(1e-3)
    found |= {"between": between, "micro-batch": in_backward, "step": dict(moved)}
    if world.first:
        print(json.dumps(found))
    distributed.finish()


if __name__ == "__main__":
    main()
