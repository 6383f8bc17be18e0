"""RiNALMo against a plain second implementation, and the behaviour that specs/rinalmo 11 lists."""

import pytest
import torch

from models import MODELS, model_classes, rinalmo
from models.errors import ModelError
from models.layers import swish_gate
from models.layers.rotary import rotary_angles
from models.rinalmo import Block, RiNALMo, RiNALMoConfig, add_padding, strip_padding
from tests.models.reference_rinalmo import reference_logits

# specs/rinalmo 11.1, first column
ORIGINAL_PARAMETERS = {"giga": 650_901_793, "mega": 148_056_972, "micro": 33_491_074, "nano": 7_508_824}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, tolerance):
    """Every tensor within ``tolerance`` of the largest entry of its counterpart."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(1.0, theirs[name].abs().max().item())
        assert (ours[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("size", ORIGINAL_PARAMETERS)
def test_parameter_counts(size):
    with torch.device("meta"):
        model = RiNALMo(RiNALMoConfig.named(size))
    assert sum(p.numel() for p in model.parameters()) == ORIGINAL_PARAMETERS[size]


@pytest.mark.parametrize("normalised", [True, False])
def test_outputs_and_gradients_equal_the_reference(small, sequences, pack, normalised):
    model = small(normalised_residual=normalised).double()
    tokens, cu, positions, longest = pack(sequences)
    logits = model(tokens, cu, positions, longest)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
    (logits * weight).sum().backward()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = torch.cat([reference_logits(state, model.config, s, normalised_residual=normalised) for s in sequences])
    (expected * weight).sum().backward()
    # rotary angles are fp32 in the model and fp64 in the reference
    assert (logits - expected).abs().max() <= 2e-5
    theirs = {name: p.grad for name, p in state.items()}
    theirs["embed.weight"][1] = 0  # the padding row never learns
    assert_same(gradients(model), theirs, 2e-5)


def test_dropout_is_where_the_authors_have_it(small, sequences, pack, monkeypatch):
    """A deterministic stand-in for dropout, at the same calls in the reference: same outputs only at same places."""
    calls = []

    def stand_in(x, p, training=True):
        calls.append(p)
        keep = torch.arange(x.numel()).view(x.shape) % 7 != len(calls) % 7
        return x * keep / (1 - p)

    seen = []

    def no_attention_dropout(q, k, v, cu, longest, *, dropout, kernel):
        seen.append(dropout)
        return real(q, k, v, cu, longest, kernel=kernel)

    real = rinalmo.attention
    monkeypatch.setattr(torch.nn.functional, "dropout", stand_in)
    monkeypatch.setattr(rinalmo, "attention", no_attention_dropout)
    model = small(transition_dropout=0.05).train()
    logits = model(*pack([sequences[2]]))
    assert calls == [0.1, 0.05, 0.1] * 3
    assert seen == [0.1] * 3
    calls.clear()
    expected = reference_logits(dict(model.named_parameters()), model.config, sequences[2], dropout=stand_in)
    assert (logits - expected).abs().max() <= 2e-5
    seen.clear()
    calls.clear()
    model.eval()(*pack([sequences[2]]))
    assert seen == [0.0] * 3


def test_default_dropout_rates(small, sequences, pack):
    config = RiNALMoConfig.named("giga")
    assert (config.attention_dropout, config.residual_dropout, config.transition_dropout) == (0.1, 0.1, 0.0)
    model, batch = small().train(), pack(sequences)
    assert not torch.equal(model(*batch), model(*batch))
    off = small(attention_dropout=0.0, residual_dropout=0.0)
    assert torch.equal(off.train()(*batch), off.eval()(*batch))


def test_packed_sequences_do_not_influence_each_other(small, sequences, pack):
    model = small()
    packed = model(*pack(sequences))
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(3))
    (packed * weight).sum().backward()
    together = gradients(model)
    model.zero_grad()
    alone, start = [], 0
    for s in sequences:
        logits = model(*pack([s]))
        (logits * weight[start : start + len(s)]).sum().backward()
        alone.append(logits)
        start += len(s)
    assert (packed - torch.cat(alone)).abs().max() <= 2e-5
    assert_same(together, gradients(model), 2e-5)
    changed = [sequences[0], sequences[1].flip(0), *sequences[2:]]
    moved = (model(*pack(changed)) - packed).abs().amax(-1) > 1e-6
    assert moved[2:11].all()  # the second sequence
    assert not moved[:2].any()
    assert not moved[11:].any()


def test_head_runs_on_targets_only(small, sequences, pack):
    model, batch = small(), pack(sequences)
    index = torch.tensor([5, 3, 40])
    torch.testing.assert_close(model(*batch, index), model(*batch)[index], atol=1e-5, rtol=0)
    assert model.hidden(*batch).shape == (len(batch[0]), 80)


def test_empty_micro_batch_gives_zero_gradients_everywhere(small, pack):
    model = small().train()
    logits = model(*pack([torch.tensor([0, 2])]), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 22)
    logits.float().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.count_nonzero(p.grad) == 0, name


def test_token_dropout_factors(small, pack):
    model = small()
    plain = torch.tensor([0, 5, 6, 7, 2])
    masked = torch.tensor([0, 4, 6, 7, 8, 4, 5, 6, 7, 2])
    wholly = torch.tensor([4, 4])
    tokens, cu, _, _ = pack([plain, masked, wholly])
    factor = model._token_dropout(tokens, cu)[:, 0]
    torch.testing.assert_close(factor[:5], torch.full((5,), 0.88))
    expected = torch.full((10,), 1.1)
    expected[[1, 5]] = 0
    torch.testing.assert_close(factor[5:15], expected)
    assert torch.equal(factor[15:], torch.zeros(2))
    assert torch.isfinite(model(*pack([plain, masked, wholly]))).all()


def test_block_ignores_the_scale_of_its_input(pack):
    torch.manual_seed(0)
    block = Block(RiNALMoConfig(layers=1, width=320, heads=20, ffn=853)).eval()
    with torch.no_grad():
        for name, p in block.named_parameters():
            if p.dim() > 1:
                p.uniform_(-(p.shape[1] ** -0.5), p.shape[1] ** -0.5)
            else:
                p.fill_(1 if name.endswith(("norm.weight", "beta")) else 0)
    cu, longest = pack([torch.zeros(50, dtype=torch.long)])[1::2]
    x = torch.randn(50, 320)
    angles = rotary_angles(torch.arange(50), 16)
    with torch.no_grad():
        difference = (block(x, *angles, cu, longest) - block(5 * x, *angles, cu, longest)).abs().max().item()
    assert 0 < difference <= 3e-5  # the layer norm's eps on the largest entry, about 4.2 · 1e-5 / 2 = 2.1e-5


@pytest.mark.parametrize("init", ["torch", "normal"])
def test_initialisation(init):
    torch.manual_seed(0)
    state = RiNALMo(RiNALMoConfig.named("nano", layers=1, init=init)).state_dict()
    assert state["embed.weight"][2:].std().item() == pytest.approx(1.0 if init == "torch" else 0.02, rel=0.03)
    assert torch.count_nonzero(state["embed.weight"][1]) == 0
    for name, x in state.items():
        if name.endswith("beta") or name.endswith("norm.weight"):
            assert torch.all(x == 1), name
        elif name.endswith("norm.bias"):
            assert torch.all(x == 0), name
        elif name.startswith(("blocks", "head")) and init == "torch":
            bound = (853 if "down" in name else 320) ** -0.5
            assert 0.8 * bound < x.abs().max() <= bound, name
        elif name.endswith("bias"):
            assert torch.all(x == 0), name
        elif name != "embed.weight":
            assert x.std().item() == pytest.approx(0.02, rel=0.05), name


def test_initialisation_does_not_depend_on_padding_and_works_from_meta():
    config = RiNALMoConfig(layers=2, width=64, heads=4, ffn=50)
    padded = RiNALMoConfig(layers=2, width=64, heads=4, ffn=50, ffn_pad_to=64)  # padded to the width itself
    with torch.device("meta"):
        late = RiNALMo(padded)
    late.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    model = RiNALMo(config)
    model.reset_parameters(torch.Generator().manual_seed(5))
    expected = add_padding(model.state_dict(), padded)
    assert all(torch.equal(x, expected[name]) for name, x in late.state_dict().items())


def train(model, batch, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(*batch), batch[0]).backward()
        optimizer.step()
    return model.state_dict()


def test_padded_ffn_trains_like_the_unpadded(sequences, pack):
    # fp64, because AdamW turns the sign of a rounding error into a full step where a gradient is nearly zero
    sizes = {"layers": 2, "width": 32, "heads": 4, "ffn": 53, "attention_dropout": 0.0, "residual_dropout": 0.0}
    plain, padded = RiNALMoConfig(**sizes), RiNALMoConfig(**sizes, ffn_pad_to=64)
    states = []
    for config in (plain, padded):
        model = RiNALMo(config).double()
        model.reset_parameters(torch.Generator().manual_seed(0))
        states.append(train(model, pack(sequences), 50))
    pads = [x.narrow(d, 53, 11) for n, x in states[1].items() if (d := swish_gate.inner_dim(n)) is not None]
    assert len(pads) == 10
    assert all(torch.count_nonzero(pad) == 0 for pad in pads)
    stripped = strip_padding(states[1], padded)
    assert max((stripped[n] - x).abs().max().item() for n, x in states[0].items()) <= 1e-6


def test_padding_round_trip_and_refusals(small):
    state = small().state_dict()
    config = RiNALMoConfig(layers=3, width=80, heads=4, ffn=213, ffn_pad_to=64)
    padded = add_padding(state, config)
    assert padded["blocks.0.ffn.down.weight"].shape == (80, 256)
    back = strip_padding(padded, config)
    assert all(torch.equal(back[name], state[name]) for name in state)
    padded["blocks.1.ffn.plain.bias"][-1] = 0.1
    with pytest.raises(ModelError, match=r"blocks\.1\.ffn\.plain\.bias .*not zero"):
        strip_padding(padded, config)
    with pytest.raises(ModelError, match="213 feed-forward units"):
        strip_padding(state, config)


def test_checkpointing_changes_no_gradient(small, sequences, pack):
    results = []
    for on in (False, True):
        model = small(checkpointing=on).train()
        torch.manual_seed(7)
        model(*pack(sequences)).square().sum().backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("how", ["autocast", "module"])
def test_bfloat16(small, sequences, pack, how):
    model, batch = small(), pack(sequences)
    expected = model.hidden(*batch)
    if how == "module":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        r, logits = model.hidden(*batch), model(*batch)
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(r.float(), expected).min() > 0.95
    logits.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_configuration_errors_are_sentences():
    for overrides, words in (
        ({"width": 81}, "width 81"),
        ({"layers": 0}, "layers"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"init": "xavier"}, "xavier"),
        ({"kernel": "fast"}, "fast"),
        ({"vocab": 4}, "vocab 4"),
    ):
        with pytest.raises(ModelError, match=words):
            RiNALMoConfig.named("nano", **overrides)
    with pytest.raises(ModelError, match="giga, mega, micro, nano"):
        RiNALMoConfig.named("tera")


def test_registry():
    assert MODELS["rinalmo"] == model_classes("rinalmo") == (RiNALMoConfig, RiNALMo)
    assert "rinalmo" in list(MODELS)
    with pytest.raises(ModelError, match="there is no model 'bert'"):
        model_classes("bert")


@pytest.mark.slow
def test_compiles_for_any_length(small, sequences, pack):
    """One compiled function, three packings, forward and backward as in eager mode."""
    model = small()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    for rows in (sequences, sequences[1:3], [*sequences, sequences[2]]):
        batch = pack(rows)
        index = torch.arange(1, len(batch[0]), 4)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            logits = run(*batch, index)
            logits.square().sum().backward()
            results.append((logits.detach(), gradients(model)))
        assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
        assert_same(results[1][1], results[0][1], 1e-4)
