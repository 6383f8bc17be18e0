"""RNA-MSM through the real loop: learns, is killed, continues exactly, is released, starts from other weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.alignments import AlignmentCorpus
from launch.prepare import main as prepare
from models.layouts.detect import read_checkpoint
from models.rnamsm import NEVER, RNAMSM
from pretrain import evaluate, recipe
from pretrain.checkpoint import steps_on_disk
from pretrain.contacts import FRACTIONS
from pretrain.initialise import build_model
from pretrain.validation_alignments import tokens_of
from tests.archive import serving
from tests.ranks import (
    ROOT,
    finish,
    last,
    logged_steps,
    losses,
    pretrain,
    pretrain_well,
    records,
    refused,
    same_bits,
    start,
    wait_for,
)
from tests.synthetic_alignments import synthetic_alignments

EXPORT, EVALUATE = ROOT / "launch" / "export.py", ROOT / "launch" / "evaluate.py"
SIZES = ["model.name=rnamsm", "model.width=32", "model.heads=2", "model.ffn=40", "model.layers=2"]
OBJECTIVE = ["objective.name=msa", "objective.max_columns=64", "objective.max_tokens=256"]
TINY = ["--config", str(ROOT / "tests" / "tiny.yaml"), *SIZES, *OBJECTIVE, "batch.sequences=6"]
STAGE_3 = ["deepspeed.zero_stage=3", "deepspeed.config={zero_optimization: {stage3_param_persistence_threshold: 0}}"]
SMALL = [*TINY, "model.width=64", "model.heads=4", "model.ffn=256", "batch.sequences=8", "validation.at_start=true"]
SMALL += ["validation.sequences=128", "schedule.warmup_steps=30", "optimizer.learning_rate=2e-3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_alignments(tmp_path_factory.mktemp("alignments"))


def new(corpus: Path | str, runs: Path, name: str, *more: str) -> list[str]:
    return [*TINY, f"data.corpus={corpus}", f"run.directory={runs}", f"run.name={name}", *more]


def killed_and_continued(arguments: list[str], run: Path, after: int, ranks: int) -> None:
    """Kill all ranks once ``after`` steps are logged, with a checkpoint behind them; then run to the end.

    Steps that are done again have the losses that they had.
    """
    processes = start(arguments, ranks)
    wait_for(lambda: logged_steps(run) >= after, timeout=1800)
    wait_for(lambda: steps_on_disk(run / "checkpoints"), timeout=1800)  # a thread writes them
    for process in processes:
        process.kill()
    assert {code for code, _, _ in finish(processes)} <= {-9, 1}  # the second may notice that the first is gone
    before, kept = losses(run), last(run).progress.step
    assert 0 < kept < after + 3
    trained(arguments, ranks)
    assert losses(run)[: len(before)] == before


def trained(arguments: list[str], ranks: int) -> None:
    """As `pretrain_well`, with patience: other processes may share the cores."""
    results = finish(start(arguments, ranks), timeout=1800)
    assert [code for code, _, _ in results] == [0] * ranks, results


# Exactness


@pytest.mark.parametrize("options", [[], STAGE_3], ids=["stage 0", "stage 3"])
@pytest.mark.slow
def test_killed_and_continued_bit_for_bit(corpus, tmp_path, options):
    dropout = ["model.attention_dropout=0.1", "model.residual_dropout=0.1", "checkpoint.every_steps=3", *options]
    pretrain_well(new(corpus, tmp_path, "whole", *dropout, "budget.steps=12"), 2)
    killed_and_continued(new(corpus, tmp_path, "killed", *dropout, "budget.steps=12"), tmp_path / "killed", 5, 2)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12
    assert same_bits(last(tmp_path / "killed"), last(tmp_path / "whole"))


@pytest.mark.slow
def test_ranks_may_change_on_the_way(corpus, tmp_path):
    """2 ranks, then 1, then 3: the losses of a run that never stopped."""
    pretrain_well(new(corpus, tmp_path, "whole", "budget.steps=12"), 1)
    for steps, ranks in ((4, 2), (8, 1), (12, 3)):
        budget = [f"budget.steps={steps}", "schedule.decay_steps=8"]
        pretrain_well(new(corpus, tmp_path, "changing", *budget), ranks)
    assert np.allclose(losses(tmp_path / "changing"), losses(tmp_path / "whole"), rtol=1e-5, atol=0)
    assert len(losses(tmp_path / "changing")) == 12


@pytest.mark.slow
def test_random_queries_of_consensus_frames(tmp_path):
    """Another row is the query each epoch: one and two ranks agree, and it is not the first row's run."""
    frames = synthetic_alignments(tmp_path / "made", families=20, query="none")
    options = ["budget.steps=null", "budget.epochs=2", "batch.sequences=5", "validation.sequences=4"]
    for name, ranks, query in (("one", 1, "random"), ("two", 2, "random"), ("first", 1, "first")):
        pretrain_well(new(frames, tmp_path, name, f"objective.query={query}", *options), ranks)
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-5, atol=0)
    assert not np.allclose(losses(tmp_path / "one"), losses(tmp_path / "first"), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_decay_moves_biases_and_never_the_row_embedding(corpus, tmp_path):
    """As in the recipe, but a thousand times stronger, at every stage."""
    options = ["optimizer.decayed=all_but_norms", "optimizer.weight_decay=0.3", "budget.steps=4"]
    options += ["optimizer.learning_rate=3e-3"]
    for name, ranks, more in (("alone", 1, []), ("stage2", 2, ["deepspeed.zero_stage=2"]), ("stage3", 2, STAGE_3)):
        pretrain_well(new(corpus, tmp_path, name, *options, *more), ranks)
        assert np.allclose(losses(tmp_path / name), losses(tmp_path / "alone"), rtol=1e-5, atol=0)
        found = last(tmp_path / name).weights()
        before = build_model(recipe.read_resolved(tmp_path / name / "recipe.yaml")).state_dict()
        assert torch.equal(found["stem.row"], before["stem.row"])
        never = before["head.out.bias"] == NEVER  # no gradient reaches them, so they tell the decay alone
        moved = found["head.out.bias"][never]
        assert (moved > 0.999 * NEVER).all()
        assert (moved < 0.99 * NEVER).all()


# Learning


def journey(corpus: Path, folder: Path, arguments: list[str], steps: int, whole: bool) -> None:
    """Train on 2 ranks, killed once half way; print what was reached; release; load with MultiMolecule.

    With ``whole``, a run that is not killed ends with the same bits.
    """
    arguments = [*arguments, f"data.corpus={corpus}", f"run.directory={folder}", f"budget.steps={steps}"]
    arguments += [f"checkpoint.every_steps={steps // 3}"]
    killed_and_continued([*arguments, "run.name=run"], folder / "run", steps // 2, 2)
    assert len(losses(folder / "run")) == steps
    if whole:
        trained([*arguments, "run.name=whole"], 2)
        assert losses(folder / "run") == losses(folder / "whole")
        assert same_bits(last(folder / "run"), last(folder / "whole"))

    (references,) = records(folder / "run", "references")
    before, *_, after = records(folder / "run", "validation")
    names = ("letter_frequencies", "column_profile")
    frequencies, profile = (references[name]["loss"] for name in names)
    contacts = {name: (before[f"contact_{name}"], after[f"contact_{name}"]) for name in FRACTIONS}
    print(f"after {steps} steps: loss {after['loss']:.3f}, column profile {profile:.3f}, letters {frequencies:.3f}")
    print("contacts, untrained and trained:", {name: f"{a:.3f} {b:.3f}" for name, (a, b) in contacts.items()})
    assert before["loss"] > frequencies  # nothing is known of RNA before training
    assert after["loss"] < 0.95 * profile < 0.95 * frequencies
    assert contacts["precision_l5"][1] > 1.5 * contacts["precision_l5"][0]
    assert contacts["precision_l"][1] > contacts["precision_l"][0]

    exported = finish(start([str(folder / "run"), "--to", str(folder / "release")], script=EXPORT))
    assert exported[0][0] == 0, exported
    multimolecule = pytest.importorskip("multimolecule", reason="multimolecule is not installed (pip install .[test])")
    theirs, info = multimolecule.RnaMsmForMaskedLM.from_pretrained(folder / "release", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    (alignment,) = AlignmentCorpus.open(corpus, "validation").alignments([0])
    _, config, state = read_checkpoint(folder / "release")
    ours = RNAMSM(config)
    ours.load_state_dict(state)
    tokens = tokens_of(alignment.rows(np.arange(min(alignment.depth, 8))))
    with torch.no_grad():
        assert (theirs.eval()(tokens).logits - ours.eval()(tokens)).abs().max() < 1e-4


WHOLE = pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)])


@WHOLE
@pytest.mark.slow
def test_learns_synthetic_alignments(tmp_path, whole):
    command = ["synthetic", "--alignments", "200", "--rows", "24", "--to", str(tmp_path / "corpus")]
    assert prepare([*command, "validation_fraction=0.2"]) == 0
    journey(tmp_path / "corpus", tmp_path, SMALL, 300, whole)


@WHOLE
@pytest.mark.slow
def test_learns_rfam(shared_data, tmp_path, whole):
    """Issue's acceptance: below the letter frequencies and the column profile; contacts better than untrained."""
    source = str(shared_data / "alignments" / "Rfam14.2.seed.gz")
    options = ["split_by=clan", "validation_fraction=0.05"]
    assert prepare(["alignments", "--from", source, "--to", str(tmp_path / "corpus"), *options]) == 0
    sizes = ["objective.max_columns=128", "objective.max_tokens=1024", "batch.tokens_per_micro_batch=1024"]
    journey(tmp_path / "corpus", tmp_path, [*SMALL, *sizes], 300, whole)


# Data


@pytest.mark.slow
def test_a_mixture_of_two_corpora(corpus, tmp_path):
    other = synthetic_alignments(tmp_path / "other", families=30, rows=40, seed=11)
    mixture = f"data.mixture=[{{corpus: {corpus}, weight: 2, name: first}}, {{corpus: {other}, name: second}}]"
    for ranks in (1, 2):
        options = ["data.corpus=null", mixture, "budget.steps=6", "validation.sequences=8"]
        pretrain_well([*TINY, f"run.directory={tmp_path}", f"run.name=mixed{ranks}", *options], ranks)
    assert np.allclose(losses(tmp_path / "mixed1"), losses(tmp_path / "mixed2"), rtol=1e-5, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "mixed2" / "metrics.jsonl").read_text().splitlines()]
    reports = {line["corpus"]: line for line in lines if line["kind"] == "validation"}
    assert set(reports) == {"first", "second"}
    assert all("contact_precision_l" in report for report in reports.values())
    references = {line["corpus"]: line["column_profile"]["loss"] for line in lines if line["kind"] == "references"}
    assert references["first"] != references["second"]
    done = [line for line in lines if line["kind"] == "train"][-1]
    assert done["epochs"]["first"] == pytest.approx(6 * 4 / AlignmentCorpus.open(corpus).count)
    assert done["epochs"]["second"] == pytest.approx(6 * 2 / AlignmentCorpus.open(other).count)


@pytest.mark.slow
def test_staged_from_a_server(tmp_path):
    """Several shards, faults on the way, two ranks: the losses and contacts of a corpus on disk."""
    corpus = synthetic_alignments(tmp_path / "made", families=600, rows=40, shard_megabytes=1, validation_fraction=0.05)
    shards = sorted(path.name for path in corpus.glob("train-*.tar"))
    assert len(shards) > 1
    options = ["budget.steps=6", "validation.sequences=8"]
    pretrain_well(new(corpus, tmp_path, "disk", *options), 2)
    with serving(corpus) as server:
        server.faults[f"/{shards[0]}"] = ["drop:20000", "corrupt"]
        server.faults["/index.npz"] = ["status:503"]
        staged = [f"data.cache={tmp_path / 'cache'}", *options]
        pretrain_well(new(server.url, tmp_path, "staged", *staged), 2)
    assert losses(tmp_path / "staged") == losses(tmp_path / "disk")
    found, expected = (records(tmp_path / name, "validation")[-1] for name in ("staged", "disk"))
    assert {k: v for k, v in found.items() if k != "time"} == {k: v for k, v in expected.items() if k != "time"}


# Starting from other weights


@pytest.fixture(scope="module")
def weights(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a run of ours and as a release, which holds the authors' layout too."""
    folder = tmp_path_factory.mktemp("weights")
    pretrain_well(new(corpus, folder, "run", "budget.steps=2", "validation.sequences=8"))
    exported = finish(start([str(folder / "run"), "--to", str(folder / "release")], script=EXPORT))
    assert exported[0][0] == 0, exported
    (folder / "said.txt").write_text(exported[0][1])
    return folder


@pytest.mark.slow
def test_evaluation_gives_the_figures_of_the_run(corpus, weights):
    """Of the run and of its release, by the command: loss, accuracy, contacts, and the trivial models."""
    (expected,), (references,) = (records(weights / "run", kind) for kind in ("validation", "references"))
    for found in evaluate.evaluate([weights / "run", weights / "release"], corpus, sequences=8):
        for figure, value in found.report.items():
            if not isinstance(value, dict):
                assert value == pytest.approx(expected[figure], rel=1e-4), figure
        assert {"loss", "contact_precision_l"} <= found.report.keys()
        for name in ("letter_frequencies", "column_profile"):
            assert found.references[name] == pytest.approx(references[name], rel=1e-6)
    arguments = [str(weights / "run"), "--corpus", str(corpus), "--sequences", "8"]
    ((code, out, err),) = pretrain(arguments, script=EVALUATE)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("run step 2 (")
    assert f"loss {expected['loss']:.4f}" in lines[0]
    assert "contact_precision_l " in lines[0]
    assert [line.split(":")[0] for line in lines[-2:]] == ["letter frequencies", "column profile"]
    predicting = [*arguments[:3], "--write-predictions", str(weights / "predicted")]
    assert "the objective msa, which predicts no profiles" in refused(pretrain(predicting, script=EVALUATE))


def test_a_release_tells_which_rows_were_filled_by_what(weights):
    card, said = (weights / "release" / "README.md").read_text(), (weights / "said.txt").read_text()
    assert "never showed are filled: `<eos> <unk> <null> N I | * ?` as `X`, `.` as `-`, `R` the mean of `A G`" in card
    assert "`original/`: Rows of tokens that training never showed are filled: `<eos> <unk> N` as `X`" in card
    assert (
        "    Rows of tokens that training never showed are filled: <eos> <unk> <null> N I | * ? as X, . as -, R" in said
    )
    assert card.count("Their output bias is -30") == said.count("Their output bias is -30") == 2


@pytest.mark.slow
def test_initial_weights_from_everything(corpus, weights, tmp_path):
    """Two steps each: the first loss of all is that of the run they come from."""
    (original,) = (weights / "release" / "original").glob("*.ckpt")
    sources = {"run": weights / "run", "multimolecule": weights / "release", "original": original}
    for name, source in sources.items():
        said = pretrain_well(new(corpus, tmp_path, name, f"init_from={source}", "budget.steps=2"))
        assert f"weights from {source}" in said
    pretrain_well(new(corpus, tmp_path, "fresh", "budget.steps=2"))
    first = losses(tmp_path / "run")
    assert losses(tmp_path / "multimolecule") == pytest.approx(first, rel=1e-6)
    assert losses(tmp_path / "original") == pytest.approx(first, rel=1e-6)
    assert losses(tmp_path / "fresh")[0] != pytest.approx(first[0], rel=1e-4)


def test_initial_weights_that_do_not_fit(corpus, weights, tmp_path):
    told = refused(pretrain(new(corpus, tmp_path, "new", f"init_from={weights / 'release'}", "model.layers=3")))
    assert "has model.layers = 2, but the recipe has 3" in told
    bare = Path(shutil.copytree(weights / "release", tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    assert "model.safetensors" in refused(pretrain(new(corpus, tmp_path, "new", f"init_from={bare}")))
