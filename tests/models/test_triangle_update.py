"""The triangle update of RibonanzaNet and its kernels against the formula, and what it keeps."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from models.errors import ModelError
from models.layers import pieces, triangle_update
from models.layers.pair_mask import pair_mask
from models.layers.triangle_update import TriangleUpdate, Weights, plain_update
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig

PAIR, LENGTH = 6, 9


def update(outgoing, pair=PAIR, kernel="own"):
    torch.manual_seed(0)
    layer = TriangleUpdate(pair, outgoing, kernel)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return layer.double()


def formula(layer, z, product, drop, outgoing):
    """Spec 1.3, written with einsum."""
    x = F.layer_norm(z, z.shape[-1:], layer.norm.weight, layer.norm.bias)
    left, right, left_gate, right_gate, gate = F.linear(x, layer.proj.weight, layer.proj.bias).chunk(5, -1)
    left, right = left * left_gate.sigmoid(), right * right_gate.sigmoid()
    if product is not None:
        left, right = left * product[..., None], right * product[..., None]
    o = torch.einsum("bikd,bjkd->bijd" if outgoing else "bkjd,bkid->bijd", left, right)
    o = F.layer_norm(o, z.shape[-1:], layer.out_norm.weight, layer.out_norm.bias)
    change = F.linear(o * gate.sigmoid(), layer.out.weight, layer.out.bias)
    return z + (change if drop is None else change * drop)


def assert_equal(layer, ours, theirs, z, tolerance=1e-10):
    assert (ours - theirs).abs().max() <= tolerance
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)).to(ours.dtype)
    leaves = (z, *layer.parameters())
    found, expected = (torch.autograd.grad((y * weight).sum(), leaves) for y in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).abs().max() <= tolerance * max(1, other.abs().max())


def inputs(masked, dropped, batch=3, pair=PAIR):
    torch.manual_seed(1)
    z = torch.randn(batch, LENGTH, LENGTH, pair, dtype=torch.float64, requires_grad=True)
    is_real = torch.arange(LENGTH)[None] < torch.tensor([9, 5, 1])[:batch, None]
    product = pair_mask("signed", is_real).product.double() if masked else None
    shape = {"row": (batch, 1, LENGTH, pair), "column": (batch, LENGTH, 1, pair)}
    drop = 2.0 * (torch.rand(shape[dropped]) < 0.5).double() if dropped else None
    return z, product, drop


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize(("masked", "dropped"), [(False, None), (True, "row"), (True, "column")])
@pytest.mark.parametrize("tokens", [1, 20, 150, 10**6])  # a row at a time, some, a sequence or more
@pytest.mark.parametrize("together", [1, 2, 3])
def test_equals_the_formula_in_pieces_of_any_size(outgoing, masked, dropped, tokens, together, monkeypatch):
    monkeypatch.setattr(pieces, "CACHED", 1)
    monkeypatch.setattr(pieces, "TOKENS", tokens)
    monkeypatch.setattr(triangle_update, "sequences_together", lambda z, dtype: together)
    layer, (z, product, drop) = update(outgoing), inputs(masked, dropped)
    assert_equal(layer, layer(z, product, drop), formula(layer, z, product, drop, outgoing), z)


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize(("masked", "dropped"), [(False, None), (True, "row")])
def test_the_form_for_compilers_equals_the_formula(outgoing, masked, dropped):
    layer, (z, product, drop) = update(outgoing), inputs(masked, dropped)
    w = Weights(*layer.norm(), *layer.proj(), *layer.out_norm(), *layer.out())
    plain = plain_update(z, w, product, drop, outgoing)
    assert_equal(layer, plain, formula(layer, z, product, drop, outgoing), z)


def test_keeps_z_and_one_product():
    layer, (z, *_) = update(True), inputs(False, None)
    kept, own = {}, {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own and x.numel() > 5 * PAIR**2:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        layer(z, None, None)
    assert sum(kept.values()) == 2 * z.untyped_storage().nbytes()


def test_bf16_follows_fp64():
    layer, (z, product, drop) = update(False), inputs(True, "row")
    exact = torch.autograd.grad(layer(z, product, drop).sum(), (z, *layer.parameters()))
    layer = layer.bfloat16()
    rounded = z.detach().bfloat16().requires_grad_()
    out = layer(rounded, product.float(), drop.bfloat16())
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip(torch.autograd.grad(out.sum(), (rounded, *layer.parameters())), exact, strict=True):
        assert F.cosine_similarity(ours.double().flatten(), theirs.flatten(), dim=0) > 0.98


def stand_in(x, direction, mask, eps, **w):
    """What cuEquivariance 0.13 documents: AlphaFold 2's update, the gate after the output projection."""
    inner = F.layer_norm(x, x.shape[-1:], w["norm_in_weight"], w["norm_in_bias"], eps)
    gate = F.linear(inner, w["g_in_weight"], w["g_in_bias"]).sigmoid()
    a, b = (F.linear(inner, w["p_in_weight"], w["p_in_bias"]) * gate * mask[..., None]).chunk(2, -1)
    o = torch.einsum({"outgoing": "bikd,bjkd->bijd", "incoming": "bkid,bkjd->bijd"}[direction], a, b)
    o = F.layer_norm(o, x.shape[-1:], w["norm_out_weight"], w["norm_out_bias"], eps)
    gate = F.linear(inner, w["g_out_weight"], w["g_out_bias"]).sigmoid()
    return F.linear(o, w["p_out_weight"], w["p_out_bias"]) * gate


@pytest.fixture
def kernels(monkeypatch):
    module = types.ModuleType("cuequivariance_torch")
    module.triangle_multiplicative_update = stand_in
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", module)


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize(("masked", "dropped"), [(False, None), (True, "row"), (True, "column")])
def test_the_kernels_of_cuequivariance_are_called_for_the_same_numbers(outgoing, masked, dropped, kernels):
    layer, (z, product, drop) = update(outgoing, kernel="cuequivariance"), inputs(masked, dropped)
    assert_equal(layer, layer(z, product, drop), formula(layer, z, product, drop, outgoing), z)


def test_a_model_with_the_kernels_predicts_and_learns_the_same(kernels):
    tokens, is_real = torch.randint(0, 4, (2, 11)), torch.arange(11)[None] < torch.tensor([11, 7])[:, None]
    outputs = []
    for kernel in ("own", "cuequivariance"):
        torch.manual_seed(0)
        model = RibonanzaNet(RibonanzaNetConfig.named("nano", triangle_kernel=kernel)).double()
        torch.manual_seed(5)
        out = model.train()(tokens, is_real)
        out.square().sum().backward()
        outputs.append([out, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs)


def lacks_its_operations(*arguments, **settings):
    raise ImportError("no cuequivariance_ops_torch")


@pytest.mark.parametrize("found", [None, types.SimpleNamespace(triangle_multiplicative_update=lacks_its_operations)])
def test_without_the_kernels_one_sentence_says_what_to_do(found, monkeypatch):
    """Neither where nothing is installed, nor where the operations for this CUDA are missing."""
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", found)
    model = RibonanzaNet(RibonanzaNetConfig.named("nano", triangle_kernel="cuequivariance"))
    with pytest.raises(ModelError, match=r"model\.triangle_kernel is cuequivariance.*rnafoundry\[kernels\].*own"):
        model(torch.randint(0, 4, (1, 5)))


@pytest.mark.parametrize("wrong", [{"pair": 24}, {"mask_mode": "signed"}])
def test_what_the_kernels_cannot_do_is_refused(wrong):
    with pytest.raises(ModelError, match="triangle_kernel cuequivariance wants"):
        RibonanzaNetConfig.named("nano", triangle_kernel="cuequivariance", **wrong)
