"""The layers of RibonanzaNet's pair stream against their plain forms; triangle updates: test_triangle_update.py."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import pieces
from models.layers.pair import OuterProduct, RelativePosition, axis_dropout
from models.layers.pair_bias import pair_bias
from models.layers.pair_mask import pair_mask
from models.layers.pair_transition import PairTransition, plain_transition
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig


def test_outer_product_equals_the_plain_form():
    torch.manual_seed(0)
    module = OuterProduct(24, 8, 12)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    s, z = torch.randn(2, 11, 24, requires_grad=True), torch.randn(2, 11, 11, 12, requires_grad=True)
    out = module(s, z)
    x = s @ module.down.weight.T + module.down.bias
    plain = torch.einsum("bid,bjc->bijcd", x, x).flatten(3) @ module.up.weight.T + module.up.bias
    plain = plain + z
    assert (out - plain).abs().max() <= 2e-6
    weight = torch.randn_like(out)
    leaves = (s, z, *module.parameters())
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), leaves),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= 2e-6 * max(1, theirs.abs().max().item())
    change = (out - z)[0]
    assert (change[3, 5] - change[5, 3]).abs().max() > 0.01  # the order of i and j matters
    assert torch.equal(module(s[:1], z[0])[0], out[0])  # one z for all


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
    factors = axis_dropout(torch.empty(2, 30, 31, 5), 0.3, shared)
    assert factors.shape == ((2, 1, 31, 5) if axis == "row" else (2, 30, 1, 5))
    assert factors.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert 0.2 < (factors == 0).float().mean() < 0.4
    assert not torch.equal(factors[0], factors[1])


@pytest.mark.parametrize(("axis", "shape"), [("row", (2, 1, 9, 32)), ("column", (2, 9, 1, 32))])
def test_the_ingoing_update_drops_along_the_axis_of_the_recipe(axis, shape):
    """Spec 1.3: the authors share both updates' dropout along i; `pair_dropout_in_axis` is of the ingoing one."""
    seen = []
    model = RibonanzaNet(RibonanzaNetConfig.named("nano", layers=2, pair_dropout_in_axis=axis))
    for update in (model.blocks[0].pair.triangle_out, model.blocks[0].pair.triangle_in):
        update.register_forward_pre_hook(lambda module, args: seen.append(getattr(args[2], "shape", None)))
    model.train()(torch.randint(0, 4, (2, 9)))
    assert seen == [(2, 1, 9, 32), shape]
    model.eval()(torch.randint(0, 4, (2, 9)))
    assert seen[2:] == [None, None]


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


def layers_and_plain():
    torch.manual_seed(0)
    transition = PairTransition(12, 48)
    for p in transition.parameters():
        torch.nn.init.normal_(p, std=0.5)
    transition = transition.double()
    norm, weight = [torch.randn(12, dtype=torch.float64, requires_grad=True) for _ in range(2)], torch.randn(3, 12)
    weight = weight.double().requires_grad_()

    def plain(z):
        return plain_transition(z, *transition.norm(), *transition.up(), *transition.down())

    def bias(z):
        return F.linear(F.layer_norm(z, (12,), *norm), weight).permute(0, 3, 1, 2)

    def both(z):
        z, found = pair_bias(z, norm, weight)
        return torch.cat([z.permute(0, 3, 1, 2), found], 1)

    return [
        ("transition", transition, plain, list(transition.parameters())),
        ("bias", both, lambda z: torch.cat([z.permute(0, 3, 1, 2), bias(z)], 1), [*norm, weight]),
    ]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("tokens", [1, 50, 10**6])
def test_pointwise_layers_equal_their_plain_forms_in_pieces_of_any_size(which, tokens, monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", 1)
    monkeypatch.setattr(pieces, "TOKENS", tokens)
    _, layer, plain, parameters = layers_and_plain()[which]
    z = torch.randn(2, 9, 9, 12, dtype=torch.float64, requires_grad=True)
    ours, theirs = layer(z), plain(z)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((x * weight).sum(), (z, *parameters)) for x in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
