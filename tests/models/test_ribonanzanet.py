"""RibonanzaNet against a plain second implementation, and the behaviour that its specification asks for."""

import dataclasses

import pytest
import torch

from models import model_classes
from models.errors import ModelError
from models.layouts import ribonanzanet as layout
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from tests.models.reference_ribonanzanet import fill, reference_outputs

SMALL = RibonanzaNetConfig(layers=3, width=32, heads=4, ffn=128, pair=16, outer=8)
PUBLISHED = {"base": 11_296_898, "triangle": 11_674_754}  # spec 1.4
LENGTHS = (13, 9, 1)


def original_state(config):
    """Telling weights in the authors' layout; the second norm exists there even where the model has none."""
    double = dataclasses.replace(config, attention_residual="double")
    shapes = {name: list(x.shape) for name, x in layout.to_original(RibonanzaNet(double).state_dict(), double).items()}
    return fill(shapes)


def build(config=SMALL, **overrides):
    config = dataclasses.replace(config, **overrides)
    _, state = layout.from_original(original_state(config))
    model = RibonanzaNet(config).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def batch(lengths=LENGTHS, pad=4):
    """(tokens [B, L], is_real [B, L]) with an N inside, and padding of the letter ``pad``."""
    generator = torch.Generator().manual_seed(0)
    is_real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(0, 4, is_real.shape, generator=generator)
    tokens[0, 3] = 4
    return tokens.masked_fill(~is_real, pad), is_real


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(1.0, theirs[name].abs().max().item())
        assert (ours[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


def test_parameter_counts():
    with torch.device("meta"):
        plain = RibonanzaNet(RibonanzaNetConfig.named("base"))
        triangle = RibonanzaNet(RibonanzaNetConfig.named("base", triangle_attention=True))
    assert sum(p.numel() for p in plain.parameters()) == PUBLISHED["base"]
    assert sum(p.numel() for p in triangle.parameters()) == PUBLISHED["triangle"]
    parts = {  # spec 1.4
        "blocks.0": 1_275_808,
        "blocks.8": 1_013_664,
        "blocks.0.conv.": 327_936,
        "blocks.8.conv.": 65_792,
        "blocks.3.pair.triangle_in": 25_216,
        "blocks.3.pair.outer": 73_824,
        "blocks.3.pair.transition": 33_216,
        "blocks.3.attn.bias": 512 + 128,
        "outer": 73_824,
        "position": 1_152,
        "embed": 1_280,
        "head": 514,
    } | {f"blocks.{i}.": 1_275_808 for i in range(8)}
    named = {name: p.numel() for name, p in plain.named_parameters()}
    for prefix, count in parts.items():
        assert sum(n for name, n in named.items() if name.startswith(prefix)) == count, prefix
    together = {  # in any layer
        ("attn.qkv", "attn.out", "attn_norm"): 262_656,  # attention with its norm
        ("up", "down"): 525_568,  # feed-forward
        ("second_norm", "ffn_norm", "conv_norm"): 1_536,
        ("pair.triangle_out",): 25_216,
    }
    for parts_of_layer, count in together.items():
        prefixes = tuple(f"blocks.5.{part}." for part in parts_of_layer)
        assert sum(n for name, n in named.items() if name.startswith(prefixes)) == count, parts_of_layer
    with torch.device("meta"):
        single = RibonanzaNet(RibonanzaNetConfig.named("base", attention_residual="single"))
        special = RibonanzaNet(RibonanzaNetConfig.named("base", special_tokens=True))
    assert sum(p.numel() for p in single.parameters()) == PUBLISHED["base"] - 9 * 512  # without norm1
    assert sum(p.numel() for p in special.parameters()) == PUBLISHED["base"] + 2 * 256


@pytest.mark.parametrize("residual", ["double", "single"])
@pytest.mark.parametrize("triangle", [False, True])
def test_padded_batch_equals_the_reference_of_each_sequence_alone(residual, triangle):
    model = build(attention_residual=residual, triangle_attention=triangle).double()
    tokens, is_real = batch()
    output = model(tokens, is_real)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).double()
    (output * weight * is_real[..., None]).sum().backward()
    state = {name: x.double().requires_grad_() for name, x in original_state(model.config).items()}
    total = 0
    for row, length in enumerate(LENGTHS):
        expected = reference_outputs(state, model.config, tokens[row, :length])
        assert (output[row, :length] - expected).abs().max() <= 1e-9
        total = total + (expected * weight[row, :length]).sum()
    total.backward()
    theirs = {n: x.grad if x.grad is not None else torch.zeros_like(x) for n, x in state.items()}
    theirs["encoder.weight"][4] = 0  # N never learns
    config = dataclasses.replace(model.config, attention_residual="double")
    table = {row.ours: torch.cat([theirs[name] for name in row.original]) for row in layout.rows(config)}
    ours = gradients(model)
    assert_same(ours, {name: table[name] for name in ours}, 1e-9)


@pytest.mark.parametrize("overrides", [{}, {"triangle_attention": True}, {"attention_residual": "single"}])
def test_padding_changes_nothing(overrides):
    """Neither its amount nor its letters, for outputs and gradients alike."""
    model = build(**overrides)
    tokens, is_real = batch()
    weight = torch.randn(*tokens.shape, 2, generator=torch.Generator().manual_seed(3)) * is_real[..., None]
    results = []
    for more, letter in ((0, 4), (7, 4), (7, 2)):
        model.zero_grad()
        widened = torch.nn.functional.pad(tokens, (0, more)).masked_fill(
            ~torch.nn.functional.pad(is_real, (0, more)), letter
        )
        output = model(widened, torch.nn.functional.pad(is_real, (0, more)))[:, : tokens.shape[1]]
        (output * weight).sum().backward()
        results.append((output.detach()[is_real], gradients(model)))
    for output, grads in results[1:]:
        assert (output - results[0][0]).abs().max() <= 1e-5
        assert_same(grads, results[0][1], 1e-5)


def test_rows_do_not_influence_each_other():
    model, (tokens, is_real) = build(), batch()
    changed = tokens.clone()
    changed[1, :9] = 3 - changed[1, :9].clamp(max=3)
    moved = (model(tokens, is_real) - model(changed, is_real)).abs().amax((1, 2)) > 1e-6
    assert moved.tolist() == [False, True, False]


@pytest.mark.parametrize("axis", ["row", "column"])
def test_dropout_is_where_the_reference_has_it(axis, monkeypatch):
    """A deterministic stand-in for dropout at the same calls in the reference: same outputs only at same places."""
    calls = []

    def stand_in(x, p, training=True):
        if not training:
            return x
        calls.append(p)
        return x * (torch.arange(x.numel()).view(x.shape) % 7 != len(calls) % 7) / (1 - p)

    overrides = {"triangle_attention": True, "pair_dropout_in_axis": axis, "skip_last_pair_update": False}
    model = build(**overrides, dropout=0.2, attention_dropout=0.3).double().train()
    tokens, _ = batch()
    monkeypatch.setattr(torch.nn.functional, "dropout", stand_in)
    output = model(tokens[:1])
    assert calls == [0.3, *[0.2] * 8] * 3
    calls.clear()
    state = {name: x.double() for name, x in original_state(model.config).items()}
    assert (output - reference_outputs(state, model.config, tokens[0], stand_in)).abs().max() <= 1e-9


def test_default_dropout_rates():
    config = RibonanzaNetConfig.named("base")
    assert (config.dropout, config.attention_dropout) == (0.05, 0.1)
    tokens, is_real = batch()
    model = build().train()
    assert not torch.equal(model(tokens, is_real), model(tokens, is_real))
    off = build(dropout=0.0, attention_dropout=0.0)
    assert torch.equal(off.train()(tokens, is_real), off.eval()(tokens, is_real))


def test_skipping_the_last_pair_update_is_exact_and_its_gradients_are_zero():
    """Spec 1.4: 42 tensors of the authors' layout, 157,472 parameters at the published size."""
    tokens, is_real = batch()
    results = []
    for skip in (True, False):
        model = build(skip_last_pair_update=skip)
        output = model(tokens, is_real)
        output.square().sum().backward()
        results.append((output.detach(), gradients(model)))
        zero = {name for name, g in results[-1][1].items() if not g.any()}
        assert zero == {name for name in results[-1][1] if name.startswith("blocks.2.pair.")}
        original = layout.to_original({n: g.ne(0).float() for n, g in results[-1][1].items()}, model.config)
        assert sum(not g.any() for g in original.values()) == 42
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1], 0)
    with torch.device("meta"):
        pair = RibonanzaNet(RibonanzaNetConfig.named("base")).blocks[8].pair
    assert sum(p.numel() for p in pair.parameters()) == 157_472


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("kind", ["no targets", "no real position", "one position", "no sequences"])
def test_every_parameter_gets_a_finite_gradient_whatever_the_batch(kind, triangle, checkpointing):
    for mode in ("fixed", "none", "signed", *(() if triangle else ("zero_logit",))):
        for skip in (True, False):
            model = build(
                triangle_attention=triangle, mask_mode=mode, skip_last_pair_update=skip, checkpointing=checkpointing
            ).train()
            tokens, is_real = batch()
            if kind == "no real position":
                is_real = torch.zeros_like(is_real)
            elif kind == "one position":
                tokens, is_real = tokens[:1, :1], is_real[:1, :1]
            elif kind == "no sequences":
                tokens, is_real = tokens[:0], is_real[:0]
            output = model(tokens, is_real)
            weight = 1.0 if kind == "one position" else 0.0
            (output.float().abs() * weight).sum().backward()
            for name, p in model.named_parameters():
                assert p.grad is not None, name
                assert torch.isfinite(p.grad).all(), name
                assert weight or not p.grad.any(), name


@pytest.mark.parametrize("triangle", [False, True])
def test_checkpointing_changes_no_gradient(triangle):
    tokens, is_real = batch()
    results = []
    for on in (False, True):
        model = build(checkpointing=on, triangle_attention=triangle).train()
        torch.manual_seed(7)
        model(tokens, is_real).square().sum().backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("how", ["autocast", "module"])
@pytest.mark.parametrize("triangle", [False, True])
def test_bfloat16(how, triangle):
    model, (tokens, is_real) = build(triangle_attention=triangle), batch()
    expected = model(tokens, is_real)
    if how == "module":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output = model(tokens, is_real)
        _, z = model.states(tokens, is_real)
    assert output.dtype == z.dtype == torch.bfloat16  # the pair stream stays half as wide
    assert (output.float() - expected)[is_real].abs().mean() <= 0.06 * expected[is_real].abs().mean()
    output.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_initialisation():
    model = RibonanzaNet(RibonanzaNetConfig.named("nano", triangle_attention=True))
    assert not model.embed.weight[4].any()
    assert model.embed.weight[:4].std().item() == pytest.approx(1, abs=0.1)
    for name, module in model.named_modules():
        if name.endswith("proj"):
            assert not module.weight[64:].any(), name
            assert (module.bias[64:] == 1).all(), name
            assert 0.9 * 32**-0.5 < module.weight[:64].abs().max() <= 32**-0.5, name
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
            expected = 1e-6 if name.endswith("attn_norm") else 1e-5
            assert module.eps == expected, name
        elif isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound, name


def test_initialisation_works_from_meta_and_by_generator():
    with torch.device("meta"):
        late = RibonanzaNet(SMALL)
    late.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    model = RibonanzaNet(SMALL)
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert all(torch.equal(x, late.state_dict()[name]) for name, x in model.state_dict().items())


def test_configuration_errors_are_sentences():
    for overrides, words in (
        ({"width": 257}, "width 257 must be a multiple of the 8 heads"),
        ({"layers": 0}, "layers"),
        ({"kernel_size": 4}, "odd"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"mask_mode": "bool"}, "fixed, none, signed or zero_logit"),
        ({"attention_residual": "triple"}, "double or single"),
        ({"reach": -1}, "reach"),
        ({"mask_mode": "zero_logit", "triangle_attention": True}, "zero_logit with triangle_attention"),
    ):
        with pytest.raises(ModelError, match=words):
            RibonanzaNetConfig.named("base", **overrides)
    with pytest.raises(ModelError, match="base, nano"):
        RibonanzaNetConfig.named("giga")


def test_registry():
    assert model_classes("ribonanzanet") == (RibonanzaNetConfig, RibonanzaNet)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiles_for_a_shape(backend):
    """One graph for a padded batch, forward and backward as in eager mode."""
    model = build(dataclasses.replace(SMALL, layers=2))
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)
    tokens, is_real = batch()
    results = []
    for run in (model, compiled):
        model.zero_grad()
        output = run(tokens, is_real)
        output.square().sum().backward()
        results.append((output.detach(), gradients(model)))
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
    assert_same(results[1][1], results[0][1], 1e-4)
