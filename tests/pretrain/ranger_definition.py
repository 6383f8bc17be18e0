"""Ranger by its formulas (spec ribonanzanet 6), one tensor at a time, with nothing of pretrain/ranger.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def centralised(gradient: Tensor) -> Tensor:
    """Less its mean over all dimensions but the first; vectors stay as they are."""
    if gradient.dim() < 2:
        return gradient
    return gradient - gradient.flatten(1).mean(1).view(-1, *[1] * (gradient.dim() - 1))


class Definition:
    """``weights`` and ``slow`` after every `step`; gradients come clipped and centralised, in whatever order."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        lr: float = 1e-3,
        wd: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        k: int = 6,
        alpha: float = 0.5,
    ) -> None:
        self.weights, self.slow = ([w.detach().clone() for w in weights] for _ in range(2))
        self.m, self.v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        self.lr, self.wd, self.betas, self.eps, self.k, self.alpha, self.t = lr, wd, betas, eps, k, alpha, 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        self.t += 1
        t, lr, (beta1, beta2) = self.t, self.lr, self.betas
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * t * beta2**t / (1 - beta2**t)
        for i, g in enumerate(gradients):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
            w = self.weights[i] - lr * self.wd * self.weights[i]
            momentum = self.m[i] / (1 - beta1**t)
            if rho > 5:
                r = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
                # eps is added before the second moment is debiased
                w = w - lr * r * momentum * math.sqrt(1 - beta2**t) / (self.v[i].sqrt() + self.eps)
            else:
                w = w - lr * momentum
            if t % self.k == 0:
                self.slow[i] = self.slow[i] + self.alpha * (w - self.slow[i])
                w = self.slow[i].clone()
            self.weights[i] = w
