"""The layers of RibonanzaNet's pair stream, one by one, against their plain forms."""

import pytest
import torch

from models.layers.pair import OuterProduct, RelativePosition, axis_dropout
from models.layers.pair_mask import pair_mask
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig


def test_outer_product_equals_the_plain_form():
    torch.manual_seed(0)
    module = OuterProduct(24, 8, 12)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    s = torch.randn(2, 11, 24, requires_grad=True)
    out = module(s)
    x = s @ module.down.weight.T + module.down.bias
    plain = torch.einsum("bid,bjc->bijcd", x, x).flatten(3) @ module.up.weight.T + module.up.bias
    assert (out - plain).abs().max() <= 2e-6
    weight = torch.randn_like(out)
    leaves = (s, *module.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), leaves),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= 2e-6 * max(1, theirs.abs().max().item())
    assert (out[0, 3, 5] - out[0, 5, 3]).abs().max() > 0.01  # the order of i and j matters


def test_relative_positions_equal_one_hot_vectors_bit_for_bit():
    torch.manual_seed(0)
    module = RelativePosition(8, 6)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    offset = (torch.arange(30)[:, None] - torch.arange(30)[None]).clamp(-8, 8)
    one_hot = (offset[..., None] == torch.arange(-8, 9)).float()
    assert torch.equal(module(30), one_hot @ module.weight.T + module.bias)


@pytest.mark.parametrize(("axis", "shared"), [("row", 1), ("column", 2)])
def test_axis_dropout_is_shared_along_one_axis(axis, shared):
    torch.manual_seed(0)
    kept = axis_dropout(torch.ones(2, 30, 31, 5), 0.3, shared, training=True)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    first = kept.narrow(shared, 0, 1)
    assert torch.equal(kept, first.expand_as(kept))
    assert 0.2 < (first == 0).float().mean() < 0.4
    assert not torch.equal(first.squeeze(shared)[0], first.squeeze(shared)[1])
    config = RibonanzaNetConfig.named("nano", pair_dropout_in_axis=axis)
    assert RibonanzaNet(config).blocks[0].pair.in_axis == shared
    untouched = torch.ones(1, 2, 2, 1)
    assert axis_dropout(untouched, 0.3, shared, training=False) is untouched


def test_zero_logit_keeps_the_diagonal_and_masks_are_not_changed():
    is_real = torch.arange(13)[None] < torch.tensor([13, 9, 1])[:, None]
    before = is_real.clone()
    for mode in ("fixed", "none", "signed", "zero_logit"):
        mask = pair_mask(mode, is_real)
        assert torch.equal(is_real, before)
        if mode == "zero_logit":
            assert not mask.fill.diagonal(dim1=1, dim2=2).any()
            assert mask.fill.sum() == (13 * 13 * 3 - 13 * 13 - 9 * 9 - 1) - (4 + 12)
        elif mode == "signed":
            assert mask.fill.sum() == 2 * (9 * 4 + 1 * 12)
            assert mask.later.unique().tolist() == [-1, 1]
