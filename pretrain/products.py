"""Matrix products in fp32 on a CPU, by the faster of the two libraries that torch has for them.

torch asks MKL, which gives processors of other makers than Intel its code for AVX2. oneDNN uses AVX-512 on all that
have it: products twice as fast on AMD's Zen 5 (benchmarks/results.md). torch asks oneDNN where it is allowed to round
factors to bfloat16. oneDNN makes use of that on processors with AMX alone, and those are left with MKL; that products
stay those of fp32 is tested before the permission is kept.

oneDNN compiles code for every new shape. Batches of packed sequences have new ones nearly always, and lose what they
win; lengths of profiles and columns of alignments recur. Small models win nothing (benchmarks/results.md).

On a GPU torch multiplies matrices in fp32 by itself; `prepare_gpu` is for what it does otherwise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

CPU = Path("/proc/cpuinfo")
# Relative to the largest. In fp32 a product of 512 terms is wrong by less than 1e-6, with factors in bfloat16 by 1e-3.
ROUNDING = 1e-5
LARGE = 3_000_000  # parameters, from which oneDNN pays
_ONEDNN = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # of an object that takes the module's place


def choose_products(model: nn.Module) -> None:
    """For ``model``, from now on, in this process: oneDNN where its products are quicker and as exact."""
    if getattr(model, "shapes_recur", False) and sum(p.numel() for p in model.parameters()) >= LARGE:
        try_onednn()


def try_onednn() -> None:
    """From now on, in this process, oneDNN multiplies if this processor suits it and the product stays exact."""
    if not _suits_onednn(CPU.read_text() if CPU.is_file() else ""):
        return
    before = _ONEDNN.fp32_precision
    _ONEDNN.fp32_precision = "bf16"
    if _error() > ROUNDING:
        _ONEDNN.fp32_precision = before


def prepare_gpu() -> None:
    """From now on, in this process: no TF32, all sums of products in fp32, and no attention by cuDNN."""
    torch.backends.cudnn.allow_tf32 = False  # only convolutions have it on
    # Else a long sum, such as a weight's gradient over all tokens, may be cut into parts that are added in bfloat16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # It comes first from Hopper on and takes about a second to plan for every new shape, which nearly every batch has.
    torch.backends.cuda.enable_cudnn_sdp(False)


def products_by() -> str:
    """ "oneDNN" or "MKL": what multiplies fp32 matrices here. fp64 is MKL's, other precisions oneDNN's."""
    return "oneDNN" if _ONEDNN.fp32_precision == "bf16" else "MKL"


def device_at_hand(model: nn.Module) -> torch.device:
    """The first GPU, else the CPU, with its products chosen for ``model``: for commands of one process."""
    if torch.cuda.is_available():
        prepare_gpu()
        return torch.device("cuda")
    choose_products(model)
    return torch.device("cpu")


def _suits_onednn(cpuinfo: str) -> bool:
    """Whether a processor, as Linux describes it, has AVX-512, no AMX and not the maker of MKL."""
    fields = [line.partition(":") for line in cpuinfo.splitlines()]
    about = {name.strip(): value.split() for name, _, value in reversed(fields)}  # of the first core
    flags, maker = about.get("flags", []), about.get("vendor_id", [])
    has_amx = any(flag.startswith("amx") for flag in flags)
    return torch.backends.mkldnn.is_available() and "avx512f" in flags and not has_amx and maker != ["GenuineIntel"]


def _error() -> float:
    """Of a product in fp32 against the same in fp64, relative to the largest."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(512, 512, generator=generator, dtype=torch.float64).float() for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())
