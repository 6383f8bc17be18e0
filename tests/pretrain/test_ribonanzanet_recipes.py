"""The shipped RibonanzaNet recipes: their numbers against the specification (ribonanzanet 5 and 6)."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import OmegaConf

from data.reactivity_config import load_reactivity_config
from launch.cli import CONFIGS
from models.ribonanzanet_cost import count_parameters
from pretrain import recipe
from pretrain.config import Recipe
from pretrain.objectives.reactivity import cost
from pretrain.opening import Opened
from pretrain.stages import Stage

NAMES = ("ribonanzanet", "ribonanzanet_initial", "ribonanzanet_intermediate")
EPOCH = 5371  # steps of 40 of the 214,831 sequences with true labels (spec 6)
STEPS = {"corpora/ribonanza": EPOCH, "corpora/ribonanza_pseudo": 47691, "corpora/ribonanza_pseudo_noisy": 14095}


def staged(settings: Recipe) -> list[Stage]:
    """The stages with as many steps as the published counts of sequences give."""
    stages: list[Stage] = []
    for name, own in recipe.stage_recipes(settings):
        steps = STEPS[str(own.data.corpus)]
        data = cast(Opened, SimpleNamespace(steps_in=lambda epochs, steps=steps: round(epochs * steps)))
        start = stages[-1].stop if stages else 0
        stop = start + round((own.budget.epochs or 0) * steps)
        stages.append(Stage(name, own, data, start, stop, start, stop))
    return stages


@pytest.mark.parametrize(
    ("name", "constant", "annealed", "end"),
    [
        ("ribonanzanet", 30 * 47691, 10 * EPOCH, 2.03e-5),
        ("ribonanzanet_intermediate", 30 * 14095, 10 * EPOCH, 2.03e-5),
        ("ribonanzanet_initial", 22 * EPOCH, 8 * EPOCH, 3.02e-5),
    ],
)
def test_the_learning_rate_is_constant_and_then_most_of_a_cosine(
    name: str, constant: int, annealed: int, end: float
) -> None:
    first, second = staged(recipe.load(f"{name}.yaml"))
    assert (first.stop, second.stop - second.start) == (constant, annealed)
    assert {first.learning_rate(step) for step in (0, 1, constant // 2, constant - 1)} == {1e-3}
    assert second.learning_rate(second.start) == 1e-3
    rates = [second.learning_rate(step) for step in range(second.start, second.stop + 1, EPOCH)]
    assert all(one > other for one, other in itertools.pairwise(rates))
    assert second.learning_rate(second.stop) == pytest.approx(end, abs=5e-8)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_stages_share(name: str) -> None:
    settings = recipe.load(f"{name}.yaml")
    assert count_parameters(settings.model) == 11_296_898
    optimizer = settings.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("ranger", [0.95, 0.999], 1e-5)
    assert (optimizer.weight_decay, optimizer.lookahead_steps, optimizer.lookahead_share) == (1e-4, 6, 0.5)
    assert (settings.model.dropout, settings.model.attention_dropout, settings.model.mask_mode) == (0.05, 0.1, "fixed")
    assert settings.batch.sequences == 40
    for _, own in recipe.stage_recipes(settings):
        assert (own.objective.flip, own.objective.min_signal_to_noise) == (0.5, 1.0)
        assert own.objective.channels == ["2A3", "DMS"]
    longest = int(cost(np.array([457]))[0])  # of the test sequences (spec 3.1)
    assert settings.batch.tokens_per_micro_batch >= 2 * longest


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_validated_once_per_epoch(name: str) -> None:
    """In both phases, as in the original (spec 5)."""
    for stage in staged(recipe.load(f"{name}.yaml")):
        between = [step for step in range(stage.start, stage.stop + 1) if stage.validates_after(step)]
        assert len(between) + 1 == stage.settings.budget.epochs  # with the one at its end
        assert stage.settings.validation.sequences == 27_946


def test_stages_name_corpora_that_the_data_configs_make() -> None:
    made = {OmegaConf.load(path).output for path in CONFIGS.glob("data/ribonanza*.yaml")}
    assert made == {"corpora/ribonanza", "corpora/ribonanza_test", "corpora/ribonanza_pseudo"} | {
        "corpora/ribonanza_unlabelled"
    }
    for name in NAMES:
        for _, own in recipe.stage_recipes(recipe.load(f"{name}.yaml")):
            assert own.data.corpus in {*made, "corpora/ribonanza_pseudo_noisy"}
            assert own.data.validation in (None, "corpora/ribonanza")
    pseudo, true = (own for _, own in recipe.stage_recipes(recipe.load("ribonanzanet.yaml")))
    assert (pseudo.data.validation, true.objective.samples.classes) == ("corpora/ribonanza", "clean+dirty")
    unlabelled: Any = load_reactivity_config(CONFIGS / "data" / "ribonanza_unlabelled.yaml")
    assert unlabelled.published["noisy"] == 563_796 + 1_343_823 == 1_907_619
