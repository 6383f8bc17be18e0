"""The published quirks, against recorded outputs and gradients of the authors' code (data/ribonanzanet/README.md)."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.layouts import ribonanzanet as layout
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from tests.models.reference_ribonanzanet import fill

RECORDED = load_file(Path(__file__).parent / "data" / "ribonanzanet" / "original_outputs.safetensors")
SMALL = RibonanzaNetConfig(layers=3, width=32, heads=4, ffn=128, pair=16)
PLACE = torch.arange(3 * 14).view(3, 14)
IS_REAL = torch.arange(14)[None] < torch.tensor([14, 11, 6])[:, None]
TOKENS = ((PLACE * PLACE + PLACE // 5) % 5).masked_fill(~IS_REAL, 4)
WHOLE, PADDED, FIRST_ROW = (TOKENS, None), (TOKENS, IS_REAL), (TOKENS[:1], None)
CASES = {
    "head_unpadded": ({}, WHOLE),
    "head_bool": ({"mask_mode": "none"}, PADDED),
    "head_number": ({"mask_mode": "signed"}, PADDED),
    "first": ({"mask_mode": "zero_logit"}, PADDED),
    "triangle_unpadded": ({"triangle_attention": True}, WHOLE),
    "triangle_number": ({"triangle_attention": True, "mask_mode": "signed"}, PADDED),
    "head_dropout": ({}, FIRST_ROW),
    "triangle_dropout": ({"triangle_attention": True}, FIRST_ROW),
}


def original_shapes(config):
    """Names and shapes in the authors' layout."""
    state = RibonanzaNet(config).state_dict()
    return {name: list(x.shape) for name, x in layout.to_original(state, config).items()}


def stand_in(calls):
    def drop(x, p=0.5, training=True, inplace=False):
        if not training:
            return x
        calls.append(p)
        return x * (torch.arange(x.numel()).view(x.shape) % 7 != len(calls) % 7) / (1 - p)

    return drop


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_original(case, skip, monkeypatch):
    overrides, (tokens, is_real) = CASES[case]
    config = dataclasses.replace(SMALL, skip_last_pair_update=skip, **overrides)
    read, state = layout.from_original(fill(original_shapes(config)))
    assert read == dataclasses.replace(config, mask_mode="fixed", skip_last_pair_update=True)
    model = RibonanzaNet(config).eval()
    model.load_state_dict(state)
    calls = []
    if case.endswith("dropout"):
        # The authors' calls per layer; the last pair update calls for dropout too, but changes nothing any more.
        monkeypatch.setattr(torch.nn.functional, "dropout", stand_in(calls))
        model.train()
    before = None if is_real is None else is_real.clone()
    output = model(tokens, is_real)
    if case.endswith("dropout"):
        layer = [0.1, *[0.05] * (8 if config.triangle_attention else 6)]
        assert calls == layer * 3
    assert is_real is None or torch.equal(is_real, before)
    assert (output - RECORDED[case]).abs().max() <= 2e-6
    (output * torch.cos(torch.arange(output.numel()).view(output.shape))).sum().backward()
    theirs = layout.to_original({name: p.grad for name, p in model.named_parameters()}, config)
    projected = [
        (g.double() * torch.cos(torch.arange(g.numel()).double()).view(g.shape)).sum() for g in theirs.values()
    ]
    by_name = torch.stack([x for _, x in sorted(zip(theirs, projected, strict=True), key=lambda pair: pair[0])]).float()
    expected = RECORDED[case + "_gradients"]
    assert (by_name - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_the_modes_differ_where_there_is_padding_and_only_there():
    state = fill(original_shapes(SMALL))
    outputs = {}
    for mode in ("fixed", "none", "signed", "zero_logit"):
        model = RibonanzaNet(dataclasses.replace(SMALL, mask_mode=mode)).eval()
        model.load_state_dict(layout.from_original(state)[1])
        outputs[mode] = model(TOKENS, IS_REAL)
        assert (model(TOKENS, torch.ones_like(IS_REAL)) - model(TOKENS)).abs().max() <= 1e-6
        assert (outputs[mode][0] - model(TOKENS[:1])[0]).abs().max() <= 2e-6  # the first row has no padding
        if mode == "none":  # the authors' bool mask becomes all true: bit for bit a mask of ones (spec 2.1)
            assert torch.equal(outputs[mode], model(TOKENS))
    for a, b in (("fixed", "none"), ("fixed", "signed"), ("fixed", "zero_logit"), ("signed", "none")):
        assert (outputs[a] - outputs[b])[IS_REAL].abs().max() > 0.05


def test_more_padding_changes_what_the_historical_modes_predict():
    """Spec 2.1: 20 more columns of padding, of which `zero_logit` still gives weight to every one."""
    state, more = fill(original_shapes(SMALL)), (0, 20)
    wide = torch.nn.functional.pad(TOKENS, more, value=4), torch.nn.functional.pad(IS_REAL, more)
    moved = {}
    for mode in ("fixed", "signed", "zero_logit", "none"):
        model = RibonanzaNet(dataclasses.replace(SMALL, mask_mode=mode)).eval()
        model.load_state_dict(layout.from_original(state)[1])
        moved[mode] = (model(*wide)[:, : TOKENS.shape[1]] - model(TOKENS, IS_REAL))[IS_REAL].abs().max().item()
    assert moved["fixed"] <= 1e-5
    assert min(moved["signed"], moved["zero_logit"], moved["none"]) > 0.05


@pytest.mark.slow
def test_the_modes_at_the_published_size_deviate_as_the_specification_says():
    """Spec 2.1: PyTorch's initial values, lengths of 40, 31 and 22, each sequence alone as the truth."""
    lengths, differences, generator = (40, 31, 22), {}, torch.Generator().manual_seed(0)
    is_real = torch.arange(40)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(0, 4, is_real.shape, generator=generator).masked_fill(~is_real, 4)
    with torch.no_grad():
        for mode in ("fixed", "zero_logit", "signed", "none"):
            model = RibonanzaNet(RibonanzaNetConfig.named("base", mask_mode=mode)).eval()
            model.reset_parameters(torch.Generator().manual_seed(1))
            alone = [model(tokens[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
            batch = model(tokens, is_real)
            differences[mode] = max((batch[i, : len(one)] - one).abs().max().item() for i, one in enumerate(alone))
    print({mode: f"{value:.1e}" for mode, value in differences.items()})
    assert differences["fixed"] <= 1e-5
    for mode, told in (("zero_logit", 0.20), ("signed", 0.53), ("none", 0.50)):
        assert told / 2.5 < differences[mode] < 2.5 * told, mode
