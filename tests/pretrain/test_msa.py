"""The objective of alignments: sizes, draws and rates of the RNA-MSM specification 3.3, 4 and 12, and its loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from data.alignments import AlignmentCorpus
from data.msa_alphabet import LETTERS, RNAMSM
from data.msa_sampling import Limits, draw_rows, outside_blocks, window_start
from models import rnamsm as module
from models.layouts import rnamsm as layout
from models.rnamsm import ANSWERS, PAD, RNAMSMConfig
from models.rnamsm import RNAMSM as Model
from pretrain import recipe
from pretrain.errors import PretrainError
from pretrain.objectives.msa import MSA
from pretrain.objectives.msa_config import MSAConfig
from pretrain.schedule import learning_rate
from tests.data.alignments import small_alignments
from tests.pretrain.drawn_alignments import Drawn, keys

NANO = RNAMSMConfig(layers=2, width=24, heads=3, ffn=40, attention_dropout=0.0, residual_dropout=0.0)
MASK, CLS = 4, 1


def within(found, expected, n, errors=3.0):
    """Is a rate over n independent draws within three standard errors?"""
    return abs(found - expected) <= errors * np.sqrt(expected * (1 - expected) / n)


def collate(config=None, depth=40, columns=60, key=0, **options):
    return MSA(config or MSAConfig(**options)).collate([Drawn(depth, columns)], keys(key + 1)[key:])


def test_the_alphabet_is_that_of_the_model():
    assert RNAMSM.tokens == layout.TOKENS
    assert tuple(RNAMSM.ids[letter] for letter in LETTERS) == ANSWERS
    assert RNAMSM.encode("ACGUTX-NRacgu").tolist() == [6, 7, 8, 9, 9, 22, 26, 22, 22, 6, 7, 8, 9]
    assert (RNAMSM.ids["<pad>"], RNAMSM.ids["<cls>"], RNAMSM.ids["<mask>"]) == (PAD, CLS, MASK)


@pytest.mark.parametrize(
    ("depth", "columns", "rows", "width"),
    [
        (2184, 100, 162, 101),
        (2184, 255, 64, 256),
        (2184, 1023, 16, 1024),
        (2184, 1024, 16, 1024),
        (2184, 5000, 16, 1024),
        (2184, 10, 1024, 11),
        (7, 100, 7, 101),
        (1, 50, 1, 51),
        (1, 1, 1, 2),
    ],
)
def test_shapes(depth, columns, rows, width):
    """Spec 3.3 and 12: 162 rows at L = 101, 64 at 256, 16 at 1,024; no crash at L = 1,025; at most 1,024 rows."""
    batch = collate(depth=depth, columns=columns)
    assert batch.tokens.shape == (1, rows, width)
    assert (batch.tokens[:, :, 0] == CLS).all()
    assert batch.shapes == [(rows, width)]
    assert batch.lengths.tolist() == [rows * width]

    class Corpus:
        depths, lengths = np.array([depth], np.uint32), np.array([columns], np.uint32)

    objective = MSA(MSAConfig())
    assert objective.costs(Corpus, np.array([0])).tolist() == [rows * width]
    assert objective.token_lengths(np.array([columns]))[0] >= rows * width


def test_windows_have_full_width_and_are_unbiased():
    """Spec 3.3: the original's windows at L = 1,200 are 584 wide on average; ours always 1,023 nucleotides."""
    batch = collate(depth=3, columns=1199)
    assert batch.tokens.shape[2] == 1024
    starts = np.array([window_start(1199, 1023, int(key)) for key in keys(20_000)])
    assert starts.min() == 0
    assert starts.max() == 1199 - 1023
    places = 1199 - 1023 + 1
    assert abs(starts.mean() - (places - 1) / 2) <= 3 * places / np.sqrt(12 * len(starts))
    assert within((starts == 0).mean(), 1 / places, len(starts))
    assert {window_start(1023, 1023, int(key)) for key in keys(50)} == {0}
    assert {window_start(1024, 1023, int(key)) for key in keys(50)} == {0, 1}


def test_the_window_is_the_alignments():
    alignment = Drawn(5, 1300)
    batch = MSA(MSAConfig(masked_fraction=0.01)).collate([alignment], keys(1))
    rows, places = batch.target_row, batch.target_nucleotide
    assert (RNAMSM.lookup[alignment.letters[rows, places]] == batch.targets.numpy()).all()
    assert places.min() >= 0
    assert places.max() < 1300


def test_rows_are_the_query_and_a_uniform_draw_of_the_others():
    draws = np.stack([draw_rows(300, 162, int(key)) for key in keys(2000)])
    assert (draws[:, 0] == 0).all()
    assert (np.diff(draws, axis=1) > 0).all()  # ascending, so none repeats
    counts = np.bincount(draws.ravel(), minlength=300)
    assert counts[0] == 2000
    rate, n = 161 / 299, 2000
    assert (abs(counts[1:] / n - rate) <= 4.5 * np.sqrt(rate * (1 - rate) / n)).all()  # 299 rates at once
    assert draw_rows(5, 9, 1).tolist() == [0, 1, 2, 3, 4]
    assert draw_rows(1, 1, 1).tolist() == [0]


@pytest.mark.parametrize(("depth", "share"), [(2184, 0.963), (300, 0.775)])
def test_with_replacement_some_rows_repeat(depth, share):
    """Spec 3.3: 162 of 2,184 rows are 96 % distinct, of 300 rows 77 %."""
    draws = [draw_rows(depth, 162, int(key), with_replacement=True) for key in keys(300)]
    assert {len(rows) for rows in draws} == {162}
    assert all(rows[0] == 0 and (rows[1:] > 0).all() for rows in draws)
    assert np.mean([len(np.unique(rows)) / 162 for rows in draws]) == pytest.approx(share, abs=0.005)


def test_only_the_drawn_rows_are_read():
    alignment = Drawn(500, 300)
    MSA(MSAConfig()).collate([alignment], keys(1))
    assert [len(rows) for rows in alignment.read] == [16384 // 301]


def test_deleted_blocks():
    for key in keys(100):
        kept = outside_blocks(100, 5, 0.3, int(key))
        assert 0 not in kept
        missing = np.setdiff1d(np.arange(1, 100), kept)
        assert len(missing) > 0
        assert 1 + (np.diff(missing) > 1).sum() <= 5  # runs
    assert outside_blocks(10, 0, 0.3, 1).tolist() == list(range(1, 10))
    shares = [len(outside_blocks(1000, 1, 0.3, int(key))) for key in keys(2000)]
    # A run that begins in the last 30 % is cut off at the end: of 300 rows 255 on average.
    assert np.mean(shares) == pytest.approx(999 - 255, abs=8)
    batch = collate(depth=60, columns=40, deleted_blocks=5, key=3)
    assert batch.tokens.shape[1] < 60
    assert 0 in batch.target_row


def rates(batch, original):
    """(selected, and of those: masked, changed, unchanged) of a batch whose true tokens are ``original``."""
    shown = batch.tokens[0].numpy().ravel()[batch.target_index.numpy()]
    true = batch.targets.numpy()
    masked, same = shown == MASK, shown == true
    return len(true) / (original.size - len(original)), masked.mean(), (~masked & ~same).mean(), same.mean()


def original_of(alignment):
    return np.pad(RNAMSM.lookup[alignment.letters], ((0, 0), (1, 0)), constant_values=CLS)


@pytest.mark.parametrize(
    ("options", "random_kept"),
    [({}, 1 / 5), ({"random_letters": LETTERS}, 1 / 6), ({"random_differs": True}, 0), ({"parity": True}, 1 / 12)],
)
def test_rates(options, random_kept):
    """Spec 4: .15 selected, gaps too; .8 `<mask>`, .1 random letters, .1 kept. Parity: .807, .084, .108."""
    alignment = Drawn(1000, 1000)
    batch = MSA(MSAConfig(max_rows=1000, max_tokens=2**20, **options)).collate([alignment], keys(1))
    n = len(batch.targets)
    selected, masked, changed, same = rates(batch, original_of(alignment))
    in_pool = 1.0 if options.get("parity") or "random_letters" in options else 0.99  # X is not among ACGU-
    random_masked = 1 / 12 if options.get("parity") else 0.0
    assert within(selected, 0.15, 10**6)
    assert within(masked, 0.8 + 0.1 * random_masked, n)
    assert within(same, 0.1 + 0.1 * random_kept * in_pool, n)
    assert within(changed, 0.1 * (1 - random_masked - random_kept * in_pool), n)
    gaps = original_of(alignment) == RNAMSM.ids["-"]
    of_gaps = (batch.targets == RNAMSM.ids["-"]).sum().item() / gaps.sum()
    assert within(of_gaps, 0.15, gaps.sum())
    rest = np.setdiff1d(np.arange(original_of(alignment).size), batch.target_index.numpy())
    assert (batch.tokens[0].numpy().ravel()[rest] == original_of(alignment).ravel()[rest]).all()
    assert not (batch.target_index.numpy() % 1001 == 0).any()  # `<cls>`


def test_parity_injects_padding_as_the_original_does():
    """Spec 4: .0013 of all tokens become `<pad>`; the model is told, hides them and counts positions past them."""
    alignment = Drawn(500, 500)
    batch = MSA(MSAConfig(max_rows=500, max_tokens=2**20, parity=True)).collate([alignment], keys(1))
    assert within((~batch.is_real).float().mean().item(), 0.15 * 0.1 / 12, batch.is_real.numel())
    assert torch.equal(batch.is_real, batch.tokens != PAD)
    assert batch.is_real[:, :, 0].all()
    assert collate().is_real is None
    small = MSA(MSAConfig(parity=True)).collate([Drawn(30, 40)], keys(1))
    small.tokens[0, 3, 5], small.is_real[0, 3, 5] = PAD, False
    model = Model(NANO).eval()
    out = model(small.tokens, small.is_real)
    moved = small.tokens.clone()
    moved[0, 3, 5] = 9
    assert torch.equal(out[small.is_real], model(moved, small.is_real)[small.is_real])
    assert torch.isfinite(MSA(MSAConfig(parity=True)).loss(model, small)[0])


def test_profile_and_columns():
    alignment = Drawn(400, 300)
    alignment.letters[:, 7] = ord("G")
    config = MSAConfig(max_tokens=2**20, mask_share=0.0, random_share=0.0, profile_share=1.0)
    batch = MSA(config).collate([alignment], keys(1))
    column = batch.target_nucleotide == 7
    shown = batch.tokens[0].numpy().ravel()[batch.target_index.numpy()]
    assert (shown[column] == RNAMSM.ids["G"]).all()
    other = batch.target_nucleotide == 8
    expected = (alignment.letters[:, 8] == ord("-")).mean()
    assert within((shown[other] == RNAMSM.ids["-"]).mean(), expected, other.sum(), errors=4)
    batch = MSA(replace(config, select="columns", masked_fraction=0.3)).collate([alignment], keys(1))
    picked, counts = np.unique(batch.target_nucleotide, return_counts=True)
    assert set(counts) == {400}
    assert within(len(picked) / 300, 0.3, 300)


def test_everything_is_a_function_of_the_key():
    one, again, other = collate(), collate(), collate(key=1)
    assert torch.equal(one.tokens, again.tokens)
    assert torch.equal(one.target_index, again.target_index)
    assert not torch.equal(one.target_index, other.target_index)
    deep = [MSA(MSAConfig()).collate([Drawn(5000, 100)], keys(3)[i : i + 1]).target_row for i in range(3)]
    assert len({tuple(np.unique(rows)) for rows in deep}) == 3


@pytest.mark.parametrize("average", ["alignments", "tokens"])
def test_loss_is_the_mean_over_alignments_of_the_mean_over_targets(average):
    torch.manual_seed(0)
    objective, model = MSA(MSAConfig(average=average)), Model(NANO).eval()
    batches = [
        objective.collate([Drawn(depth, columns, seed=i)], keys(5)[i : i + 1])
        for i, (depth, columns) in enumerate([(3, 20), (30, 9), (2, 50)])
    ]
    results = [objective.loss(model, batch) for batch in batches]
    total = sum(loss for loss, _ in results) / sum(batch.weight for batch in batches)
    each = []
    for batch in batches:
        logits = model(batch.tokens)[0].flatten(0, 1)[batch.target_index][:, list(ANSWERS)].log_softmax(-1)
        true = torch.tensor([ANSWERS.index(t) for t in batch.targets.tolist()])
        each.append(-logits[torch.arange(len(true)), true])
    expected = torch.stack([x.mean() for x in each]).mean() if average == "alignments" else torch.cat(each).mean()
    assert (total - expected).abs() <= 1e-5
    assert [counts["targets"].item() for _, counts in results] == [len(batch.targets) for batch in batches]
    correct = sum(counts["correct"].item() for _, counts in results)
    figures = objective.figures(6.0, 3.0, correct, sum(len(b.targets) for b in batches))
    assert figures["loss"] == 2.0
    assert figures["perplexity"] == pytest.approx(np.exp(2))
    assert 0 <= figures["accuracy"] <= 1


@pytest.mark.parametrize("kind", ["empty", "nothing selected"])
def test_without_targets_the_loss_is_zero_and_reaches_every_parameter(kind):
    objective, model = MSA(MSAConfig(masked_fraction=1e-9)), Model(NANO).train()
    batch = objective.collate([] if kind == "empty" else [Drawn(4, 10)], keys(0 if kind == "empty" else 1))
    assert batch.weight == 0
    assert batch.tokens.shape == ((1, 1, 1) if kind == "empty" else (1, 4, 11))
    assert batch.lengths.sum() == (0 if kind == "empty" else 44)
    loss, counts = objective.loss(model, batch)
    assert loss.item() == 0
    assert counts["targets"].item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_rows_of_tokens_that_never_appear_do_not_move():
    """So that a release can tell them (models/layouts/rnamsm.py)."""
    torch.manual_seed(0)
    objective, model = MSA(MSAConfig()), Model(replace(NANO, residual_dropout=0.1))
    before = model.embed.weight.detach().clone(), model.stem.row.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for i in range(5):
        loss, _ = objective.loss(model, objective.collate([Drawn(9, 30)], keys(5)[i : i + 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    shown = [CLS, MASK, *ANSWERS]
    assert losses[0] == pytest.approx(np.log(6), abs=0.3)
    assert (model.embed.weight[shown] != before[0][shown]).any(dim=1).all()
    rest = [i for i in range(28) if i not in shown]
    assert torch.count_nonzero(model.embed.weight[rest]) == 0
    assert torch.equal(model.stem.row.grad, torch.zeros(1024))


def test_cost_of_a_batch():
    objective, batch = MSA(MSAConfig()), collate(depth=3, columns=9)
    assert objective.flops(module, NANO, batch) == module.flops(NANO, [(3, 10)], len(batch.targets))
    assert objective.computed(None, batch, torch.device("cpu")) == (30, 30)
    assert objective.logits(Model(NANO).eval(), batch).softmax(-1)[:, list(ANSWERS)].sum(-1).allclose(torch.ones(1))
    assert batch.to(torch.device("cpu")) is batch
    assert F.cross_entropy(objective.logits(Model(NANO).eval(), batch), batch.targets).isfinite()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_columns", 1),
        ("max_rows", 0),
        ("max_tokens", 100),
        ("query", "none"),
        ("deleted_blocks", -1),
        ("deleted_fraction", 1.0),
        ("masked_fraction", 0.0),
        ("select", "rows"),
        ("average", "rows"),
        ("mask_share", 0.95),
        ("profile_share", 0.2),
        ("random_letters", "ACGN"),
        ("random_letters", "AA"),
    ],
)
def test_refusals(key, value):
    with pytest.raises(PretrainError, match=f"objective.{key}"):
        MSA(MSAConfig(**{key: value}))


def test_two_alignments_do_not_fit_a_micro_batch():
    with pytest.raises(ValueError, match="2 alignments"):
        MSA(MSAConfig()).collate([Drawn(2, 3), Drawn(2, 3)], keys(2))
    assert Limits(1024, 1024, 16384).shape([5, 9], [10, 2000])[1].tolist() == [11, 1024]


def test_the_recipe_has_the_numbers_of_the_specification():
    """Spec 5 and 12: learning rates at 16,000, 147,600 and 500,000 steps; objective and model as published."""
    content = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "configs" / "rnamsm.yaml"))
    model, objective, schedule = content["model"], content["objective"], content["schedule"]
    assert model.pop("name") == "rnamsm"
    assert RNAMSMConfig.named(model.pop("size"), **model) == RNAMSMConfig.named("base")
    assert MSAConfig(**objective) == MSAConfig()
    MSA(MSAConfig(**objective))
    settings = {key: value for key, value in schedule.items() if key != "name"}

    def rate(step):
        return learning_rate(
            step, peak=content["optimizer"]["learning_rate"], name="cosine", total_steps=147_600, **settings
        )

    assert rate(16_000) == 3e-4
    assert rate(8_000) == 1.5e-4
    assert rate(147_600) == pytest.approx(0.83 * 3e-4, rel=0.01)
    assert rate(500_000) == pytest.approx(0, abs=1e-12)
    assert content["budget"]["epochs"] * 3932 / content["batch"]["sequences"] == 147_450  # 492 whole steps per epoch


def test_the_recipe_optimises_as_specified():
    """Spec 5: AdamW's numbers and what decays, precision, clipping and seed; what is unknown is ours (spec 6)."""
    loaded = recipe.load("rnamsm.yaml")
    optimizer, schedule = loaded.optimizer, loaded.schedule
    assert (optimizer.name, optimizer.learning_rate, optimizer.betas) == ("adamw", 3e-4, [0.9, 0.999])
    assert (optimizer.eps, optimizer.weight_decay, optimizer.decayed) == (1e-8, 3e-4, "all_but_norms")
    assert optimizer.gradient_clipping == 1.0
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_start) == ("cosine", 16_000, 0.0)
    assert schedule.minimum == 0.0
    assert schedule.warmup_steps + schedule.decay_steps == 500_000
    assert (loaded.batch.sequences, loaded.batch.tokens_per_micro_batch, loaded.budget.epochs) == (8, 16_384, 300)
    assert (loaded.compute.precision, loaded.deepspeed.zero_stage) == ("bf16_autocast", 1)
    assert not loaded.model.checkpointing
    assert loaded.run.seed == 42
    assert loaded.validation.every_steps == 5000


def test_a_prepared_corpus_of_alignments(tmp_path):
    """What the loader does: costs from the corpus's tables, alignments read lazily, one micro-batch each."""
    corpus = AlignmentCorpus.open(small_alignments(tmp_path, 12, validation_fraction=0.2), "train")
    objective, ids = MSA(MSAConfig(max_columns=20, max_rows=5, max_tokens=64)), np.arange(4)
    costs = objective.costs(corpus, ids)
    for i, alignment in enumerate(objective.read(corpus, ids)):
        batch = objective.collate([alignment], keys(4)[i : i + 1])
        assert batch.tokens.numel() == costs[i] == batch.lengths[0]
        assert batch.tokens.shape[2] == 20
        letters = alignment.rows(batch.target_row)[np.arange(len(batch.targets)), batch.target_nucleotide]
        assert (RNAMSM.lookup[letters] == batch.targets.numpy()).all()
        loss, _ = objective.loss(Model(NANO), batch)
        assert loss.isfinite()
