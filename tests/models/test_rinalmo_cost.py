"""Planning numbers against the module that they describe, and against the specification's."""

import pytest
import torch

from models.rinalmo import RiNALMo, RiNALMoConfig, activation_bytes, count_parameters, flops


@pytest.mark.parametrize("size", ["giga", "mega", "micro", "nano"])
@pytest.mark.parametrize("pad_to", [1, 64])
def test_count_parameters_is_that_of_the_module(size, pad_to):
    config = RiNALMoConfig.named(size, ffn_pad_to=pad_to)
    with torch.device("meta"):
        model = RiNALMo(config)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, padded=True)
    assert count_parameters(config) == count_parameters(RiNALMoConfig.named(size))


def test_flops_of_the_specification():
    """Spec 1.4: giga at 1024 tokens, 3.90 + 0.52 GFLOP per token (6N with all parameters, plus attention)."""
    config = RiNALMoConfig.named("giga")
    assert flops(config, [1024]) / 1024 == pytest.approx(4.42e9, rel=2e-3)
    assert flops(config, [1024, 1024]) == 2 * flops(config, [1024])
    saved = flops(config, [1024]) - flops(config, [1024], targets=154)
    assert saved == 6 * (1280**2 + 3 * 1280 + 22 * 1281) * (1024 - 154)
    assert flops(RiNALMoConfig.named("giga", ffn_pad_to=64), [1024]) == flops(config, [1024])


@pytest.mark.parametrize("how", ["plain", "dropout", "bf16 module", "autocast", "padded"])
def test_activation_bytes_is_what_autograd_keeps(pack, how):
    """The estimate against the storages that the backward pass holds, parameters aside: within 10 %."""
    residual = 0.1 if how == "dropout" else 0.0
    config = RiNALMoConfig.named("nano", attention_dropout=0.0, residual_dropout=residual)
    model = RiNALMo(config).train()
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
    loss = None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = torch.nn.functional.cross_entropy(logits.float(), batch[0][index])
    assert torch.isfinite(loss)
    measured = sum(size for size, _ in kept.values())
    estimate = activation_bytes(
        config,
        sum(lengths),
        len(index),
        element_bytes=2 if how in ("bf16 module", "autocast") else 4,
        residual_bytes=4 if how == "autocast" else None,
        padded_tokens=400 if how == "padded" else 0,
    )
    assert estimate == pytest.approx(measured, rel=0.1)


def test_checkpointing_keeps_one_block_and_the_inputs():
    config = RiNALMoConfig.named("giga")
    less = activation_bytes(RiNALMoConfig.named("giga", checkpointing=True), 65536, 9830)
    assert less < activation_bytes(config, 65536, 9830) / 10
    assert less > 33 * 65536 * 1280 * 2
