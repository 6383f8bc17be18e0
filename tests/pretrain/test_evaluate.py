"""Evaluation of trained models, and pseudo-labels by them: the real command, and an independent prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import DataError
from data.index import Corpus
from data.reactivity import ReactivityCorpus
from data.reactivity_filter import SampleFilter
from data.verify_reactivity import verify_reactivity
from pretrain import evaluate
from pretrain.errors import PretrainError
from pretrain.initialise import own_checkpoint, read_weights
from pretrain.release import Options, release
from pretrain.release_check import model_of
from tests.data.corpora import content, small_corpus
from tests.data.reactivity_files import build, rows_of, write_table
from tests.ranks import QUICK, ROOT, pretrain, pretrain_well, records, refused

pytest.importorskip("pyarrow")

EVALUATE = ROOT / "launch" / "evaluate.py"
TINY = ["--config", str(ROOT / "tests" / "tiny_reactivity.yaml")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 sequences: 30 clean, of which 5 are held out, 30 dirty and 30 noisy."""
    folder = tmp_path_factory.mktemp("profiles")
    build(folder / "corpus", write_table(folder / "t.csv", rows_of(90)))
    return folder / "corpus"


@pytest.fixture(scope="module")
def runs(corpus: Path, synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 2 steps: a and b on profiles, with different seeds, and masked, of masked tokens."""
    folder = tmp_path_factory.mktemp("runs")
    more = [f"run.directory={folder}", "budget.steps=2", "validation.sequences=16"]
    for seed, name in enumerate("ab"):
        pretrain_well([*TINY, *more, f"data.corpus={corpus}", f"run.name={name}", f"run.seed={seed}"])
    pretrain_well([*QUICK, *more, f"data.corpus={synthetic_corpus}", "run.name=masked", "schedule.warmup_steps=1"])
    return folder


def test_kernels_of_the_machine_that_trained_need_not_be_here(corpus: Path, tmp_path: Path) -> None:
    """They change nothing but speed, so what was trained with them is evaluated by our own."""
    settings = ["model.pair=32", "run.name=wide", "budget.steps=1"]
    pretrain_well([*TINY, f"run.directory={tmp_path}", f"data.corpus={corpus}", *settings])
    release(tmp_path / "wide", tmp_path / "out", Options())
    told = tmp_path / "out" / "recipe.yaml"
    before = told.read_text()
    told.write_text(before.replace("triangle_kernel: own", "triangle_kernel: cuequivariance"))
    assert told.read_text() != before
    trained = evaluate.open_trained(tmp_path / "out")
    assert trained.module(torch.tensor([[0, 1, 2, 3]])).shape == (1, 4, 2)


@pytest.mark.parametrize("name", ["a", "masked"])
def test_figures_are_those_of_the_run_itself(name: str, runs: Path, corpus: Path, synthetic_corpus: Path) -> None:
    on = corpus if name == "a" else synthetic_corpus
    (found,) = evaluate.evaluate([runs / name], on, sequences=16)
    expected = records(runs / name, "validation")[-1]
    for figure, value in found.report.items():
        if not isinstance(value, dict):
            assert value == pytest.approx(expected[figure], rel=1e-5), figure
    (references,) = records(runs / name, "references")
    for title, figures in found.references.items():
        assert figures == pytest.approx(references[title], rel=1e-6)
    assert found.model.identity.startswith(f"{name} step 2 (")


def test_the_command(runs: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = [str(runs / "a"), str(runs / "b"), "--corpus", str(corpus)]
    ((code, out, err),) = pretrain(arguments, script=EVALUATE)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split(" step")[0] for line in lines[:2]] == ["a", "b"]
    assert "loss_2A3" in lines[0]
    assert [line.split(":")[0] for line in lines[2:]] == ["channel median", "nucleotide median"]
    predicting = [*arguments, "--write-predictions", str(tmp_path / "pl"), "--classes", "noisy"]
    ((code, out, err),) = pretrain(predicting, script=EVALUATE)
    assert code == 0, err
    assert "30 train profiles of 2A3, DMS" in out
    assert ReactivityCorpus.open(tmp_path / "pl").count == 30
    assert "already exists" in refused(pretrain(predicting, script=EVALUATE))


@torch.no_grad()
def by_hand(run: Path, letters: str) -> np.ndarray:
    """[L, 2] of one sequence alone, forwards and backwards."""
    name, config, state = read_weights(run)
    model = model_of(name, config, state)
    tokens = torch.tensor([["ACGU".find(letter) % 5 for letter in letters]])
    both: torch.Tensor = (model(tokens)[0] + model(tokens.flip(1))[0].flip(0)) / 2
    return both.double().numpy()


def test_pseudo_labels_are_the_weighted_mean_of_both_directions(runs: Path, corpus: Path, tmp_path: Path) -> None:
    pair, chosen = [runs / "a", runs / "b"], SampleFilter.of("noisy")
    manifest = evaluate.write_predictions(pair, corpus, tmp_path / "pl", weights=[3, 1], chosen=chosen)
    assert verify_reactivity(tmp_path / "pl").intact
    source, made = ReactivityCorpus.open(corpus).view(chosen), ReactivityCorpus.open(tmp_path / "pl")
    assert made.accessions(np.arange(30)) == source.accessions(np.arange(30))
    for i in (0, 7, 29):
        (profile,) = made.profiles([i])
        letters = profile.letters.tobytes().decode()
        expected = 0.75 * by_hand(pair[0], letters) + 0.25 * by_hand(pair[1], letters)
        np.testing.assert_allclose(profile.values, expected, rtol=2e-3, atol=1e-4)  # half precision
    told = manifest["provenance"]
    checkpoints = [own_checkpoint(run) for run in pair]
    assert [one["sha256"] for one in told["checkpoints"]] == [one.sha256 for one in checkpoints if one]
    assert [one["name"] for one in told["checkpoints"]] == ["a step 2", "b step 2"]
    assert all(one["both_directions"] for one in told["checkpoints"])
    assert told["weights"] == [0.75, 0.25]
    assert told["source"]["fingerprint"] == source.corpus.fingerprint
    assert told["filter"] == chosen.key


@pytest.mark.slow
def test_sequences_longer_than_the_budget_and_a_kill(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = small_corpus(tmp_path, count=60)  # up to 120 nucleotides
    evaluate.write_predictions([runs / "a"], fasta, tmp_path / "whole" / "pl")
    opened = evaluate.open_trained(runs / "a")
    opened.settings.batch.tokens_per_micro_batch = 600  # a sequence of 120 costs 1,235

    def interrupted(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "open_trained", lambda path, config: opened)
    to = tmp_path / "killed" / "pl"
    with pytest.raises(KeyboardInterrupt):
        evaluate.write_predictions([runs / "a"], fasta, to, progress=interrupted)
    assert not to.exists()
    seen: list[int] = []
    evaluate.write_predictions([runs / "a"], fasta, to, progress=lambda phase, done, total: seen.append(done))
    assert seen[-1] == 60
    ids = np.arange(Corpus.open(fasta).count)
    both = [ReactivityCorpus.open(tmp_path / name / "pl").profiles(ids) for name in ("whole", "killed")]
    for one, other in zip(*both, strict=True):
        assert one.letters.tobytes() == other.letters.tobytes()
        np.testing.assert_allclose(one.values, other.values, rtol=2e-3, atol=1e-3)


def test_the_same_predictions_give_the_same_bytes(runs: Path, corpus: Path, tmp_path: Path) -> None:
    for place in ("x", "y"):
        evaluate.write_predictions([runs / "b"], corpus, tmp_path / place / "pl")
    assert content(tmp_path / "x" / "pl") == content(tmp_path / "y" / "pl")


def test_released_weights(runs: Path, corpus: Path, tmp_path: Path) -> None:
    release(runs / "a", tmp_path / "out", Options(licence="cc0-1.0"))
    (original,) = (tmp_path / "out" / "original").glob("*.pt")
    (expected,) = evaluate.evaluate([runs / "a"], corpus)
    (released,) = evaluate.evaluate([tmp_path / "out"], corpus)
    (read,) = evaluate.evaluate([original], corpus, config=str(runs / "a" / "recipe.yaml"))
    for found in (released, read):
        assert found.report["loss"] == pytest.approx(expected.report["loss"], rel=1e-5)
    with pytest.raises(PretrainError, match="name its recipe with --config"):
        list(evaluate.evaluate([original], corpus))


def test_several_processes_are_refused_in_one_sentence(runs: Path, corpus: Path) -> None:
    arguments = [str(runs / "a"), "--corpus", str(corpus)]
    sentence = refused(pretrain(arguments, ranks=2, script=EVALUATE))
    assert sentence == "error: evaluation is one process, but 2 were started; start it with plain python"


def refusals(runs: Path, corpus: Path, synthetic: Path, to: Path) -> dict[str, Callable[[], Any]]:
    a = runs / "a"
    return {
        "which predicts no profiles": lambda: evaluate.write_predictions([runs / "masked"], corpus, to),
        "one checkpoint is given twice": lambda: evaluate.write_predictions([a, a], corpus, to),
        "expected 1 numbers above 0": lambda: evaluate.write_predictions([a], corpus, to, weights=[1, 2]),
        "is a corpus of sequences, but this objective trains on reactivity": lambda: list(
            evaluate.evaluate([a], synthetic)
        ),
        "does not exist; give a run directory": lambda: evaluate.write_predictions([runs / "no"], corpus, to),
        "only a corpus of profiles can be filtered": lambda: evaluate.write_predictions(
            [a], synthetic, to, chosen=SampleFilter.of("noisy")
        ),
        "takes no sample": lambda: evaluate.write_predictions(
            [a], corpus, to, chosen=SampleFilter.of("noisy", max_length=3)
        ),
    }


def test_what_cannot_be(runs: Path, corpus: Path, synthetic_corpus: Path, tmp_path: Path) -> None:
    for sentence, call in refusals(runs, corpus, synthetic_corpus, tmp_path / "pl").items():
        with pytest.raises((DataError, PretrainError), match=sentence) as error:
            call()
        assert "\n" not in str(error.value)
        assert not list(tmp_path.iterdir())


def test_models_of_other_channels_are_not_averaged(
    runs: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (evaluate.open_trained(runs / name) for name in "ab")
    b.objective.config = SimpleNamespace(channels=["DMS", "2A3"], flip=0.5)
    monkeypatch.setattr(evaluate, "open_trained", lambda path, config: {"a": a, "b": b}[path.name])
    with pytest.raises(PretrainError, match="b step 2 predicts DMS, 2A3, but a step 2 predicts 2A3, DMS"):
        evaluate.write_predictions([runs / "a", runs / "b"], corpus, tmp_path / "pl")
