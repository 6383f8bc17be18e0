"""Ranger, RibonanzaNet's optimizer: RAdam with decoupled weight decay, lookahead, and centralised gradients.

Source: RibonanzaNet specification 6. Everything in `Ranger` acts element by element, so that it does the same to a
parameter, to its flattened form and to any cut of it, which is what DeepSpeed's ZeRO gives it. Centralisation needs the
rows of a gradient and is therefore not in the optimizer: `centralise_gradients` puts it on the model's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

STATE_KINDS = ("exp_avg", "exp_avg_sq", "slow")  # all shaped like the parameter
RECTIFIED_FROM = 5.0  # length of the second moment's memory above which it is used at all


class Ranger(torch.optim.Optimizer):
    """RAdam with decoupled weight decay, and lookahead: every ``k`` steps slow += alpha · (fast - slow), fast = slow.

    The slow weights start as the weights. Per parameter, the state holds the moments ``exp_avg`` and ``exp_avg_sq``,
    ``slow``, and the number of updates ``step`` (a scalar on the CPU), which also counts the lookahead. The defaults
    are the authors'. A parameter without gradient is left alone, its step count included.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 1e-4,
        k: int = 6,
        alpha: float = 0.5,
    ) -> None:
        if k < 1 or not 0 < alpha <= 1:
            raise ValueError(f"Ranger: k must be at least 1 and alpha in (0, 1], not {k} and {alpha}")
        if not all(0 <= beta < 1 for beta in betas) or eps <= 0:
            raise ValueError(f"Ranger: betas must be in [0, 1) and eps above 0, not {betas} and {eps}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "k": k, "alpha": alpha}
        super().__init__(params, defaults)

    @staticmethod
    def new_state(parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first update."""
        return {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "slow": parameter.detach().clone(memory_format=torch.preserve_format),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.state[parameter].update(self.new_state(parameter))
                    self.state[parameter]["step"] += 1
                    by_step.setdefault(int(self.state[parameter]["step"]), []).append(parameter)
            for step, parameters in by_step.items():
                self._update(group, step, parameters)
        return loss

    def _update(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        """The ``step``-th update of parameters of one group."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second, slow = ([self.state[p][kind] for p in parameters] for kind in STATE_KINDS)
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rate, rectified = step_size(step, beta1, beta2)
        if rectified:
            scale = torch._foreach_sqrt(second)
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_addcdiv_(parameters, first, scale, value=-group["lr"] * rate)
        else:
            torch._foreach_add_(parameters, first, alpha=-group["lr"] * rate)
        if step % group["k"] == 0:
            torch._foreach_lerp_(slow, parameters, group["alpha"])
            torch._foreach_copy_(parameters, slow)


def step_size(step: int, beta1: float, beta2: float) -> tuple[float, bool]:
    """(factor of the learning rate at update ``step`` = 1, 2, ..., whether the second moment divides the update).

    RAdam's rectification: below a memory of five updates the step is that of plain momentum.
    """
    longest = 2 / (1 - beta2) - 1
    forgotten = beta2**step
    memory = longest - 2 * step * forgotten / (1 - forgotten)
    debiased = 1 / (1 - beta1**step)
    if memory <= RECTIFIED_FROM:
        return debiased, False
    rectification = (memory - 4) * (memory - 2) * longest / ((longest - 4) * (longest - 2) * memory)
    return debiased * math.sqrt((1 - forgotten) * rectification), True


def centralise_gradients(model: nn.Module) -> list[RemovableHandle]:
    """Subtract from every gradient of two or more dimensions its mean over all but the first, in every backward pass.

    As hooks on the parameters, so it acts on shaped gradients before DeepSpeed flattens them: call it before
    `deepspeed.initialize`. It is linear and so exact under accumulation, averaging over ranks, and loss scaling. But
    gradient clipping, which comes later, then sees the norm of the centralised gradients (the authors' code clips
    before: `centralise_now`). Returns the handles that remove it again.
    """
    return [p.register_hook(_centralised) for p in model.parameters() if p.requires_grad and p.dim() > 1]


def centralise_now(parameters: Iterable[nn.Parameter]) -> None:
    """The same to gradients as they are: after clipping, which the authors' order is, where nothing has cut them."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.dim() > 1:
            parameter.grad.copy_(_centralised(parameter.grad))


def _centralised(gradient: Tensor) -> Tensor:
    return gradient - gradient.mean(dim=tuple(range(1, gradient.dim())), keepdim=True)
