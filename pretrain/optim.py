"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import OptimizerConfig
from pretrain.ranger import STATE_KINDS as RANGER_KINDS
from pretrain.ranger import Ranger, centralise_gradients


def parameter_groups(model: nn.Module, weight_decay: float, decayed: str = "matrices") -> list[dict[str, Any]]:
    """Groups decided by shape and never by name: tensors of two or more dimensions decay, all others do not.

    Names mislead: RiNALMo's trained scalar beta is called `bias` in one released layout (specs: rinalmo 6). With
    ``decayed`` "all" there is one group, and everything decays.
    """
    least = 2 if decayed == "matrices" else 0
    with_decay = [p for p in model.parameters() if p.requires_grad and p.ndim >= least]
    without = [p for p in model.parameters() if p.requires_grad and p.ndim < least]
    groups = [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
