"""The recipe decides the mathematics: ranks, micro-batches and ZeRO stages change nothing in the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.index import Corpus
from data.loader import StepPlanner
from data.order import Order
from pretrain import recipe
from pretrain.initialise import build_model
from pretrain.objectives.mlm import MLM
from tests.ranks import QUICK, last, losses, pretrain_well

STEPS = 20
SMALL, LARGE = 256, 4096  # tokens per micro-batch: two or three of them per step, and one
CORE = [(2, 0, SMALL), (3, 0, LARGE), (1, 2, SMALL), (2, 2, LARGE), (3, 2, SMALL)]
# Every number of ranks with every stage, under one of the budgets; `make soak` takes the other one too.
OTHERS = [
    pytest.param(ranks, stage, budget, marks=() if (ranks + stage) % 2 == number else pytest.mark.soak)
    for ranks in (1, 2, 3)
    for stage in (0, 1, 2, 3)
    for number, budget in enumerate((SMALL, LARGE))
    if (ranks, stage, budget) not in CORE
]


@pytest.fixture(scope="module")
def train(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains 20 steps and returns the run directory; the same arguments train once."""
    directory, done = tmp_path_factory.mktemp("runs"), {}

    def run(ranks: int = 1, stage: int = 0, budget: int = LARGE, precision: str = "fp32", *extra: str) -> Path:
        name = f"ranks{ranks}-zero{stage}-budget{budget}-{precision}{len(extra)}"
        if name not in done:
            settings = [f"run.directory={directory}", f"run.name={name}", f"data.corpus={synthetic_corpus}"]
            settings += [f"deepspeed.zero_stage={stage}", f"batch.tokens_per_micro_batch={budget}"]
            pretrain_well([*QUICK, *settings, f"compute.precision={precision}", *extra], ranks)
            done[name] = directory / name
        return done[name]

    return run


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def require_equal_runs(run: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)
    # Adam divides by the root of the second moment, so a rounding difference in a tiny gradient is not a tiny one in
    # its weight; the largest found is 2e-5, where weights moved by 1e-2.
    assert furthest(last(run).weights(), last(reference).weights()) < 1e-4


@pytest.mark.parametrize(
    ("ranks", "stage", "budget"),
    [case if case[0] == 2 else pytest.param(*case, marks=pytest.mark.slow) for case in CORE],
)
def test_ranks_micro_batches_and_zero_stages_0_and_2_give_one_loss_curve(train, ranks, stage, budget) -> None:
    require_equal_runs(train(ranks, stage, budget), train())


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "budget"), OTHERS)
def test_every_other_way_to_split_a_step_gives_the_same_loss_curve(train, ranks, stage, budget) -> None:
    require_equal_runs(train(ranks, stage, budget), train())


def test_the_budgets_of_these_tests_split_a_step_differently(synthetic_corpus) -> None:
    settings = load(synthetic_corpus)
    planners = [planner(settings, budget) for budget in (SMALL, LARGE)]
    counts = [[len(each.step(number).micro_batches) for number in range(STEPS)] for each in planners]
    assert min(counts[0]) > 1
    assert max(counts[1]) == 1


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(1, "fp32"), (2, "fp32"), (3, "bf16"), pytest.param(2, "bf16", marks=pytest.mark.soak)],
)
@pytest.mark.slow
def test_masters_and_state_on_the_host_change_nothing(train, stage, precision) -> None:
    moved = train(2, stage, LARGE, precision, "deepspeed.offload=true")
    np.testing.assert_allclose(losses(moved), losses(train(2, stage, LARGE, precision)), rtol=1e-6)
    assert furthest(last(moved).weights(), last(train(2, stage, LARGE, precision)).weights()) < 1e-5


RANGER = ("optimizer.name=ranger", "optimizer.betas=[0.95,0.999]", "optimizer.eps=1e-5", "optimizer.decayed=all")


@pytest.mark.parametrize(
    ("ranks", "stage"), [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, 0), (3, 1), (2, 3)])]
)
def test_ranger_gives_one_loss_curve_whatever_zero_cuts(train, ranks, stage) -> None:
    """20 steps: three meetings of fast and slow weights, and gradients centralised before ZeRO flattens them."""
    reference = train(1, 0, LARGE, "fp32", *RANGER)
    require_equal_runs(train(ranks, stage, SMALL, "fp32", *RANGER), reference)
    assert {kind for kind, _ in last(reference).contents()} == {"weight", "exp_avg", "exp_avg_sq", "slow"}
    assert losses(reference) != losses(train())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [
        *((2, stage, "bf16") for stage in (1, 2, 3)),
        *((2, stage, "bf16_autocast") for stage in (0, 3)),
        *(pytest.param(1, stage, "bf16", marks=pytest.mark.soak) for stage in (1, 2, 3)),
        *(pytest.param(1, stage, "bf16_autocast", marks=pytest.mark.soak) for stage in (0, 1, 2, 3)),
        *(pytest.param(2, stage, "bf16_autocast", marks=pytest.mark.soak) for stage in (1, 2)),
    ],
)
def test_bf16_follows_fp32_within_a_hundredth(train, ranks, stage, precision) -> None:
    run = train(ranks, stage, LARGE, precision)
    np.testing.assert_allclose(losses(run), losses(train()), rtol=1e-2)
    assert losses(run) != losses(train()), "bf16 was not used"
    assert {values.dtype for values in last(run).weights().values()} == {torch.float32}


def load(corpus: Path, *extra: str) -> recipe.Recipe:
    return recipe.load(QUICK[1], [*QUICK[2:], f"data.corpus={corpus}", "run.directory=unused", *extra])


def planner(settings: recipe.Recipe, budget: int = LARGE) -> StepPlanner:
    corpus, objective = Corpus.open(settings.data.corpus), MLM(settings.objective)
    order = Order(corpus.block_counts, settings.run.seed, settings.batch.sequences)
    return StepPlanner(corpus, order, objective, budget)


def plain_pytorch(settings: recipe.Recipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same steps without DeepSpeed, without our loop, optimizer, schedule and clipping."""
    torch.set_num_threads(1)
    model = build_model(settings).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    config = settings.optimizer
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), eps=config.eps)
    warmup, peak, minimum = settings.schedule.warmup_steps, config.learning_rate, settings.schedule.minimum

    def factor(step: int) -> float:
        turn = math.pi * (step - warmup) / (STEPS - warmup)
        return step / warmup if step < warmup else (minimum + (peak - minimum) * (1 + math.cos(turn)) / 2) / peak

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    planned, curve = planner(settings), []
    for number in range(STEPS):
        (batch,) = planned.step(number).micro_batches
        logits = model(batch.tokens, batch.cu_seqlens, batch.positions, batch.max_seqlen, batch.target_index)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    return curve, {name: value.detach() for name, value in model.named_parameters()}


def test_training_equals_plain_pytorch(train, synthetic_corpus) -> None:
    curve, weights = plain_pytorch(load(synthetic_corpus))
    np.testing.assert_allclose(losses(train()), curve, rtol=1e-6)
    assert furthest(last(train()).weights(), weights) < 1e-5


def test_zero_2_on_two_ranks_with_split_steps_equals_plain_pytorch(train, synthetic_corpus) -> None:
    curve, _ = plain_pytorch(load(synthetic_corpus))
    np.testing.assert_allclose(losses(train(2, 2, LARGE)), curve, rtol=1e-6)


def test_clipping_decay_and_learning_rate_of_these_tests_matter(synthetic_corpus) -> None:
    """Otherwise the comparison with plain PyTorch would prove nothing about them."""
    reference, _ = plain_pytorch(load(synthetic_corpus))
    for change in ("optimizer.gradient_clipping=0.5", "optimizer.weight_decay=1", "schedule.minimum=5e-4"):
        other, _ = plain_pytorch(load(synthetic_corpus, change))
        assert not np.allclose(other, reference, rtol=1e-5), change
