"""AdamW and its groups: what decays, and one step by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models import MODELS
from models.rinalmo import RiNALMo, RiNALMoConfig
from models.rnamsm import RNAMSM, RNAMSMConfig
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


RNAMSM_DECAYED = {  # of one layer with all_but_norms
    *("embed.weight", "stem.position"),
    *("blocks.0.row.qkv_weight", "blocks.0.row.qkv_bias", "blocks.0.row.out_weight", "blocks.0.row.out_bias"),
    *("blocks.0.column.qkv_weight", "blocks.0.column.qkv_bias"),
    *("blocks.0.column.out_weight", "blocks.0.column.out_bias"),
    *("blocks.0.ffn.up_weight", "blocks.0.ffn.up_bias", "blocks.0.ffn.down_weight", "blocks.0.ffn.down_bias"),
    *("head.dense.weight", "head.dense.bias", "head.out.bias"),
}
RNAMSM_NOT = {
    *("stem.row", "stem.norm.weight", "stem.norm.bias", "final_norm.weight", "final_norm.bias"),
    *("blocks.0.row.norm_weight", "blocks.0.row.norm_bias", "blocks.0.column.norm_weight"),
    *("blocks.0.column.norm_bias", "blocks.0.ffn.norm_weight", "blocks.0.ffn.norm_bias"),
    *("head.norm.weight", "head.norm.bias"),
}
RINALMO_DECAYED = {
    *("embed.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight", "blocks.0.ffn.beta"),
    *("blocks.0.ffn.swish.weight", "blocks.0.ffn.swish.bias", "blocks.0.ffn.plain.weight", "blocks.0.ffn.plain.bias"),
    *("blocks.0.ffn.down.weight", "blocks.0.ffn.down.bias"),
    *("head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"),
}
RINALMO_NOT = {
    *("blocks.0.attn_norm.weight", "blocks.0.attn_norm.bias", "blocks.0.ffn_norm.weight", "blocks.0.ffn_norm.bias"),
    *("final_norm.weight", "final_norm.bias", "head.norm.weight", "head.norm.bias"),
}


@pytest.mark.parametrize(
    ("name", "decayed", "undecayed"),
    [("rnamsm", RNAMSM_DECAYED, RNAMSM_NOT), ("rinalmo", RINALMO_DECAYED, RINALMO_NOT)],
)
def test_all_but_norms_is_the_rule_of_rna_msm(name, decayed, undecayed):
    """specs/rnamsm 5: biases and embeddings decay, norms do not; nor the row embedding, which nothing else moves."""
    config, module = MODELS[name]
    model = module(config(layers=1, width=16, heads=2, ffn=20))
    groups = parameter_groups(model, 0.01, "all_but_norms")
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert names_of(model, groups[0]) == decayed
    assert names_of(model, groups[1]) == undecayed


OTHERS = {
    "aido_rna": {"ffn": 64},
    "aido_rna rms": {"ffn": 64, "norm": "rms"},
    "rnaernie": {"ffn": 20},
    "ribonanzanet": {"ffn": 64, "pair": 16, "outer": 4, "triangle_attention": True},
}


@pytest.mark.parametrize("case", OTHERS)
def test_no_norm_of_the_other_models_is_forgotten(case):
    """Here names do not mislead: what is called a norm is one, and nothing else is."""
    config, module = MODELS[case.split()[0]]
    model = module(config(layers=1, width=32, heads=2, **OTHERS[case]))
    decayed, undecayed = parameter_groups(model, 0.01, "all_but_norms")
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    assert names_of(model, undecayed) == norms
    assert names_of(model, decayed) == {name for name, _ in model.named_parameters()} - norms


def test_a_step_without_gradients_shrinks_what_decays_and_nothing_else():
    model = RNAMSM(RNAMSMConfig(layers=1, width=16, heads=2, ffn=20))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1).grad = torch.zeros_like(parameter)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, decayed="all_but_norms")
    build_optimizer(model, config, fused=False).step()
    for name, parameter in model.named_parameters():
        expected = 0.95 if name in RNAMSM_DECAYED else 1.0
        assert torch.equal(parameter, torch.full_like(parameter, expected)), name


@pytest.mark.parametrize("decayed", ["matrices", "all_but_norms", "all"])
def test_every_parameter_is_in_one_group_once(decayed):
    model = nano()
    groups = parameter_groups(model, 0.01, decayed)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert len(groups) == (1 if decayed == "all" else 2)


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
