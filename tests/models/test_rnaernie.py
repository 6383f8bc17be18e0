"""RNAErnie against a plain padded implementation, and the behaviour that its specification lists."""

import pytest
import torch

from models import MODELS, rnaernie
from models.errors import ModelError
from models.rnaernie import RNAErnie, RNAErnieConfig, activation_bytes, count_parameters, flops
from tests.models.reference_rnaernie import reference_logits
from tests.models.rnaernie_models import rows, small

# RNAErnie specification 12: vocabulary -> masked-language model, with the pooler
PARAMETERS = {28: (86_065_180, 86_655_772), 39: (86_073_639, 86_664_231), 57: (86_087_481, 86_678_073)}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, tolerance):
    """Every tensor within ``tolerance`` of the largest entry of its counterpart."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(1.0, theirs[name].abs().max().item())
        assert (ours[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("vocab", PARAMETERS)
@pytest.mark.parametrize("pooler", [False, True])
def test_parameter_counts(vocab, pooler):
    config = RNAErnieConfig.named("base", vocab=vocab, pooler=pooler)
    with torch.device("meta"):
        model = RNAErnie(config)
    expected = PARAMETERS[vocab][pooler]
    assert sum(p.numel() for p in model.parameters()) == expected
    assert count_parameters(config) == expected


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = RNAErnie(RNAErnieConfig.named("base", vocab=28, pooler=True))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts["blocks"] == 12 * 7_087_872
    assert parts["embed"] + parts["positions"] + parts["token_type"] + parts["embed_norm"] == 418_560
    assert (parts["head"], parts["pooler"]) == (592_156, 590_592)
    assert sum(parts.values()) - parts["head"] == 86_063_616
    assert count_parameters(RNAErnieConfig.named("nano")) == sum(
        p.numel() for p in RNAErnie(RNAErnieConfig.named("nano")).parameters()
    )


def test_outputs_and_gradients_equal_the_reference(pack):
    model = small(pooler=True).double()
    batch = pack(rows())
    logits, hidden = model(*batch), model.hidden(*batch)
    pooled = model.pooled(hidden, batch[1])
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
    ((logits * weight).sum() + pooled.sum()).backward()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected, representation, theirs_pooled = reference_logits(state, model.config, rows())
    ((expected * weight).sum() + theirs_pooled.sum()).backward()
    assert (logits - expected).abs().max() <= 1e-9
    assert (hidden - representation).abs().max() <= 1e-9
    assert (pooled - theirs_pooled).abs().max() <= 1e-9
    assert_same(gradients(model), {name: p.grad for name, p in state.items()}, 1e-9)
    assert model.token_type.weight.grad[0].abs().min() > 0
    assert torch.count_nonzero(model.token_type.weight.grad[1]) == 0


def test_dropout_is_where_the_original_has_it(pack, monkeypatch):
    """A deterministic stand-in for dropout, at the same calls in the reference: same outputs only at same places."""
    calls, seen = [], []

    def stand_in(x, p, training=True):
        calls.append(p)
        keep = torch.arange(x.numel()).view(x.shape) % 7 != len(calls) % 7
        return x * keep / (1 - p)

    def no_attention_dropout(q, k, v, cu, longest, *, dropout, kernel):
        seen.append(dropout)
        return real(q, k, v, cu, longest, kernel=kernel)

    real = rnaernie.attention
    monkeypatch.setattr(torch.nn.functional, "dropout", stand_in)
    monkeypatch.setattr(rnaernie, "attention", no_attention_dropout)
    model = small().train()
    logits = model(*pack([rows()[2]]))
    assert calls == [0.1] * 7  # the embedding, and both branches of three blocks
    assert seen == [0.1] * 3
    calls.clear()
    expected = reference_logits(dict(model.named_parameters()), model.config, [rows()[2]], dropout=stand_in)[0]
    assert (logits - expected).abs().max() <= 2e-5
    seen.clear()
    calls.clear()
    monkeypatch.undo()
    monkeypatch.setattr(rnaernie, "attention", no_attention_dropout)
    first = model.eval()(*pack([rows()[2]]))
    assert torch.equal(first, model(*pack([rows()[2]])))
    assert seen == [0.0] * 6


def test_packed_sequences_do_not_influence_each_other(pack):
    model, sequences = small(), rows()
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


def test_head_runs_on_targets_only(pack):
    model, batch = small(), pack(rows())
    index = torch.tensor([5, 3, 40])
    torch.testing.assert_close(model(*batch, index), model(*batch)[index], atol=1e-5, rtol=0)
    assert model.hidden(*batch).shape == (len(batch[0]), 48)


def test_empty_micro_batch_gives_zero_gradients_everywhere(pack):
    model = small().train()
    logits = model(*pack([torch.tensor([1, 2])]), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 57)
    logits.float().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.count_nonzero(p.grad) == 0, name


def test_pooler_stays_out_of_the_training_graph(pack):
    model = small(pooler=True)
    model(*pack(rows())).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"pooler.weight", "pooler.bias"}
    with pytest.raises(ModelError, match="no pooler"):
        small().pooled(torch.zeros(2, 48), torch.tensor([0, 2], dtype=torch.int32))


def test_sequences_longer_than_the_position_table_are_refused(pack):
    assert RNAErnieConfig.named("base").max_tokens == 512
    model = small()
    fits = torch.full((512,), 6)
    assert model(*pack([fits])).shape == (512, 57)
    with pytest.raises(ModelError, match=r"513 tokens does not fit .* 512 tokens"):
        model(*pack([torch.full((513,), 6)]))


def test_initialisation():
    torch.manual_seed(0)
    state = RNAErnie(RNAErnieConfig.named("nano", layers=1, pooler=True)).state_dict()
    for name, x in state.items():
        if name.endswith("norm.weight"):
            assert torch.all(x == 1), name
        elif name.endswith("bias"):
            assert torch.all(x == 0), name
        else:
            assert x.std().item() == pytest.approx(0.02, rel=0.1), name
    assert state["embed.weight"][0].std().item() == pytest.approx(0.02, rel=0.2)  # the padding row is not zeroed


def test_initialisation_from_meta_equals_that_of_a_model_built_at_once():
    config = RNAErnieConfig.named("nano", layers=1)
    with torch.device("meta"):
        late = RNAErnie(config)
    late.to_empty(device="cpu").reset_parameters(torch.Generator().manual_seed(5))
    model = RNAErnie(config)
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in late.state_dict().items())
    assert "head.out.weight" not in model.state_dict()  # the decoder is the embedding


def test_checkpointing_changes_no_gradient(pack):
    results = []
    for on in (False, True):
        model = small(checkpointing=on).train()
        torch.manual_seed(7)
        model(*pack(rows())).square().sum().backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("how", ["autocast", "module"])
def test_bfloat16(pack, how):
    model, batch = small(), pack(rows())
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
        ({"width": 130}, "width 130"),
        ({"layers": 0}, "layers"),
        ({"max_positions": 1}, "max_positions"),
        ({"residual_dropout": 1.0}, "residual_dropout"),
        ({"kernel": "fast"}, "fast"),
        ({"vocab": 4}, "vocab 4"),
    ):
        with pytest.raises(ModelError, match=words):
            RNAErnieConfig.named("nano", **overrides)
    with pytest.raises(ModelError, match="base, nano"):
        RNAErnieConfig.named("large")
    assert MODELS["rnaernie"] == (RNAErnieConfig, RNAErnie)
    assert RNAErnieConfig.named("base").head_dim == 64


def test_flops_of_the_specification():
    """Spec 10: 12 · 7,077,888 · T + 24 · 768 · T² multiply-adds forward, 11.17 G at 128 tokens and 48.32 G at 512."""
    config = RNAErnieConfig.named("base")
    for tokens, expected in ((128, 11.17e9), (512, 48.32e9)):
        assert flops(config, [tokens], targets=0) == pytest.approx(6 * expected, rel=2e-3)
    assert flops(config, [512, 512]) == 2 * flops(config, [512])
    saved = flops(config, [512]) - flops(config, [512], targets=77)
    assert saved == 6 * (768**2 + 3 * 768 + 57 * 769) * (512 - 77)


@pytest.mark.parametrize("how", ["plain", "dropout", "bf16 module", "autocast", "padded"])
def test_activation_bytes_is_what_autograd_keeps(pack, how):
    """The estimate against the storages that the backward pass holds, parameters aside: within 10 %."""
    residual = 0.1 if how == "dropout" else 0.0
    config = RNAErnieConfig.named("nano", attention_dropout=0.0, residual_dropout=residual)
    model = RNAErnie(config).train()
    if how == "bf16 module":
        model.bfloat16()
    lengths = [100, 91, 99, 95] if how == "padded" else [100] * 4
    batch = pack([torch.randint(6, 10, (n,)) for n in lengths])
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

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with torch.autocast("cpu", enabled=how == "autocast"):
            logits = model(*batch, index)
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
    config = RNAErnieConfig.named("base")
    less = activation_bytes(RNAErnieConfig.named("base", checkpointing=True), 65536, 9830)
    assert 12 * 65536 * 768 * 2 < less < activation_bytes(config, 65536, 9830) / 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiles_for_any_length(pack, backend):
    """One compiled function, three packings, forward and backward as in eager mode."""
    model, sequences = small(), rows()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    for batch_rows in (sequences, sequences[1:3], [*sequences, sequences[2]]):
        batch = pack(batch_rows)
        expected = model(*batch)
        found = compiled(*batch)
        assert (found - expected).abs().max() <= 2e-5
