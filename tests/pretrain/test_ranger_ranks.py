"""Ranger through the real command against its definition: 50 steps on 1 and 2 ranks under ZeRO 0, 1 and 2.

The definition is run beside it on the same batches, in this process and without DeepSpeed: gradients of the whole
global batch, centralised in their shapes, clipped, and the formulas of tests/pretrain/ranger_definition.py. The model
has parameters of one, two and three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import recipe
from pretrain.distributed import World
from pretrain.initialise import build_model
from pretrain.opening import open_data
from tests.data.reactivity_files import build, rows_of, write_table
from tests.pretrain.ranger_definition import Definition, centralised
from tests.ranks import ROOT, last, losses, pretrain_well, records

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

STEPS, CLIPPING = 50, 0.7
CASES = [(ranks, stage) for ranks in (1, 2) for stage in (0, 1, 2)]
Result = tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]  # losses, weights, slow weights


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ranger")
    build(folder / "corpus", write_table(folder / "t.csv", rows_of(60, shortest=14, longest=20, blank=2)))
    settings = [f"data.corpus={folder / 'corpus'}", f"run.directory={folder}", f"budget.steps={STEPS}"]
    settings += [f"optimizer.gradient_clipping={CLIPPING}"]
    settings += ["optimizer.lookahead_steps=6", "batch.sequences=4", "batch.tokens_per_micro_batch=90"]
    return ["--config", str(ROOT / "tests" / "tiny_reactivity.yaml"), *settings]


@pytest.fixture(scope="module")
def definition(arguments: list[str]) -> Callable[..., Result]:
    """The run by the definition; ``change`` leaves one thing of it out, or does it in another order."""
    done: dict[str, Result] = {}

    def run(change: str = "") -> Result:
        if change not in done:
            done[change] = by_definition(recipe.load(arguments[1], arguments[2:]), change)
        return done[change]

    return run


def by_definition(settings: recipe.Recipe, change: str) -> Result:
    torch.set_num_threads(1)
    model = build_model(settings).train()
    named = dict(model.named_parameters())
    assert {p.dim() for p in named.values()} == {1, 2, 3}
    data, config = open_data(settings, World(0, 1, 0, 1, torch.device("cpu"))), settings.optimizer
    k = 10**9 if change == "no lookahead" else config.lookahead_steps
    ranger = Definition(list(named.values()), config.learning_rate, config.weight_decay, k=k)
    curve = []
    for number in range(STEPS):
        batches = data.planner.step(number).micro_batches
        assert len(batches) > 1
        # A step of noisy samples alone asks for nothing: its gradients are zero, and it counts as a step.
        weight, total = max(sum(batch.weight for batch in batches), 1.0), 0.0
        model.zero_grad()
        for batch in batches:
            loss, _ = data.objective.loss(model, batch)
            (loss / weight).backward()
            total += float(loss.detach())
        gradients = [p.grad for p in named.values() if p.grad is not None]
        if change not in ("no centralisation", "clipped before"):
            gradients = [centralised(g) for g in gradients]
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))  # type: ignore[arg-type]
        if change != "no clipping":
            gradients = [g * min(1.0, CLIPPING / max(float(norm), 1e-9)) for g in gradients]
        if change == "clipped before":
            gradients = [centralised(g) for g in gradients]
        ranger.step(gradients)
        with torch.no_grad():
            for parameter, value in zip(named.values(), ranger.weights, strict=True):
                parameter.copy_(value)
        curve.append(total / weight)
    return curve, dict(zip(named, ranger.weights, strict=True)), dict(zip(named, ranger.slow, strict=True))


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def trained(arguments: list[str], ranks: int, *settings: str) -> Path:
    name = "-".join([str(ranks), *(setting.replace("=", "-") for setting in settings)])
    pretrain_well([*arguments, f"run.name={name}", *settings], ranks)
    return Path(arguments[3].removeprefix("run.directory=")) / name


def require_equal(run: Path, expected: Result) -> None:
    curve, weights, slow = expected
    assert len(losses(run)) == STEPS
    np.testing.assert_allclose(losses(run), curve, rtol=1e-4)
    found = last(run)
    mine = {name: found.read("slow", name, 0, x.numel()).view(x.shape) for name, x in slow.items()}
    far = furthest(found.weights(), weights), furthest(mine, slow)
    print(f"{run.name}: furthest weight {far[0]:.1e}, slow weight {far[1]:.1e}")
    assert max(far) < 5e-5


@pytest.mark.parametrize(("ranks", "stage"), CASES)
def test_fifty_steps_are_those_of_the_definition(arguments, definition, ranks: int, stage: int) -> None:
    run = trained(arguments, ranks, f"deepspeed.zero_stage={stage}")
    require_equal(run, definition())
    norms = [record["gradient_norm"] for record in records(run)]
    assert min(norms) < CLIPPING < max(norms)  # some steps are clipped, and some are not


def test_clipping_first_is_the_order_of_the_authors(arguments, definition) -> None:
    """Spec 6: they clip the raw gradient, which takes gradients that nothing has cut."""
    run = trained(arguments, 2, "optimizer.clip_before_centralising=true", "deepspeed.zero_stage=0")
    require_equal(run, definition("clipped before"))
    # The two orders end near each other, as the step does not depend on the size of gradients: this run is at its own.
    found = last(run).weights()
    mine, other = (furthest(found, definition(change)[1]) for change in ("clipped before", ""))
    assert mine < other / 5


@pytest.mark.parametrize("change", ["no lookahead", "no centralisation", "no clipping"])
def test_what_is_compared_matters(definition, change: str) -> None:
    """Otherwise the comparison would prove nothing about it."""
    assert furthest(definition(change)[1], definition()[1]) > 5e-4
