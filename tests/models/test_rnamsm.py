"""RNA-MSM against a plain second implementation, and the behaviour that the RNA-MSM specification 9 and 12 lists."""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import rnamsm
from models.errors import ModelError
from models.rnamsm import ANSWERS, NEVER, RNAMSM, RNAMSMConfig
from tests.models.conftest import telling_weights
from tests.models.reference_rnamsm import reference

SMALL = {"layers": 3, "width": 48, "heads": 4, "ffn": 96}


@pytest.fixture
def small():
    """Builds RNA-MSM of 3 layers, width 48, 4 heads in fp64; keyword arguments override the configuration."""

    def build(**overrides):
        return telling_weights(RNAMSM(RNAMSMConfig(**SMALL | overrides))).double().eval()

    return build


def alignment(rows=7, columns=20, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([*ANSWERS, 4])[torch.randint(7, (batch, rows, columns), generator=generator)]
    tokens[:, :, 0] = 1
    return tokens


def padded(alignments, fill=0):
    """(tokens [B, R, L], is_real) of alignments [R, L] of different sizes."""
    rows, columns = (max(a.shape[i] for a in alignments) for i in (0, 1))
    tokens = torch.full((len(alignments), rows, columns), fill)
    is_real = torch.zeros(tokens.shape, dtype=torch.bool)
    for b, a in enumerate(alignments):
        tokens[b, : a.shape[0], : a.shape[1]] = a
        is_real[b, : a.shape[0], : a.shape[1]] = True
    return tokens, is_real


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = max(1.0, theirs[name].abs().max().item())
        assert (ours[name] - theirs[name]).abs().max().item() <= tolerance * scale, name


def test_parameter_counts():
    """Spec 12: MultiMolecule's RnaMsmForMaskedLM; a layer; attention; feed-forward."""
    with torch.device("meta"):
        model = RNAMSM(RNAMSMConfig.named("base"))
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.blocks[0].named_children()}
    assert sum(p.numel() for p in model.parameters()) == 95_923_484
    assert sum(count.values()) == 9_451_776
    assert [count[x] - 1536 for x in ("row", "column", "ffn")] == [2_362_368, 2_362_368, 4_722_432]


@pytest.mark.parametrize("rows", [1, 7])
def test_outputs_maps_and_gradients_equal_the_reference(small, rows):
    model, tokens = small(), alignment(rows)
    out = model(tokens, everything=True)
    weight = torch.randn(out.logits.shape, generator=torch.Generator().manual_seed(3)).double()
    ((out.logits * weight).sum() + out.maps.square().sum()).backward()
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, maps, representation = reference(state, model.config, tokens[0])
    ((logits * weight[0]).sum() + maps.square().sum()).backward()
    assert (out.logits[0] - logits).abs().max() <= 1e-10
    assert (out.maps[0] - maps).abs().max() <= 1e-12
    assert (out.representation[0] - representation).abs().max() <= 1e-10
    theirs = {name: p.grad for name, p in state.items()}
    assert theirs["stem.row"].abs().max() < 1e-10  # a no-op, although the reference adds it
    theirs["stem.row"] = torch.zeros_like(theirs["stem.row"])
    assert_same(gradients(model), theirs, 1e-9)
    assert torch.count_nonzero(model.stem.row.grad) == 0


def test_equal_in_single_precision(small):
    model, tokens = small(), alignment(16, 40)
    expected = model(tokens)
    assert (model.float()(tokens) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_rows_may_be_permuted(small):
    model, tokens = small(), alignment(9, 24)
    order = torch.tensor([3, 0, 8, 1, 7, 2, 6, 4, 5])
    out, moved = (model(t, everything=True) for t in (tokens, tokens[:, order]))
    assert (out.logits[:, order] - moved.logits).abs().max() <= 1e-12
    assert (out.maps - moved.maps).abs().max() <= 1e-12


@pytest.mark.slow
@torch.no_grad()
def test_rows_of_the_published_size_may_be_permuted():
    """Spec 12: to 1e-10 in fp64. In fp32 sums over rows come in another order, so to rounding: 2e-6 where the logits
    themselves, which reach 2, are 1.6e-6 from those of fp64.
    """
    torch.manual_seed(0)
    model, tokens, letters = RNAMSM(RNAMSMConfig.named("base")).eval(), alignment(12, 40), list(ANSWERS)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    single, moved = (model(t)[..., letters] for t in (tokens, tokens[:, order]))
    model.double()
    exact, exact_moved = (model(t)[..., letters] for t in (tokens, tokens[:, order]))
    assert (exact[:, order] - exact_moved).abs().max() <= 1e-10
    rounding, scale = (single - exact).abs().max(), exact.abs().max()
    difference = (single[:, order] - moved).abs().max()
    assert difference <= 2e-6 * scale
    assert difference <= 2 * rounding


@pytest.mark.parametrize("training_path", [True, False])
def test_padding_changes_nothing(small, training_path):
    """Rows below, columns to the right, or both (spec 9, point 2: in the authors' code padded rows change results)."""
    model = small()
    alignments = [alignment(7, 20)[0], alignment(3, 20, 1)[0], alignment(7, 11, 2)[0], alignment(1, 5, 3)[0]]
    alone = [model(a[None], everything=True) for a in alignments]
    for fill in (0, 9):
        tokens, is_real = padded(alignments, fill)
        with torch.set_grad_enabled(training_path):
            together = model(tokens, is_real, everything=True)
        for b, (a, out) in enumerate(zip(alignments, alone, strict=True)):
            rows, columns = a.shape
            assert (together.logits[b, :rows, :columns] - out.logits[0]).abs().max() <= 1e-10
            assert (together.maps[b, :, :columns, :columns] - out.maps[0]).abs().max() <= 1e-12
            assert torch.isfinite(together.logits).all()


def test_padding_changes_no_gradient(small):
    model = small()
    alignments = [alignment(7, 20)[0], alignment(3, 9, 1)[0]]
    for a in alignments:
        model(a[None]).square().sum().backward()
    alone = gradients(model)
    model.zero_grad()
    tokens, is_real = padded(alignments)
    model(tokens, is_real)[is_real].square().sum().backward()
    assert_same(gradients(model), alone, 1e-10)


@pytest.mark.parametrize("piece_tokens", [1, 41, 100, 10_000])
@pytest.mark.parametrize("with_padding", [True, False])
def test_pieces_are_exact(small, piece_tokens, with_padding):
    model, whole = small(piece_tokens=piece_tokens), small()
    tokens, is_real = padded([alignment(7, 20)[0], alignment(5, 13, 1)[0]])
    if not with_padding:
        tokens, is_real = alignment(7, 20), None
    expected = whole(tokens, is_real, everything=True)
    with torch.no_grad():
        out = model(tokens, is_real, everything=True)
    real = slice(None) if is_real is None else is_real
    assert (out.logits[real] - expected.logits[real]).abs().max() <= 1e-10
    assert (out.maps - expected.maps).abs().max() <= 1e-12


def test_pieces_are_exact_in_bf16(small):
    """Spec 9, point 3: the authors' pieces of padded alignments have errors of up to 0.87 in the attention maps."""
    tokens, is_real = padded([alignment(24, 40)[0], alignment(9, 33, 1)[0]])
    exact = small()(tokens, is_real, everything=True)

    def errors(**config):
        with torch.no_grad():
            out = small(**config).bfloat16()(tokens, is_real, everything=True)
        maps, logits = out.maps - exact.maps.detach(), out.logits.double() - exact.logits.detach()
        return maps.abs().max(), logits[is_real].abs().mean(), out

    whole, pieces = errors(), errors(piece_tokens=60)
    rounding = [x.item() for x in whole[:2]]
    print("bf16 rounding of maps, logits:", rounding, "pieces:", [x.item() for x in pieces[:2]])
    assert pieces[0] <= 1.2 * rounding[0]
    assert pieces[1] <= 1.2 * rounding[1]
    first = [out.maps[:, :4] for out in (whole[2], pieces[2])]  # of the first layer: its inputs are the same bits
    assert (first[0] - first[1]).abs().max() <= 1e-5


class Sizes(TorchDispatchMode):
    """Notes how many elements the tensors have that are computed, and of which operator."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor):
                self.seen[x.numel()] = str(function)
        return result


def test_inference_holds_the_alignment_and_a_piece(small):
    """Apart from [B, R, L, d] itself, nothing is larger than the inner units of a piece or the maps."""
    tokens, index = alignment(60, 30), torch.arange(5)
    model, sizes = small(piece_tokens=100), Sizes()
    with torch.no_grad(), sizes:
        model(tokens, target_index=index)
    stream = 60 * 30 * 48
    others = {n: name for n, name in sizes.seen.items() if n != stream}
    assert stream in sizes.seen
    assert max(others) <= max(100 * 3 * 48, 4 * 30 * 30), others[max(others)]
    whole, sizes = small(), Sizes()
    with torch.no_grad(), sizes:
        whole(tokens, target_index=index)
    assert max(sizes.seen) >= 2 * stream


def test_gradients_in_bf16(small):
    """bf16 weights, as DeepSpeed trains them: every gradient points where that of fp64 does."""
    tokens = alignment(12, 30)
    weight = torch.randn(1, 12, 30, 28, generator=torch.Generator().manual_seed(3)).double()
    exact, rounded = small(), small().bfloat16()
    for model in (exact, rounded):
        (model(tokens).double() * weight).sum().backward()
    found = gradients(rounded)
    for name, expected in gradients(exact).items():
        if name == "stem.row" or name.endswith("qkv_bias"):  # nothing; keys' part is nothing but rounding
            continue
        alike = torch.nn.functional.cosine_similarity(found[name].double().flatten(), expected.flatten(), dim=0)
        assert alike > 0.98, (name, alike)


@pytest.mark.parametrize("rows", [9, 1])
def test_autocast_runs_both_paths(small, rows):
    model, tokens = small().float(), alignment(rows, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = model(tokens, everything=True)
        with torch.no_grad():
            inferred = model(tokens, everything=True)
    assert trained.maps.dtype == inferred.maps.dtype == torch.float32
    assert (trained.maps - inferred.maps).abs().max() <= 0.03
    assert (trained.logits - inferred.logits).abs().mean() <= 0.03 * trained.logits.abs().max()


def test_dropout_is_where_the_authors_have_it(small, monkeypatch):
    """Spec 1.1: embedding; per layer probabilities and branch twice, inner units and branch of the feed-forward."""
    calls = []

    def drawn(name, value):
        def draw(shape, probability, device):
            calls.append((name, probability))
            return torch.full(tuple(shape), value, dtype=torch.uint8)

        return draw

    for name in ("dropout", "projections", "feed_forward", "dropout_attention", "tied_attention"):
        module = importlib.import_module(f"models.layers.{name}")
        monkeypatch.setattr(module, "draw_kept", drawn(name, 1))
    monkeypatch.setattr(importlib.import_module("models.layers.feed_forward"), "draw_dropped", drawn("inner", 0))
    model = small(attention_dropout=0.2, residual_dropout=0.05).train()
    row, column = [("tied_attention", 0.2), ("projections", 0.05)], [("dropout_attention", 0.2), ("projections", 0.05)]
    ffn = [("feed_forward", 0.05), ("inner", 0.05)]
    model(alignment())
    assert calls == [("dropout", 0.05), *[*row, *column, *ffn] * 3]
    calls.clear()
    model(alignment(1))  # of one row nothing is dropped in the column
    assert calls == [("dropout", 0.05), *[*row, column[1], *ffn] * 3]


def test_dropout_only_in_training(small):
    model, tokens = small(), alignment()
    assert torch.equal(model(tokens), model(tokens))
    assert not torch.equal(model.train()(tokens), model(tokens))


@pytest.mark.parametrize("sizes", [[(1, 20)], [(7, 20)], [(7, 20), (4, 24)]])
def test_what_is_no_target_ends_after_the_last_attention(small, sizes):
    """The last feed-forward layer and the head see targets alone, of which the logits and gradients stay the same."""
    tokens, is_real = padded([alignment(rows, columns, seed)[0] for seed, (rows, columns) in enumerate(sizes)])
    is_real = None if len(sizes) == 1 else is_real
    index = torch.tensor([17, 3, 12])
    whole, some, again = small(), small(), small(checkpointing=True)
    expected = whole(tokens, is_real).flatten(0, 2)[index]
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    (expected * weight).sum().backward()
    widths = []
    some.blocks[-1].ffn.register_forward_hook(lambda module, args, out: widths.append(tuple(out.shape)))
    for model in (some, again):
        found = model(tokens, is_real, target_index=index)
        torch.testing.assert_close(found, expected)
        (found * weight).sum().backward()
        assert_same(gradients(model), gradients(whole), 1e-10)
    with torch.no_grad():
        torch.testing.assert_close(some(tokens, is_real, target_index=index), expected)
    assert widths == [(3, 48)] * 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_come_in_one_order_whatever_the_alignment(small, checkpointing):
    """ZeRO stage 2 sums over ranks in the order in which they come, and ranks hold alignments of different shapes."""
    seen = []
    for rows, targets in ((1, None), (7, None), (1, [3, 5]), (7, [3, 5]), (1, []), (7, [])):
        model, order = small(checkpointing=checkpointing, attention_dropout=0.1).train(), []
        for name, p in model.named_parameters():
            p.register_post_accumulate_grad_hook(lambda p, name=name, order=order: order.append(name))
        index = None if targets is None else torch.tensor(targets, dtype=torch.int64)
        model(alignment(rows, 9), target_index=index).sum().backward()
        seen.append(order)
    assert len(seen[0]) == len(list(model.parameters()))
    assert all(order == seen[0] for order in seen)


def test_columns_of_one_row_need_neither_queries_nor_keys(small):
    """Spec 1.1: their gradient is zero, not absent, so that ranks with deeper alignments find the same parameters."""
    model = small()
    model(alignment(1, 20)).square().sum().backward()
    for i in range(3):
        for name in ("weight", "bias"):
            of_queries, of_keys, of_values = getattr(model.blocks[i].column, f"qkv_{name}").grad.chunk(3)
            assert not of_queries.any()
            assert not of_keys.any()
            assert of_values.any()


@pytest.mark.parametrize("rows", [1, 4])
def test_no_targets_still_reach_every_parameter(small, rows):
    model = small().train()
    logits = model(alignment(rows, 9), target_index=torch.zeros(0, dtype=torch.int64))
    assert logits.shape == (0, 28)
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_checkpointing_changes_nothing_but_memory(small):
    one, other = small(), small(checkpointing=True)
    tokens = alignment()
    for model in (one, other):
        torch.manual_seed(5)
        model.train()(tokens).square().sum().backward()
    assert_same(gradients(one), gradients(other), 1e-12)


def test_extract(small):
    model, tokens = small(), alignment()
    model.train()
    representation, maps = model.extract(tokens[0])
    assert model.training
    assert representation.shape == (19, 48)
    assert maps.shape == (19, 19, 12)
    model.eval()
    out = model(tokens, everything=True)
    assert (representation - out.representation[0, 0, 1:]).abs().max() <= 1e-12
    assert (maps[3, 5] - out.maps[0, :, 4, 6]).abs().max() <= 1e-12


def test_initial_weights():
    """Spec 1.1; and rows of tokens that training never shows are zero."""
    torch.manual_seed(0)
    model = RNAMSM(RNAMSMConfig.named("nano"))
    state = model.state_dict()
    assert state["blocks.1.row.qkv_weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["stem.position"][2:].std().item() == pytest.approx(0.02, rel=0.02)
    assert not state["stem.position"][:2].any()
    assert state["stem.row"].std().item() == pytest.approx(0.01, rel=0.1)
    shown = [1, 4, *ANSWERS]
    assert state["embed.weight"][shown].std().item() == pytest.approx(0.02, rel=0.1)
    assert {i for i in range(28) if state["embed.weight"][i].any()} == set(shown)
    assert [i for i in range(28) if state["head.out.bias"][i] == 0] == list(ANSWERS)
    assert state["head.out.bias"].min() == NEVER
    for name, x in state.items():
        if name.endswith("bias") and name != "head.out.bias":
            assert not x.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (x == 1).all(), name


def test_large_row_embeddings_change_nothing(small):
    """Spec 1.2: replaced by N(0, 50), logits move by 1.6e-14 where it is added; here it is not added at all."""
    model, tokens = small(), alignment()
    before = model(tokens)
    torch.nn.init.normal_(model.stem.row, 0, 50)
    assert torch.equal(model(tokens), before)
    state = {name: p.detach() for name, p in model.named_parameters()}
    assert (reference(state, model.config, tokens[0])[0] - before[0]).abs().max() <= 1e-10


def test_refusals(small):
    model = small(max_positions=30)
    model(alignment(2, 30))
    with pytest.raises(ModelError, match="1024 rows of 30 columns"):
        model(alignment(2, 31))
    with pytest.raises(ModelError, match="not 1025 of 4"):
        model(alignment(1025, 4))
    for wrong in ({"heads": 5}, {"vocab": 26}, {"attention_dropout": 1.0}, {"kernel": "fast"}, {"piece_tokens": 0}):
        with pytest.raises(ModelError, match="RNA-MSM"):
            RNAMSMConfig(**SMALL | wrong)
    with pytest.raises(ModelError, match="base"):
        RNAMSMConfig.named("giga")
    assert rnamsm.RNAMSMConfig.named("nano", layers=1).layers == 1
