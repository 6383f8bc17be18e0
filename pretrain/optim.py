"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pretrain.config import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, decided by shape and never by name: tensors of two or more dimensions decay, all others do not.

    Names mislead: RiNALMo's trained scalar beta is called `bias` in one released layout (specs: rinalmo 6).
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    undecayed = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (decoupled weight decay) over the groups of ``parameter_groups``. ``fused`` needs parameters on a GPU."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=fused,
    )
