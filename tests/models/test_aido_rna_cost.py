"""Planning numbers against the module that they describe, and against the specification's."""

import pytest
import torch

from models.aido_rna import AidoRNA, AidoRNAConfig, activation_bytes, count_parameters, flops
from tests.models.small_aido_rna import LIKE_1M


@pytest.mark.parametrize("size", ["1m", "25m", "650m", "1b6"])
def test_count_parameters_is_that_of_the_module(size):
    config = AidoRNAConfig.named(size)
    with torch.device("meta"):
        model = AidoRNA(config)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)


@pytest.mark.parametrize(("size", "per_token"), [("650m", 4.40e9), ("1b6", 10.45e9)])
def test_flops_of_the_specification(size, per_token):
    """Spec 1.3, per token at 1024 tokens: 6N + 12 · layers · width · tokens."""
    config = AidoRNAConfig.named(size)
    assert flops(config, [1024]) / 1024 == pytest.approx(per_token, rel=4e-3)
    assert flops(config, [1024, 1024]) == 2 * flops(config, [1024])
    saved = flops(config, [1024]) - flops(config, [1024], targets=154)
    d = config.width
    assert saved == 6 * (d * d + 3 * d + 16 + 16 * d) * (1024 - 154)  # the tied decoder works on targets alone


@pytest.mark.parametrize("kind", [{}, LIKE_1M])
@pytest.mark.parametrize("how", ["plain", "dropout", "bf16 module", "autocast", "padded"])
def test_activation_bytes_is_what_autograd_keeps(pack, how, kind):
    """The estimate against the storages that the backward pass holds, parameters aside: within 10 %."""
    residual = 0.1 if how == "dropout" else 0.0
    config = AidoRNAConfig(layers=6, width=320, heads=20, ffn=853, residual_dropout=residual, **kind)
    model = AidoRNA(config).train()
    if how == "bf16 module":
        model.bfloat16()
    lengths = [100, 91, 99, 95] if how == "padded" else [100] * 4
    batch = pack([torch.randint(5, 9, (n,)) for n in lengths])
    index = torch.arange(0, sum(lengths), 7)
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
        logits = model(*batch, index)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = torch.nn.functional.cross_entropy(logits.float(), batch[0][index])
    assert torch.isfinite(loss)
    estimate = activation_bytes(
        config,
        sum(lengths),
        len(index),
        element_bytes=2 if how in ("bf16 module", "autocast") else 4,
        residual_bytes=4 if how == "autocast" else None,
        padded_tokens=400 if how == "padded" else 0,
    )
    assert estimate == pytest.approx(sum(size for size, _ in kept.values()), rel=0.1)


def test_checkpointing_keeps_one_block_and_the_inputs():
    config = AidoRNAConfig.named("650m")
    less = activation_bytes(AidoRNAConfig.named("650m", checkpointing=True), 65536, 9830)
    assert less < activation_bytes(config, 65536, 9830) / 10
    assert less > 33 * 65536 * 1280 * 2
