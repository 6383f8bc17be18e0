"""Planned figures against what training really holds, moves and does."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models import MODELS
from models.layers import pieces, triangle_update
from pretrain import gpus, planning, recipe
from pretrain.errors import PretrainError
from pretrain.planning_memory import CONTEXT, States, checkpoint_bytes, states, usable
from pretrain.planning_model import ModelCost
from pretrain.planning_network import Network, step_seconds, traffic
from pretrain.planning_samples import Assumed, held_out_samples, stages_of
from pretrain.stages import Stage
from tests import ranks

HERE = Path(__file__).resolve().parent
TINY = str(ranks.ROOT / "tests" / "tiny.yaml")
SMALL = {
    "rinalmo": "rinalmo_micro.yaml model.size=nano",
    "aido_rna": "aido_rna_650m.yaml model.size=1m",
    "rnaernie": "rnaernie.yaml model.size=nano",
    "rnamsm": "rnamsm.yaml model.size=nano",
    "ribonanzanet": "ribonanzanet.yaml model.size=nano model.dropout=0",
}
SHAPES = {"rnamsm": [[24, 64]], "ribonanzanet": [[1, 64]] * 3}
H100 = gpus.named("h100-80gb")


def load(model, *overrides):
    name, *own = SMALL[model].split()
    dropouts = ["attention_dropout", "residual_dropout"]
    fields = MODELS[model][0].__dataclass_fields__
    off = [f"model.{key}=0" for key in dropouts if key in fields]
    return recipe.load(name, [*own, *off, *overrides])


def cost(model, *overrides):
    settings = load(model, *overrides)
    kind = {"rnamsm": "alignments", "ribonanzanet": "reactivity"}.get(model, "sequences")
    return ModelCost(settings, kind)


def assumptions(**given):
    network = Network(H100.intra, H100.inter, H100.per_node)
    return planning.Assumptions(H100, network, **given)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_parameters_are_those_of_the_module(name):
    found = cost(name)
    model = MODELS[name][1](found.settings.model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.largest == max(p.numel() for p in model.parameters())


def peak_bytes(work):
    """The most that torch's allocator held during ``work``, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        work()
    events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize("interval", [0, 300, 400])
def test_validations_are_those_of_training(interval):
    """As many as a trainer does in each stage: those of its interval, and the one at its end."""
    own = [
        "stages.pseudo_labels.budget={steps: 1200, epochs: null}",
        "stages.true_labels.budget={steps: 700, epochs: null}",
    ]
    own += [f"stages.pseudo_labels.validation.every_steps={interval}", "validation.every_steps=350"]
    first, second = planning.plan(load("ribonanzanet", *own), 1, assumptions(corpus=Assumed(177, 40_000))).stages
    stage = Stage("", first.samples.settings, None, 100, 1300, 0, 0)
    assert first.validations == 1 + sum(stage.validates_after(step) for step in range(100, 1301))
    assert second.validations == 2
    (only,) = planning.plan(
        load("rinalmo", "validation.sequences=0", "budget={steps: 9, epochs: null}"), 1, assumptions()
    ).stages
    assert only.validations == 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_activations_are_what_forward_and_backward_allocate(name, precision, checkpointing, monkeypatch):
    """Within 10 %: activations, gradients in flight and autocast's copies against the allocator's peak."""
    # As a GPU, which does not work through a part at a time.
    monkeypatch.setattr(pieces, "CACHED", pieces.WHOLE)
    monkeypatch.setattr(triangle_update, "sequences_together", lambda z, dtype: len(z))
    found = cost(name, f"compute.precision={precision}", f"model.checkpointing={checkpointing}")
    config = found.settings.model
    model = MODELS[name][1](config).train()
    shapes = np.array(SHAPES.get(name, [[1, 128]] * 16))
    tokens = torch.randint(6, 10, (int(shapes.prod(axis=1).sum()),))
    index = torch.arange(0, len(tokens), 7)
    if name == "ribonanzanet":
        arguments = {"tokens": tokens.view(3, 64) % 4}
    elif name == "rnamsm":
        arguments = {"tokens": tokens.view(1, 24, 64), "target_index": index}
    else:
        bounds = torch.arange(0, len(tokens) + 1, 128, dtype=torch.int32)
        arguments = {"tokens": tokens, "cu_seqlens": bounds, "positions": torch.arange(128).repeat(16)}
        arguments |= {"max_seqlen": 128, "target_index": index}

    def train():
        with torch.autocast("cpu", enabled=precision == "bf16_autocast"):
            logits = model(**arguments)
        logits = logits.float()
        loss = (
            logits.abs().sum() if name == "ribonanzanet" else torch.nn.functional.cross_entropy(logits, tokens[index])
        )
        loss.backward()

    train()  # gradients exist from here on, as in all micro-batches but a step's first
    held = States(0, 0, 0, 0, 2.0 * found.cast * (precision == "bf16_autocast"), 0, 0)
    kept = found.activations(shapes, checkpointing=False)
    estimate = held.peak(found.activations(shapes), kept / config.layers * checkpointing)
    peak = peak_bytes(train)
    assert estimate == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "optimizer", "world"),
    [
        (0, "bf16_autocast", "ranger", 2),
        (1, "fp32", "ranger", 1),
        (1, "bf16", "adamw", 2),
        (2, "bf16_autocast", "adamw", 2),
        (2, "bf16", "adamw", 2),
        (3, "fp32", "adamw", 2),
        (3, "bf16", "ranger", 1),
    ],
)
def test_states_and_traffic_are_those_of_deepspeed(stage, precision, optimizer, world):
    """Bytes that a rank holds between backward pass and step, and bytes that collectives move, within 10 %."""
    script = HERE / "train_planned.py"
    results = ranks.pretrain([str(stage), precision, optimizer, "1000"], world, script=script)
    assert [code for code, _, _ in results] == [0] * world, results
    measured = json.loads(results[0][1].splitlines()[-1])
    small = ["model.size=null", "model.layers=4", "model.width=128", "model.heads=2", "model.ffn=256"]
    own = ["data.corpus=none", f"compute.precision={precision}", f"optimizer.name={optimizer}", *small]
    zero = "{zero_optimization: {stage3_param_persistence_threshold: 0}}"
    settings = recipe.load(TINY, [*own, f"deepspeed.zero_stage={stage}", f"deepspeed.config={zero}"])
    model = ModelCost(settings, "sequences")
    planned = states(model, settings, stage, world)
    resident = planned.held
    if stage == 3 and world > 1:  # gathered weights are let go of when the backward pass ends
        resident -= planned.weights - (2 if precision == "bf16" else 4) * model.parameters / world
    assert resident == pytest.approx(measured["between"], rel=0.1)
    if world == 1:
        return
    moved = traffic(model, settings, stage)
    by_name = {"all_reduce": 0.0, "reduce_scatter_tensor": 0.0, "all_gather_into_tensor": 0.0}
    in_micro_batch, in_step = by_name | measured["micro-batch"], by_name | measured["step"]
    reduced = "all_reduce" if moved.reduce_passes == 2 else "reduce_scatter_tensor"
    where = in_micro_batch if moved.per_micro_batch else in_step
    assert where[reduced] == pytest.approx(moved.reduced, rel=0.1)
    assert in_step["all_gather_into_tensor"] == pytest.approx(moved.gathered, rel=0.1)
    assert in_micro_batch["all_gather_into_tensor"] == pytest.approx(moved.gathered_per_micro_batch, rel=0.1)


def test_states_of_the_arithmetic():
    """DeepSpeed spec 9: 1.6 B in bf16 at stage 2 on 8 GPUs, 2 P of weights and (4 + 12) P / 8 of the rest."""
    settings = recipe.load("aido_rna_1b6.yaml", ["compute.precision=bf16"])
    model = ModelCost(settings, "sequences")
    found = states(model, settings, 2, 8)
    assert found.held == pytest.approx((2 + 16 / 8) * model.parameters)
    assert found.casts == 0
    assert checkpoint_bytes(model, settings) == 12 * model.parameters
    assert usable(80) == 80 * 2**30 * 0.96 - CONTEXT


def test_ring():
    network = Network(intra=100, inter=10, per_node=8)
    assert network.seconds(8e9, 1, 2) == 0
    assert network.seconds(8e9, 2, 1) == pytest.approx(0.5 * 8 / 80)
    assert network.seconds(8e9, 8, 2) == pytest.approx(2 * 7 / 8 * 8 / 80)
    assert network.seconds(8e9, 16, 2) == pytest.approx(2 * 15 / 16 * 8 / 8)


def test_stage_2_hides_what_fits_behind_the_backward_pass():
    network = Network(1, 1, 8)
    settings = load("rnamsm", "deepspeed.zero_stage=2")
    hiding = load("rnamsm", "deepspeed.zero_stage=2", "deepspeed.config={zero_optimization: {overlap_comm: true}}")
    model = ModelCost(settings, "alignments")
    shown = step_seconds(model, settings, 2, 4, network, 3, 100.0)
    gather = network.seconds(4.0 * model.parameters, 4, 1)
    assert shown == pytest.approx(3 * network.seconds(4.0 * model.parameters, 4, 2) + gather)
    assert step_seconds(model, hiding, 2, 4, network, 3, 100.0) == pytest.approx(gather)


def test_a_plan_of_the_published_recipe_without_its_corpus():
    """RiNALMo: 17 M clusters in 6 epochs are 75,893 steps; every sample at its longest has 4.42 GFLOP a token."""
    settings = recipe.load("rinalmo.yaml", ["data.corpus=not/there", "model.ffn_pad_to=1"])
    found = planning.plan(settings, 8, assumptions(corpus=Assumed(samples_per_epoch=17_000_000), price=2.0))
    stage = found.stages[0]
    assert found.steps == 75_893
    assert stage.tokens == 1344 * 1024
    assert stage.flops == pytest.approx(4.42e9 * stage.tokens, rel=0.01)
    assert stage.time.compute == pytest.approx(stage.flops / 8 / (0.4 * 989e12))
    assert stage.time.micro_batches == 3
    assert found.checkpoints == 75 + 1
    assert found.checkpoints_kept == 3 + 7
    assert found.save_seconds == pytest.approx(12 * found.parameters / 1e9)
    copy = 12 * found.parameters / found.ranks / 5e9
    assert found.wait_seconds == pytest.approx(copy)
    training = 75_893 * stage.time.seconds + 76 * stage.validation_seconds
    assert found.seconds == pytest.approx(training + 75 * copy + found.save_seconds)
    assert found.cost == pytest.approx(found.seconds / 3600 * 8 * 2.0)
    assert stage.samples.epochs == {"there": pytest.approx(6.0, abs=1e-4)}
    assert "not/there is not here" in stage.samples.assumed
    settings.checkpoint.background = False
    assert planning.plan(settings, 8, assumptions()).wait_seconds == found.save_seconds
    settings.checkpoint.background, settings.checkpoint.every_steps = True, 1  # the one before is not yet written
    waiting = copy + found.save_seconds - stage.time.seconds
    assert planning.plan(settings, 8, assumptions()).wait_seconds == pytest.approx(waiting)
    without = planning.plan(settings, 8, assumptions())
    assert (without.steps, without.seconds, without.cost) == (None, None, None)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_largest_micro_batch_fits_and_a_larger_one_does_not(name):
    settings = load(name, "data.corpus=not/there")
    samples = stages_of(settings, Assumed())[0]
    model = ModelCost(settings, samples.kind)
    held, room = states(model, settings, 1, 2), usable(8.0)
    most = planning._largest(samples, model, held, room, samples.drawn[0].shapes)
    shapes = samples.drawn[0].shapes
    if name == "rnamsm":
        columns = settings.objective.max_columns
        sizes = [model.activations(np.array([[tokens // columns, columns]])) for tokens in (most, round(most * 1.1))]
    else:
        sizes = [model.worst(tokens, shapes) for tokens in (most, round(most * 1.1))]
    assert held.held + held.buckets + sizes[0] <= room
    assert sizes[1] > sizes[0]
    assert held.peak(sizes[1]) > room


def test_lengths_come_from_the_corpus(synthetic_corpus):
    from data.index import Corpus

    options = [f"data.corpus={synthetic_corpus}", "batch.sequences=64", "budget.steps=40", "validation.sequences=5"]
    settings = recipe.load(TINY, options)
    (samples,) = stages_of(settings, Assumed())
    corpus = Corpus.open(synthetic_corpus)
    expected = np.minimum(np.asarray(corpus.lengths).astype(int) + 2, 128)
    assert samples.assumed is None
    assert len(samples.drawn) == 8
    assert all(len(drawn.costs) == 64 for drawn in samples.drawn)
    drawn = np.concatenate([drawn.costs for drawn in samples.drawn])
    assert set(drawn.tolist()) <= set(expected.tolist())
    assert drawn.mean() == pytest.approx(expected.mean(), rel=0.05)
    assert samples.epochs == {"corpus": 40 * 64 / corpus.count}
    assert samples.held_out == 5 < Corpus.open(synthetic_corpus, "validation").count
    (fewer,) = stages_of(
        recipe.load(TINY, [f"data.corpus={synthetic_corpus}", "validation.sequences=10000"]), Assumed()
    )
    assert fewer.held_out == Corpus.open(synthetic_corpus, "validation").count
    again = stages_of(settings, Assumed())[0]
    assert all((a.costs == b.costs).all() for a, b in zip(samples.drawn, again.drawn, strict=True))


def test_held_out_samples_are_clusters_of_sequences_but_every_profile():
    """As `HeldOut` and `ProfileValidation` choose them."""
    counts = {"sequences": 4000, "clusters": 900}
    settings = load("rinalmo", "validation.sequences=4096")
    assert held_out_samples(settings, [{"splits": {"validation": counts}}]) == 900
    assert held_out_samples(settings, [{"kind": "reactivity", "splits": {"validation": counts}}]) == 4000
    assert held_out_samples(settings, [{"kind": "alignments", "splits": {"validation": {"alignments": 61}}}]) == 61
    assert held_out_samples(settings, [{"splits": {"validation": {"sequences": 9000}}}] * 2) == 2 * 4096


def test_a_validation_of_profiles_reads_both_directions_where_training_flips():
    seconds = []
    for flip in (0.5, 0.0):
        stages = planning.plan(load("ribonanzanet", f"objective.flip={flip}"), 1, assumptions()).stages
        seconds.append(stages[0].validation_seconds)
    assert seconds[0] == 2 * seconds[1] > 0


def test_stages_and_mixtures(synthetic_corpus):
    mixture = f"[{{corpus: {synthetic_corpus}, name: a, weight: 3}}, {{corpus: {synthetic_corpus}, name: b}}]"
    stages = f"{{one: {{budget: {{steps: 30}}}}, two: {{budget: {{steps: 10}}, data: {{mixture: {mixture}}}}}}}"
    options = [f"data.corpus={synthetic_corpus}", "budget.steps=null", "validation.sequences=64"]
    settings = recipe.load(TINY, [*options, f"stages={stages}"])
    found = planning.plan(settings, 2, assumptions())
    assert [stage.name for stage in found.stages] == ["one", "two"]
    assert found.steps == 40
    assert [stage.samples.held_out for stage in found.stages] == [64, 128]  # of each corpus
    epochs = found.stages[1].samples.epochs
    assert epochs["a"] == pytest.approx(3 * epochs["b"])
    assert found.checkpoints == 2


def test_more_gpus_wait_longer_and_hold_less():
    settings = recipe.load("rinalmo.yaml", ["data.corpus=not/there", "batch.sequences=100"])
    swept = planning.sweep(settings, [1, 2, 8, 16, 64, 128], assumptions())
    assert [found is None for _, found in swept] == [False] * 5 + [True]
    times = [found.stages[0].time for _, found in swept if found]
    assert times[0].communication == 0
    assert all(a.communication < b.communication for a, b in pairwise(times))
    assert all(a.compute > b.compute for a, b in pairwise(times))
    assert times[-1].balance == pytest.approx(100 / 64 / 2)
    peaks = [found.stages[0].zero[1].peak for _, found in swept if found]
    assert peaks == sorted(peaks, reverse=True)


def test_refusals():
    settings = recipe.load("rinalmo.yaml", ["data.corpus=not/there"])
    with pytest.raises(PretrainError, match=r"--gpus 2000 is more than batch.sequences = 1344"):
        planning.plan(settings, 2000, assumptions())
    v100 = planning.Assumptions(gpus.named("v100-32gb"), Network(1, 1, 8))
    with pytest.raises(PretrainError, match="a v100-32gb has no bf16"):
        planning.plan(settings, 1, v100)
    pure = recipe.load("rinalmo.yaml", ["data.corpus=not/there", "compute.precision=bf16"])
    zero = planning.plan(pure, 1, assumptions()).stages[0].zero
    assert [one.refused is not None for one in zero] == [True, False, False, False]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
    ],
)
def test_gpus_by_the_drivers_name(device, name):
    assert gpus.of_device(device) == gpus.named(name)


def test_gpus_by_name():
    assert gpus.of_device("NVIDIA GH200 480GB") is None
    assert gpus.named("H200").name == "h200-141gb"
    assert gpus.named("rtx_4090").name == "rtx-4090-24gb"
    with pytest.raises(PretrainError, match="did you mean h100-80gb"):
        gpus.named("h100-80g")
    with pytest.raises(PretrainError, match="did you mean a100-"):
        gpus.named("a100")
