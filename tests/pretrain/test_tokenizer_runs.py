"""A run whose tokens are pieces: trained, resumed, refused another tokenizer, released, and trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from data.index import Corpus
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.sentencepiece_training import train_tokenizer
from models.layouts.detect import read_checkpoint
from pretrain import recipe, release
from pretrain.checkpoint import newest
from pretrain.errors import PretrainError
from pretrain.initialise import build_model, load_initial
from pretrain.release import Options
from tests.ranks import TINY, pretrain, pretrain_well, records, refused


@pytest.fixture(scope="module")
def tokenizers(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, corpus = tmp_path_factory.mktemp("tokenizers"), Corpus.open(synthetic_corpus)
    for seed in (0, 1):
        train_tokenizer(corpus, folder / str(seed), "bpe", vocabulary=100, sequences=100, seed=seed)
    return [folder / "0", folder / "1"]


def arguments(corpus: Path, tokenizer: Path, *more: str) -> list[str]:
    fixed = [f"data.corpus={corpus}", f"objective.tokenizer={tokenizer}", "model.vocab=100", "batch.sequences=8"]
    quick = ["schedule.warmup_steps=1", "validation.sequences=16", "tracking.log_every_steps=1"]
    return ["--config", "demo.yaml", *TINY, *fixed, *quick, *more]


@pytest.fixture(scope="module")
def run(synthetic_corpus: Path, tokenizers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps on one rank; the tokenizer that it was started with is gone."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tokenizers[0], folder / "tokenizer")
    more = [f"run.directory={folder}", "run.name=pieces", "budget.steps=3"]
    pretrain_well(arguments(synthetic_corpus, folder / "tokenizer", *more))
    shutil.rmtree(folder / "tokenizer")
    return folder / "pieces"


def test_the_run_keeps_its_tokenizer_and_counts_tokens_and_nucleotides_as_read(
    run: Path, tokenizers: list[Path], synthetic_corpus: Path
) -> None:
    kept = SentencePieceTokenizer.load(run / "tokenizer")
    assert kept.fingerprint == SentencePieceTokenizer.load(tokenizers[0]).fingerprint
    progress = newest(run / "checkpoints").progress
    assert progress.nucleotides == records(run, "train")[-1]["nucleotides"]
    assert 24 * 2 < progress.tokens < 0.7 * progress.nucleotides
    validation = records(run, "validation")[-1]
    assert 0 < validation["loss_per_nucleotide"] < 0.8 * validation["loss"]
    assert "generator_bound" not in records(run, "references")[-1]


def test_two_ranks_give_the_losses_of_one(
    run: Path, tokenizers: list[Path], synthetic_corpus: Path, tmp_path: Path
) -> None:
    more = [f"run.directory={tmp_path}", "run.name=two", "budget.steps=3", "batch.tokens_per_micro_batch=1024"]
    pretrain_well(arguments(synthetic_corpus, tokenizers[0], *more), ranks=2)
    one, two = records(run, "train"), records(tmp_path / "two", "train")
    assert [r["nucleotides"] for r in one] == [r["nucleotides"] for r in two]
    assert [r["targets"] for r in one] == [r["targets"] for r in two]
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)


def test_a_run_is_not_continued_with_another_tokenizer(
    run: Path, tokenizers: list[Path], synthetic_corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "pieces")
    more = [f"run.directory={tmp_path}", "run.name=pieces", "budget.steps=4"]
    told = refused(pretrain(arguments(synthetic_corpus, tokenizers[1], *more)))
    assert "was started with the tokenizer" in told
    pretrain_well(arguments(synthetic_corpus, tmp_path / "pieces" / "tokenizer", *more))
    assert newest(tmp_path / "pieces" / "checkpoints").progress.step == 4


def test_a_release_in_our_own_layout_holds_weights_and_tokenizer(run: Path, tmp_path: Path) -> None:
    _, (checked,) = release.release(run, tmp_path / "release", Options())
    assert (checked.layout, checked.largest_difference) == ("rnafoundry", 0.0)
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "sentencepiece.json",
        "sentencepiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    name, config, state = read_checkpoint(tmp_path / "release")
    trained = newest(run / "checkpoints").weights()
    assert (name, config.vocab) == ("rinalmo", 100)
    assert torch.equal(state["embed.weight"], trained["embed.weight"])
    assert "library_name" not in (tmp_path / "release" / "README.md").read_text()
    assert "pieces (SentencePiece)" in (tmp_path / "release" / "README.md").read_text()


def test_transformers_loads_the_tokenizer_of_a_release(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    from transformers import AutoTokenizer

    release.release(run, tmp_path / "release", Options())
    ours, theirs = SentencePieceTokenizer.load(run / "tokenizer"), AutoTokenizer.from_pretrained(tmp_path / "release")
    assert theirs("ACGTacguNNRY")["input_ids"] == [0, *ours.encode("ACGUACGUNNRY").tolist(), 2]


@pytest.mark.parametrize("layout", ["multimolecule", "original"])
def test_layouts_of_single_nucleotides_are_refused(run: Path, layout: str, tmp_path: Path) -> None:
    with pytest.raises(
        PretrainError, match=f"no {layout} layout for a rinalmo model whose tokens are pieces; choose --layout"
    ):
        release.release(run, tmp_path / "release", Options(layouts=(layout,)))
    assert not list(tmp_path.iterdir())


def test_weights_of_pieces_start_only_a_run_of_the_same_pieces(
    run: Path, tokenizers: list[Path], synthetic_corpus: Path, tmp_path: Path
) -> None:
    release.release(run, tmp_path / "release", Options())
    for source in (run, newest(run / "checkpoints").path, tmp_path / "release"):
        for tokenizer in tokenizers:
            overrides = [a for a in arguments(synthetic_corpus, tokenizer, f"init_from={source}") if "=" in a]
            settings = recipe.load("demo.yaml", overrides)
            model = build_model(settings)
            if tokenizer is tokenizers[0]:
                load_initial(model, settings)
            else:
                with pytest.raises(PretrainError, match="whose ids mean other letters"):
                    load_initial(model, settings)
