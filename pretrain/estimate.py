"""What a machine can do, and what a micro-batch costs on it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.layers.attention import computed_tokens, resolve_kernel
from pretrain import gpus
from pretrain.config import ComputeConfig, Recipe


def peak_flops(compute: ComputeConfig, device: torch.device) -> float | None:
    """FLOP/s of one device at the recipe's precision; None where it is not known."""
    if compute.peak_tflops is not None:
        return compute.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), compute.precision)


def peak_of(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device by its product name."""
    found = gpus.of_device(device_name)
    return None if found is None else found.peak(precision)


def cost_of(settings: Recipe) -> Any:
    """The model's module, which has `flops(config, lengths, targets)` and `activation_bytes(config, tokens, ...)`."""
    return sys.modules[type(settings.model).__module__]


def padded_tokens(lengths: npt.NDArray[np.int64], settings: Recipe, device: torch.device) -> int:
    """Tokens that attention computes on: more than there are when its kernel pads to the longest sequence."""
    model: Any = settings.model
    dtype = torch.float32 if settings.compute.precision == "fp32" else torch.bfloat16
    kernel = resolve_kernel(model.kernel, device, dtype, model.attention_dropout, model.head_dim)
    return computed_tokens(lengths.tolist(), kernel, device, settings.compute.compile)
