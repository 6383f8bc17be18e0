"""Profiles written out by hand, and stand-ins for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data import randomness
from data.reactivity import Profile
from pretrain.objectives.reactivity import Reactivity, ReactivityConfig

NAN = float("nan")


def profile(letters: str, values: Any, signal_to_noise: Sequence[float] = (2.0, 2.0), errors: Any = None) -> Profile:
    """``values``, ``errors`` [L, C] with NaN where nothing was measured."""
    values = np.array(values, dtype=np.float32)
    errors = np.full_like(values, np.nan) if errors is None else np.array(errors, dtype=np.float32)
    ascii_letters = np.frombuffer(letters.encode(), dtype=np.uint8)
    return Profile(ascii_letters, values, errors, np.array(signal_to_noise, dtype=np.float32))


def objective(**settings: Any) -> Reactivity:
    """Without flip unless it is asked for."""
    return Reactivity(ReactivityConfig(**{"flip": 0.0, **settings}))


def keys(count: int, name: str = "test") -> np.ndarray:
    return randomness.keys(randomness.key(name), np.arange(count))


class Constant(nn.Module):
    """Predicts the same numbers everywhere."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor(numbers))

    def forward(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        return self.numbers.expand(*tokens.shape, -1)


class Places(nn.Module):
    """Predicts 10 · place + letter, and in the second channel the negative of it; padding gives garbage."""

    def forward(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        first = 10.0 * torch.arange(tokens.shape[1]) + tokens
        if is_real is not None:
            first = first.masked_fill(~is_real, 1e6)
        return torch.stack([first, -first], dim=-1)
