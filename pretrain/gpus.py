"""GPUs by name: memory, dense peaks and links, from the vendors' data sheets. Used for MFU and for planning."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pretrain.errors import PretrainError


@dataclass(frozen=True)
class GPU:
    """One kind of GPU, and the node that it usually comes in.

    ``tera_half``: dense peak in bf16 with fp32 sums, 0 where the GPU has no bf16; ``tera_single``: in fp32, as torch
    computes it by default (no TF32). ``intra`` and ``inter``: one direction, per GPU, in GB/s, within a node (NVLink,
    or PCIe where there is none) and to another node (the network that such nodes commonly have).
    """

    name: str
    product: str  # all of these words stand in the name that the driver gives
    memory_gib: float  # what a process can see
    tera_half: float
    tera_single: float
    intra: float
    inter: float
    per_node: int = 8

    def peak(self, precision: str) -> float | None:
        """FLOP/s at a recipe's precision; None where it cannot compute in that."""
        return (self.tera_single if precision == "fp32" else self.tera_half) * 1e12 or None


# The first whose product words all match names a device, so the more particular ones come first.
GPUS = (
    GPU("h200-141gb", "H200", 139.8, 989.0, 67.0, 450, 50),
    GPU("h100-pcie-80gb", "H100 PCIe", 79.2, 756.0, 51.0, 64, 25),
    GPU("h100-80gb", "H100", 79.1, 989.0, 67.0, 450, 50),
    GPU("b200-180gb", "B200", 178.4, 2250.0, 80.0, 900, 50),
    GPU("a100-40gb", "A100 40GB", 39.4, 312.0, 19.5, 300, 25),
    GPU("a100-80gb", "A100", 79.2, 312.0, 19.5, 300, 25),
    GPU("l40s-48gb", "L40S", 44.4, 362.0, 91.6, 32, 12.5),
    GPU("l4-24gb", "L4", 22.2, 121.0, 30.3, 32, 12.5),
    GPU("a10-24gb", "A10", 22.1, 125.0, 31.2, 32, 12.5, 4),
    GPU("v100-32gb", "V100 32GB", 31.7, 0.0, 15.7, 150, 12.5),
    GPU("v100-16gb", "V100", 15.8, 0.0, 15.7, 150, 12.5),
    GPU("a6000-48gb", "A6000", 47.4, 154.8, 38.7, 32, 12.5, 4),
    GPU("rtx-4090-24gb", "RTX 4090", 23.6, 165.2, 82.6, 32, 3.1, 4),
    GPU("rtx-3090-24gb", "RTX 3090", 23.6, 71.0, 35.6, 32, 3.1, 4),
)


def named(name: str) -> GPU:
    """The GPU that a user calls so; memory and dashes may be left out where only one fits.

    Raises PretrainError with the nearest name.
    """
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    for gpu in GPUS:
        if wanted == gpu.name:
            return gpu
    fitting = [gpu for gpu in GPUS if gpu.name.rsplit("-", 1)[0] == wanted or _squeezed(gpu.name) == _squeezed(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    names = [gpu.name for gpu in fitting or GPUS]
    nearest = difflib.get_close_matches(wanted, names, 1, 0.0)[0]
    raise PretrainError(
        f"--gpu {name} is not known; did you mean {nearest}? Known are {', '.join(gpu.name for gpu in GPUS)}"
    )


def of_device(device_name: str) -> GPU | None:
    """The GPU with the name that the driver gives, such as "NVIDIA H100 80GB HBM3"; None where it is not known."""
    words = set(device_name.replace("-", " ").split())
    return next((gpu for gpu in GPUS if words.issuperset(gpu.product.split())), None)


def _squeezed(name: str) -> str:
    return name.replace("-", "")
