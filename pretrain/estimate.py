"""What a machine can do, and what a micro-batch costs on it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.layers.attention import computed_tokens, resolve_kernel
from pretrain.config import ComputeConfig, Recipe

# Dense peak in TFLOP/s of bf16 and of fp32 (as torch computes it by default), from the vendors' data sheets.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "B200": (2250.0, 80.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "A10": (125.0, 31.2),
    "V100": (0.0, 15.7),
}


def peak_flops(compute: ComputeConfig, device: torch.device) -> float | None:
    """FLOP/s of one device at the recipe's precision; None where it is not known."""
    if compute.peak_tflops is not None:
        return compute.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), compute.precision)


def peak_of(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device by its product name."""
    for name, (half, single) in PEAKS.items():
        if all(word in device_name for word in name.split()):
            return (single if precision == "fp32" else half) * 1e12 or None
    return None


def cost_of(settings: Recipe) -> Any:
    """The model's module, which has `flops(config, lengths, targets)` and `activation_bytes(config, tokens, ...)`."""
    return sys.modules[type(settings.model).__module__]


def padded_tokens(lengths: npt.NDArray[np.int64], settings: Recipe, device: torch.device) -> int:
    """Tokens that attention computes on: more than there are when its kernel pads to the longest sequence."""
    model: Any = settings.model
    dtype = torch.float32 if settings.compute.precision == "fp32" else torch.bfloat16
    kernel = resolve_kernel(model.kernel, device, dtype, model.attention_dropout, model.head_dim)
    return computed_tokens(lengths.tolist(), kernel, device, settings.compute.compile)
