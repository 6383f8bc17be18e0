"""A model's passes over micro-batches of its objective on fake tensors of a CUDA device: shapes, dtypes and devices.

    LD_PRELOAD=LIBRARY python -m tests.pretrain.on_fake_cuda MODEL

in a process of its own, because LIBRARY (made of fake_cuda.cpp) tells torch that there is a GPU. What is run is what a
GPU would run, down to the choice of branches, autocast and which kernel is asked for; nothing is computed. Besides what
fake tensors refuse by themselves, fails on what they let pass and a GPU does not, or only slowly:

- layer norms of tensors of several dtypes
- whatever makes the host wait for the device: numbers and shapes that depend on values, copies between the two
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.loader import Moment
from models import MODELS
from models.layers import attention
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.objectives.msa import MSA
from pretrain.objectives.msa_config import MSAConfig
from pretrain.objectives.reactivity import Reactivity, ReactivityConfig

OBJECTIVES = {
    "rinalmo": lambda: MLM(MLMConfig()),
    "aido_rna": lambda: MLM(MLMConfig(alphabet="aido_rna")),
    "rnaernie": lambda: MLM(MLMConfig(alphabet="rnaernie")),
    "rnamsm": lambda: MSA(MSAConfig()),
    "ribonanzanet": lambda: Reactivity(ReactivityConfig()),
}
PRECISIONS = ("fp32", "bf16", "bf16_autocast")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
CUDA = torch.device("cuda", 0)


class Indexing(TorchFunctionMode):
    """x[...] by operations: the C++ code for it asks for the device itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _part(*args)
        if func is Tensor.__setitem__:
            x, key, value = args
            part = _part(x, key)
            return part.copy_(value) if torch.is_tensor(value) else part.fill_(value)
        return func(*args, **(kwargs or {}))


def _part(x: Tensor, key: Any) -> Tensor:
    keys = key if isinstance(key, tuple) else (key,)
    if any(torch.is_tensor(k) for k in keys):
        assert all(torch.is_tensor(k) or k == slice(None) for k in keys), keys
        return torch.ops.aten.index(x, [k if torch.is_tensor(k) else None for k in keys])
    dim = 0
    for i, k in enumerate(keys):
        if k is Ellipsis:
            dim = x.dim() - sum(later is not None for later in keys[i + 1 :])
        elif k is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(k, slice):
            x, dim = torch.ops.aten.slice(x, dim, k.start, k.stop, k.step or 1), dim + 1
        else:
            x = x.select(dim, int(k))
    return x


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, given = func.overloadpacket.__name__, [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        self.seen.add(str(func))
        by_mask = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in given[1:])
        waits = name in WAITING or by_mask
        assert not waits, f"{func} waits for the device"
        if name in ("_to_copy", "copy_"):
            devices = {x.device.type for x in [*given, out]}
            assert len(devices) == 1, f"{func} copies between {' and '.join(sorted(devices))}"
        if name.startswith("native_layer_norm"):
            dtypes = {x.dtype for i, x in enumerate(given) if name == "native_layer_norm" or i not in (2, 3)}
            assert len(dtypes) == 1, f"{func} of {dtypes}"  # but mean and deviation
        return out


@dataclasses.dataclass
class Alignment:
    letters: Any  # [depth, columns]

    @property
    def depth(self) -> int:
        return len(self.letters)

    @property
    def columns(self) -> int:
        return self.letters.shape[1]

    def rows(self, indices: Any) -> Any:
        return self.letters[indices]


def samples(objective: Any, lengths: tuple[int, ...]) -> list[Any]:
    letters = [np.frombuffer(b"ACGU" * n, dtype=np.uint8)[:n] for n in lengths]
    if isinstance(objective, MSA):
        return [Alignment(np.stack([letters[0]] * 5))] if letters else []
    return objective.plain(letters)


def batch_of(objective: Any, *lengths: int) -> Any:
    given = samples(objective, lengths)
    batch = objective.collate(given, np.arange(len(given), dtype=np.uint64), Moment(0, 2, 0))
    tensors = {name: x for name, x in vars(batch).items() if torch.is_tensor(x)}
    moved = {name: torch.empty(x.shape, dtype=x.dtype, device=CUDA) for name, x in tensors.items()}
    return dataclasses.replace(batch, **moved)


def build(name: str, **options: Any) -> nn.Module:
    config_class, module_class = MODELS[name]
    size = "1m" if name == "aido_rna" else "nano"
    with torch.device("meta"):
        return module_class(config_class.named(size, layers=2, **options))


def to_fake(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype, device=CUDA)))


def run(name: str, precision: str, **options: Any) -> set[str]:
    """Training, on micro-batches with and without padding and on an empty one, and prediction. What was called."""
    objective, model, watch = OBJECTIVES[name](), build(name, **options), Watch()
    how = torch.autocast("cuda", torch.bfloat16) if precision == "bf16_autocast" else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), Indexing():
        to_fake(model, torch.bfloat16 if precision == "bf16" else torch.float32)
        empty, *batches = [batch_of(objective, *lengths) for lengths in ((), (30, 30), (30, 17, 24))]
        with torch.no_grad():
            objective.loss(model, empty)  # what is moved to the device once is there now
        for batch in (empty, *batches):
            model.train().zero_grad()
            with watch:
                with how:
                    loss, _ = objective.loss(model, batch)
                loss.backward()
            for parameter, p in model.named_parameters():
                found = p.grad
                assert found is not None, f"{parameter} has no gradient"
                assert (found.dtype, found.device, found.shape) == (p.dtype, CUDA, p.shape), parameter
            with watch, torch.no_grad(), how:
                objective.logits(model.eval(), batch)
                if name == "rnamsm":
                    model(batch.tokens, everything=True)
    return watch.seen


def check(name: str) -> None:
    for precision in PRECISIONS:
        for checkpointing in (False, True):
            seen = run(name, precision, checkpointing=checkpointing)
            half = name == "rnamsm" and precision != "fp32"
            assert ("aten.bmm.dtype" in seen) == half, "tied scores of half-precision rows are summed in fp32"
        if name == "ribonanzanet":
            for mode in ("none", "signed", "zero_logit"):
                attention_too = mode != "zero_logit"
                run(name, precision, mask_mode=mode, triangle_attention=attention_too, skip_last_pair_update=False)
        elif precision != "fp32":
            seen = run(name, precision, attention_dropout=0.0)
            assert {"torch_attn._varlen_attn.default", "torch_attn._varlen_attn_backward.default"} <= seen


def main(name: str) -> None:
    from torch.nn.attention.varlen import varlen_attn

    torch.autograd.set_multithreading_enabled(False)  # there is no thread for the device
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.utils.checkpoint.get_device_states", return_value=([], [])),
        mock.patch.object(attention, "varlen_attn", varlen_attn),
        mock.patch.object(attention, "_compute_capability", return_value=(9, 0)),
    ):
        check(name)


if __name__ == "__main__":
    main(sys.argv[1])
