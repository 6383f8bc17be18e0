"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import OptimizerConfig
from pretrain.ranger import STATE_KINDS as RANGER_KINDS
from pretrain.ranger import Ranger, centralise_gradients


def parameter_groups(model: nn.Module, weight_decay: float, decayed: str = "matrices") -> list[dict[str, Any]]:
    """Groups decided by shape, or by what a parameter is for, and never by name.

    Names mislead: RiNALMo's trained scalar beta is called `bias` in one released layout (specs: rinalmo 6).
    ``decayed``: "matrices", tensors of two or more dimensions; "all_but_norms", biases too, but neither weights nor
    biases of norms, nor what the model has no use for; "all", everything, which is then one group.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    spared: set[int] = set()
    if decayed == "matrices":
        spared = {id(p) for p in trained if p.ndim < 2}
    elif decayed == "all_but_norms":
        spared = _of_norms_or_idle(model)
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _of_norms_or_idle(model: nn.Module) -> set[int]:
    """Ids of the parameters of norms, and of those that no output depends on: decay alone would move them.

    A module other than a layer norm says by name which of its own parameters are either.
    """
    found: set[int] = set()
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        names = own if isinstance(module, nn.LayerNorm) else getattr(module, "norm_parameters", ())
        found |= {id(own[name]) for name in (*names, *getattr(module, "idle_parameters", ()))}
    return found


def build_optimizer(model: nn.Module, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW or Ranger over the groups of ``parameter_groups``. ``fused`` (AdamW only) needs parameters on a GPU.

    Ranger's centralisation of gradients is put on the model, once and for good, unless clipping comes first.
    """
    groups = parameter_groups(model, config.weight_decay, config.decayed)
    rate, betas, eps = config.learning_rate, (config.betas[0], config.betas[1]), config.eps
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=fused)
    if not config.clip_before_centralising:  # else the engine does it, after clipping
        centralise_gradients(model)
    return Ranger(groups, lr=rate, betas=betas, eps=eps, k=config.lookahead_steps, alpha=config.lookahead_share)


def state_kinds(config: OptimizerConfig) -> tuple[str, ...]:
    """Names of the optimizer's tensors, each of a parameter's shape."""
    return RANGER_KINDS if config.name == "ranger" else ("exp_avg", "exp_avg_sq")


def new_state(config: OptimizerConfig, parameter: Tensor) -> dict[str, Tensor]:
    """The tensors that the optimizer would create on its first step, for a parameter or a part of one."""
    if config.name == "ranger":
        return {kind: value for kind, value in Ranger.new_state(parameter).items() if kind in RANGER_KINDS}
    return {kind: torch.zeros_like(parameter) for kind in state_kinds(config)}
