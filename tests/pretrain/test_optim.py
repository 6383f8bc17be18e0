"""AdamW and its groups: what decays, and one step by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.rinalmo import RiNALMo, RiNALMoConfig
from pretrain.config import OptimizerConfig
from pretrain.optim import build_optimizer, parameter_groups


def nano() -> RiNALMo:
    with torch.device("meta"):
        return RiNALMo(RiNALMoConfig.named("nano"))


def names_of(model: nn.Module, group: dict) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_matrices_and_the_embedding_decay_and_norms_biases_and_beta_do_not():
    model = nano()
    decayed, undecayed = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.01, 0.0)
    names = {name for name, _ in model.named_parameters()}
    plain = {name for name in names if "norm" in name or name.endswith(("bias", "beta"))}
    assert any(name.endswith("beta") for name in plain)
    assert names_of(model, undecayed) == plain
    assert names_of(model, decayed) == names - plain
    assert "embed.weight" in names_of(model, decayed)


def test_every_parameter_is_in_one_group_once():
    model = nano()
    ids = [id(p) for group in parameter_groups(model, 0.01) for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.01)
    assert [names_of(model, group) for group in groups] == [{"bias"}]


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_equal_adamw_computed_by_hand(steps):
    config = OptimizerConfig(learning_rate=0.1, betas=[0.8, 0.95], eps=1e-3, weight_decay=0.25)
    model = nn.Linear(1, 1, dtype=torch.float64)
    expected = {"weight": 2.0, "bias": -1.0}
    with torch.no_grad():
        model.weight.fill_(expected["weight"])
        model.bias.fill_(expected["bias"])
    optimizer = build_optimizer(model, config, fused=False)
    moments = {name: (0.0, 0.0) for name in expected}
    for step in range(1, steps + 1):
        for name, gradient in (("weight", 0.3 * step), ("bias", -0.7)):
            getattr(model, name).grad = torch.full_like(getattr(model, name), gradient)
            first, second = moments[name]
            first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
            moments[name] = first, second
            decay = 0.25 if name == "weight" else 0.0
            update = (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.95**step)) + 1e-3)
            expected[name] = expected[name] * (1 - 0.1 * decay) - 0.1 * update
        optimizer.step()
    for name, value in expected.items():
        assert getattr(model, name).item() == pytest.approx(value, rel=1e-12)
