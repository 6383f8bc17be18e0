"""All five models train as plain PyTorch does, at every ZeRO stage, with their state on the host, recomputing blocks.

The reference has neither DeepSpeed nor our loop, optimizer set-up, schedule, clipping or normalisation: the targets of
all micro-batches of a step, one loss, one backward pass, AdamW. Only the samples and the objective's sum are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import recipe, stages
from pretrain.distributed import World
from pretrain.initialise import build_model
from tests.pretrain import five_models
from tests.ranks import last, losses, pretrain_well

STEPS, WARMUP, PEAK, LOWEST, DECAY, CLIPPING = 12, 4, 3e-3, 3e-4, 0.1, 0.5
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
RUN = [
    *(f"budget.steps={STEPS}", "optimizer.name=adamw", f"optimizer.learning_rate={PEAK}"),
    *("optimizer.betas=[0.9,0.98]", "optimizer.eps=1e-7", f"optimizer.weight_decay={DECAY}"),
    *(f"optimizer.gradient_clipping={CLIPPING}", "optimizer.decayed=matrices", "schedule.name=cosine"),
    *(f"schedule.warmup_steps={WARMUP}", f"schedule.minimum={LOWEST}"),
]
OFFLOAD, RECOMPUTE = "deepspeed.offload=true", "model.checkpointing=true"
WAYS = [
    ("fp32", 0, RECOMPUTE),
    ("fp32", 1, OFFLOAD),
    ("fp32", 2, OFFLOAD, RECOMPUTE),
    ("fp32", 3, OFFLOAD, RECOMPUTE),
    ("bf16", 1, RECOMPUTE),
    ("bf16", 2, OFFLOAD),
    ("bf16", 3, OFFLOAD, RECOMPUTE),
]
GRID = [(model, way) for model in five_models.MODELS for way in WAYS]
QUICKLY = [("rnaernie", WAYS[2])]
# Every model in both precisions and every way with two models at least; `make soak` does the whole grid.
OTHERS = [
    pytest.param(*case, marks=() if number % 2 == 0 or case == ("ribonanzanet", WAYS[3]) else pytest.mark.soak)
    for number, case in enumerate(GRID)
    if case not in QUICKLY
]
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(scope="module")
def corpora(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return five_models.corpora(tmp_path_factory.mktemp("plain"), synthetic_corpus)


@pytest.fixture(scope="module")
def plain(corpora) -> Callable[[str], tuple[list[float], dict[str, torch.Tensor]]]:
    """(losses, weights at the end) of a model, trained once."""
    done: dict[str, tuple[list[float], dict[str, torch.Tensor]]] = {}

    def train(model: str) -> tuple[list[float], dict[str, torch.Tensor]]:
        if model not in done:
            done[model] = plain_pytorch([*five_models.settings(model, corpora), *RUN])
        return done[model]

    return train


def plain_pytorch(arguments: list[str]) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    settings = recipe.load(arguments[1], arguments[2:])
    model = build_model(settings).train()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), eps=1e-7)
    (stage,) = stages.open_stages(settings, ALONE)
    curve, batches = [], []
    for number in range(STEPS):
        micro_batches = stage.data.planner.step(number).micro_batches
        batches.append(len(micro_batches))
        sums = [stage.data.objective.loss(model, batch)[0] for batch in micro_batches]
        loss = torch.stack(sums).sum() / sum(batch.weight for batch in micro_batches)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        turn = math.pi * (number - WARMUP) / (STEPS - WARMUP)
        cosine = LOWEST + (PEAK - LOWEST) * (1 + math.cos(turn)) / 2
        for group in optimizer.param_groups:
            group["lr"] = PEAK * number / WARMUP if number < WARMUP else cosine
        optimizer.step()
        curve.append(loss.item())
    stages.close([stage])
    assert max(batches) > 1, "nothing was accumulated"
    return curve, {name: values.detach() for name, values in model.named_parameters()}


def require_the_same(model: str, way: tuple, plain, corpora: dict[str, Path], folder: Path) -> None:
    precision, stage, *more = way
    own = [f"run.directory={folder}", "run.name=run", f"deepspeed.zero_stage={stage}", f"compute.precision={precision}"]
    pretrain_well([*five_models.settings(model, corpora), *RUN, *own, *more], ranks=2)
    curve, weights = plain(model)
    np.testing.assert_allclose(losses(folder / "run"), curve, rtol=TOLERANCE[precision])
    assert len(curve) == STEPS
    if precision == "fp32":  # Adam makes much of what rounding does to tiny gradients, as in test_ranks.py
        found = last(folder / "run").weights()
        assert max(float((found[name] - weights[name]).abs().max()) for name in weights) < 2e-4
    else:
        assert losses(folder / "run") != curve, "bf16 was not used"


@pytest.mark.parametrize(("model", "way"), QUICKLY, ids=str)
def test_one_model_the_quick_way(model, way, plain, corpora, tmp_path) -> None:
    require_the_same(model, way, plain, corpora, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "way"), OTHERS, ids=str)
def test_every_model_trains_as_plain_pytorch_does(model, way, plain, corpora, tmp_path) -> None:
    require_the_same(model, way, plain, corpora, tmp_path)


def test_clipping_matters_in_these_runs(corpora) -> None:
    """Else the comparison would prove nothing about it: the norm before clipping is above the limit in some steps."""
    arguments = [*five_models.settings("rnaernie", corpora), *RUN]
    reference, _ = plain_pytorch(arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
        unclipped, _ = plain_pytorch(arguments)
    assert not np.allclose(reference, unclipped, rtol=1e-4)
