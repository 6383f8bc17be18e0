"""Planning numbers of RNA-MSM against the module that they describe, and against the specification's."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.rnamsm import RNAMSM, RNAMSMConfig, activation_bytes, count_parameters, flops


@pytest.mark.parametrize("size", ["base", "nano"])
def test_count_parameters_is_that_of_the_module(size):
    config = RNAMSMConfig.named(size, max_positions=512)
    with torch.device("meta"):
        model = RNAMSM(config)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)


def test_flops_of_the_specification():
    """Spec 10.1: TFLOP of a training step."""
    config = RNAMSMConfig.named("base")
    for shape, tera in {(162, 101): 9.7, (16, 1024): 10.9, (512, 256): 84, (1024, 1024): 795}.items():
        assert flops(config, [shape]) / 1e12 == pytest.approx(tera, rel=0.01)
    assert flops(config, [(162, 101), (16, 1024)]) == flops(config, [(162, 101)]) + flops(config, [(16, 1024)])
    saved = flops(config, [(4, 10)]) - flops(config, [(4, 10)], targets=6)
    head, last = 2 * 768**2 + 2 * 28 * 768, 2 * 768**2 + 4 * 768 * 3072
    assert saved == 3 * (40 - 6) * (head + last)


SHAPES = pytest.mark.parametrize(("rows", "columns"), [(5, 17), (12, 6), (1, 70)])
# torch does not count products that are added to a total in place, as our backward pass does with those of weights.
IN_PLACE = {torch.ops.aten.addmm_: lambda total, a, b, **more: 2 * a[0] * a[1] * b[1]}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("targets", [None, torch.tensor([3, 14, 15, 60])])
@SHAPES
def test_flops_are_those_that_torch_counts(rows, columns, targets, backward):
    """To the last one. Columns of one row have neither queries nor keys: 28 d² in a layer, otherwise 32 d²."""
    config = RNAMSMConfig(layers=2, width=32, heads=4, ffn=64, attention_dropout=0)
    model = RNAMSM(config).eval()
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(torch.full((1, rows, columns), 6), target_index=targets)
        if backward:
            logits.sum().backward()
    expected = flops(config, [(rows, columns)], None if targets is None else len(targets))
    assert counter.get_total_flops() * (1 if backward else 3) == expected


@torch.no_grad()
@SHAPES
def test_flops_of_inference(rows, columns):
    config = RNAMSMConfig(layers=2, width=32, heads=4, ffn=64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        RNAMSM(config).eval()(torch.full((1, rows, columns), 6))
    assert 3 * counter.get_total_flops() == flops(config, [(rows, columns)])


def test_one_row_costs_what_the_specification_says():
    config = RNAMSMConfig.named("base")
    d, columns = 768, 500
    forward = columns * (10 * (28 * d * d + 4 * d * columns) + 2 * d * d + 2 * 28 * d)
    assert flops(config, [(1, columns)]) == 3 * forward


@pytest.mark.parametrize("how", ["plain", "dropout", "bf16 module", "autocast"])
def test_activation_bytes_is_what_autograd_keeps(how, monkeypatch):
    """The estimate against the storages that the backward pass holds, parameters aside: within 10 %."""
    residual = 0.1 if how == "dropout" else 0.0
    config = RNAMSMConfig.named("nano", attention_dropout=0.0, residual_dropout=residual)
    model = RNAMSM(config).train()
    # On CUDA the mask of dropout takes one byte per element; on CPU it would be kept in the dtype of x.
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, train: torch.native_dropout(x, p, train)[0])
    if how == "bf16 module":
        model.bfloat16()
    rows, columns = 12, 40
    tokens = torch.randint(6, 10, (1, rows, columns))
    index = torch.arange(0, rows * columns, 7)
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    casts = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    casts |= {shape[::-1] for shape in casts}

    def keep(x):
        is_weight_copy = how == "autocast" and tuple(x.shape) in casts
        if x.untyped_storage().data_ptr() not in own and not is_weight_copy:
            kept[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", enabled=how == "autocast"):
        logits = model(tokens, target_index=index)
    loss = None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = torch.nn.functional.cross_entropy(logits.float(), tokens.flatten()[index])
    assert torch.isfinite(loss)
    measured = sum(size for size, _ in kept.values())
    estimate = activation_bytes(
        config,
        rows,
        columns,
        len(index),
        element_bytes=2 if how in ("bf16 module", "autocast") else 4,
        residual_bytes=4 if how == "autocast" else None,
    )
    print(how, measured, estimate)
    assert estimate == pytest.approx(measured, rel=0.1)


def test_checkpointing_and_the_table_of_the_specification():
    """Spec 10.2: GB with fused column attention, of which ours keeps at most three quarters (layers/pieces.py)."""
    config = RNAMSMConfig.named("base")
    for (rows, columns), gigabytes in {(162, 101): 6.5, (16, 1024): 7.1, (64, 256): 6.6, (512, 256): 52}.items():
        assert 0.5 < activation_bytes(config, rows, columns) / 1e9 / gigabytes < 0.75
    less = RNAMSMConfig.named("base", checkpointing=True)
    assert activation_bytes(less, 512, 256) / 1e9 < 0.75 * 9.5
