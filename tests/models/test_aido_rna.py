"""AIDO.RNA against a plain second implementation, and the behaviour that specs/aido_rna 1 and 11 list."""

import pytest
import torch

from models import MODELS, aido_rna, model_classes
from models.aido_rna import AidoRNA, AidoRNAConfig, swiglu_width
from models.errors import ModelError
from tests.models.reference_aido_rna import reference
from tests.models.small_aido_rna import LIKE_1M, build, padded, rows

# specs/aido_rna 11.1: tied masked language model and encoder with 16 tokens, the former with 26
COUNTS = {
    "1b6": (1_611_593_744, 1_607_393_280, 1_611_614_234),
    "650m": (648_372_368, 646_730_112, 648_385_178),
    "25m": (25_234_960, 24_971_264, 25_240_090),
    "1m": (1_150_864, 1_134_208, 1_152_154),
}
KINDS = [{}, LIKE_1M]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, tolerance):
    """Every tensor within ``tolerance`` of the largest entry of its counterpart."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(1.0, theirs[name].abs().max().item())
        assert (ours[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    counted = []
    for vocab in (16, 26):
        with torch.device("meta"):
            model = AidoRNA(AidoRNAConfig.named(size, vocab=vocab))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert sizes.keys() == model.state_dict().keys()
        encoder = sum(n for name, n in sizes.items() if not name.startswith("head."))
        counted += [sum(sizes.values()), encoder]
    assert (counted[0], counted[1], counted[2]) == COUNTS[size]


def test_inner_width_is_megatrons_rule():
    assert [swiglu_width(width) for width in (2048, 1280, 512, 128)] == [5440, 3392, 1344, 320]
    assert all(c.ffn == swiglu_width(c.width) for c in map(AidoRNAConfig.named, COUNTS))


def test_biases_of_the_size_1m():
    """RMSNorm and no biases, except that the head's dense layer always has one (spec 1.2)."""
    with torch.device("meta"):
        model = AidoRNA(AidoRNAConfig.named("1m"))
    assert {name for name in model.state_dict() if name.endswith("bias")} == {"head.dense.bias", "head.out.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_equal_the_reference(pack, kind):
    model, found = build(**kind).double(), rows()
    batch = pack(found)
    logits = model(*batch)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
    (logits * weight).sum().backward()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    ids = padded(found)
    expected, hidden = (x[ids != 0] for x in reference(state, model.config, ids))
    (expected * weight).sum().backward()
    # rotary angles, and the statistics of RMSNorm, are fp32 in the model and fp64 in the reference
    assert (logits - expected).abs().max() <= 2e-5
    assert (model.hidden(*batch) - hidden).abs().max() <= 1e-5
    assert_same(gradients(model), {name: p.grad for name, p in state.items()}, 2e-5)


def test_dropout_is_where_the_authors_have_it(pack, monkeypatch):
    """A deterministic stand-in for dropout, at the same calls in the reference: same outputs only at same places."""
    calls, seen, real = [], [], aido_rna.attention

    def stand_in(x, p, training=True):
        calls.append(p)
        keep = torch.arange(x.numel()).view(x.shape) % 7 != len(calls) % 7
        return x * keep / (1 - p)

    def no_attention_dropout(q, k, v, cu, longest, *, dropout, kernel):
        seen.append(dropout)
        return real(q, k, v, cu, longest, kernel=kernel)

    monkeypatch.setattr(torch.nn.functional, "dropout", stand_in)
    monkeypatch.setattr(aido_rna, "attention", no_attention_dropout)
    model, row = build(attention_dropout=0.05, residual_dropout=0.1).train(), rows()[2]
    logits = model(*pack([row]))
    assert calls == [0.1] * 7
    assert seen == [0.05] * 3
    calls.clear()
    expected, _ = reference(dict(model.named_parameters()), model.config, row[None], dropout=stand_in)
    assert (logits - expected[0]).abs().max() <= 2e-5


def test_dropout_is_off_as_released(pack):
    config = AidoRNAConfig.named("650m")
    assert (config.attention_dropout, config.residual_dropout) == (0.0, 0.0)
    model, batch = build(attention_dropout=0.1, residual_dropout=0.1).train(), pack(rows())
    assert not torch.equal(model(*batch), model(*batch))
    assert torch.equal(model.eval()(*batch), build()(*batch))
    assert torch.equal(build().train()(*batch), build()(*batch))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_do_not_influence_each_other(pack, kind):
    model, found = build(**kind), rows()
    packed = model(*pack(found))
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(3))
    (packed * weight).sum().backward()
    together = gradients(model)
    model.zero_grad()
    alone, start = [], 0
    for row in found:
        logits = model(*pack([row]))
        (logits * weight[start : start + len(row)]).sum().backward()
        alone.append(logits)
        start += len(row)
    assert (packed - torch.cat(alone)).abs().max() <= 2e-5
    assert_same(together, gradients(model), 2e-5)
    moved = (model(*pack([found[0], found[1].flip(0), *found[2:]])) - packed).abs().amax(-1) > 1e-6
    assert moved[2:11].all()  # the second sequence
    assert not moved[:2].any()
    assert not moved[11:].any()


def test_decoder_and_embedding_are_one_tensor(pack):
    model, batch = build(), pack(rows())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert [name for name in names if model.get_parameter(name).shape == (16, 48)] == ["embed.weight"]
    logits, hidden = model(*batch), model.hidden(*batch)
    with torch.no_grad():
        head = model.head.norm(torch.nn.functional.gelu(model.head.dense(hidden)))
        model.embed.weight[13] += 1  # a token that no row holds: only its logit can move
    moved = model(*batch) - logits
    torch.testing.assert_close(moved[:, 13], head.sum(-1), atol=1e-4, rtol=0)
    assert torch.count_nonzero(moved[:, [*range(13), 14, 15]]) == 0


def test_head_runs_on_targets_only(pack):
    model, batch = build(), pack(rows())
    index = torch.tensor([5, 3, 40])
    torch.testing.assert_close(model(*batch, index), model(*batch)[index], atol=1e-5, rtol=0)
    assert model.hidden(*batch).shape == (len(batch[0]), 48)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_micro_batch_gives_zero_gradients_everywhere(pack, kind):
    model = build(**kind).train()
    logits = model(*pack([torch.tensor([2, 3])]), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 16)
    logits.float().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.count_nonzero(p.grad) == 0, name


@pytest.mark.parametrize("init", ["scaled", "normal"])
def test_initialisation(init):
    torch.manual_seed(0)
    state = AidoRNA(AidoRNAConfig.named("25m", layers=2, init=init)).state_dict()
    assert torch.count_nonzero(state["embed.weight"][0]) == 0
    for name, x in state.items():
        if name.endswith("bias"):
            assert torch.all(x == 0), name
        elif "norm" in name:
            assert torch.all(x == 1), name
        else:
            ends_branch = "attn.out" in name or "ffn.down" in name
            expected = 0.02 / 2 if ends_branch and init == "scaled" else 0.02  # sqrt(2 · 2 blocks) = 2
            values = x[1:] if name == "embed.weight" else x
            assert values.std().item() == pytest.approx(expected, rel=0.03), name


def test_initialisation_works_from_meta_and_follows_the_generator():
    config = AidoRNAConfig(layers=2, width=64, heads=4, ffn=50)
    with torch.device("meta"):
        late = AidoRNA(config)
    late.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    model = AidoRNA(config)
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert all(torch.equal(x, late.state_dict()[name]) for name, x in model.state_dict().items())
    model.reset_parameters(torch.Generator().manual_seed(6))
    assert not torch.equal(model.embed.weight, late.embed.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(pack, kind):
    results = []
    for on in (False, True):
        model = build(checkpointing=on, residual_dropout=0.1, **kind).train()
        torch.manual_seed(7)
        model(*pack(rows())).square().sum().backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["autocast", "module"])
def test_bfloat16(pack, how, kind):
    model, batch = build(**kind), pack(rows())
    expected = model.hidden(*batch)
    if how == "module":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        r, logits = model.hidden(*batch), model(*batch)
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(r.float(), expected).min() > 0.95
    logits.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_rms_norm_casts_before_the_weight():
    """In half precision the normalised vector is rounded first and multiplied then, as the authors do (spec 1.2)."""
    norm = aido_rna.RMSNorm(64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    x = torch.randn(32, 64, generator=generator).bfloat16()
    wide = x.double()
    normalised = (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).bfloat16()
    assert torch.equal(norm.bfloat16()(x), norm.weight * normalised)


def test_configuration_errors_are_sentences():
    for overrides, words in (
        ({"width": 81}, "width 81"),
        ({"layers": 0}, "layers"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"init": "xavier"}, "xavier"),
        ({"norm": "batch"}, "layer or rms, not 'batch'"),
        ({"kernel": "fast"}, "fast"),
        ({"vocab": 4}, "vocab 4"),
    ):
        with pytest.raises(ModelError, match=words):
            AidoRNAConfig.named("1m", **overrides)
    with pytest.raises(ModelError, match="'300m'; choose one of 1m, 25m, 650m, 1b6"):
        AidoRNAConfig.named("300m")


def test_registry():
    assert MODELS["aido_rna"] == model_classes("aido_rna") == (AidoRNAConfig, AidoRNA)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiles_for_any_length(pack, kind, backend):
    """One compiled function, three packings, forward and backward as in eager mode."""
    model, found = build(**kind), rows()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    for some in (found, found[1:3], [*found, found[2]]):
        batch = pack(some)
        index = torch.arange(1, len(batch[0]), 4)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            logits = run(*batch, index)
            logits.square().sum().backward()
            results.append((logits.detach(), gradients(model)))
        assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
        assert_same(results[1][1], results[0][1], 1e-4)
