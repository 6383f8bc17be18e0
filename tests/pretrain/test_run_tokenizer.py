"""The copy of its tokenizer that a run keeps, and the refusal to go on with another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.alphabet import RINALMO
from data.index import Corpus
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.sentencepiece_training import train_tokenizer
from pretrain import recipe, run_tokenizer
from pretrain.errors import PretrainError


@pytest.fixture(scope="module")
def directories(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, corpus = tmp_path_factory.mktemp("tokenizers"), Corpus.open(synthetic_corpus)
    for seed in (0, 1):
        train_tokenizer(corpus, folder / str(seed), "bpe", vocabulary=60, sequences=50, seed=seed)
    return [folder / "0", folder / "1"]


def test_a_run_keeps_its_tokenizer_and_refuses_another(directories: list[Path], tmp_path: Path) -> None:
    first, second = map(SentencePieceTokenizer.load, directories)
    run_tokenizer.keep(tmp_path, second)
    run_tokenizer.keep(tmp_path, first)  # an attempt that saved nothing decides nothing
    kept = SentencePieceTokenizer.load(tmp_path / "tokenizer")
    assert kept.fingerprint == first.fingerprint
    run_tokenizer.require_same(tmp_path, first)
    run_tokenizer.require_same(tmp_path, kept)
    for other in (second, RINALMO):
        with pytest.raises(PretrainError, match=r"set objective\.tokenizer=.*tokenizer, or start a new run"):
            run_tokenizer.require_same(tmp_path, other)


def test_a_run_of_single_nucleotides_keeps_nothing(directories: list[Path], tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(directories[0])
    run_tokenizer.keep(tmp_path, tokenizer)
    run_tokenizer.keep(tmp_path, RINALMO)
    assert not list(tmp_path.iterdir())
    run_tokenizer.require_same(tmp_path, RINALMO)
    with pytest.raises(PretrainError, match=r"single nucleotides.*set objective\.tokenizer=null"):
        run_tokenizer.require_same(tmp_path, tokenizer)


def test_a_run_is_read_with_its_copy_when_the_original_is_gone(directories: list[Path], tmp_path: Path) -> None:
    original, run = tmp_path / "original", tmp_path / "run"
    run.mkdir()
    shutil.copytree(directories[0], original)
    settings = recipe.load(
        "demo.yaml", [f"objective.tokenizer={original}", "model.vocab=60", "data.corpus=x", "run.name=y"]
    )
    assert run_tokenizer.with_kept_tokenizer(settings, None) == settings
    run_tokenizer.keep(run, SentencePieceTokenizer.load(original))
    shutil.rmtree(original)
    assert run_tokenizer.with_kept_tokenizer(settings, run).objective.tokenizer == str(run / "tokenizer")
    with pytest.raises(PretrainError, match="the run's tokenizer cannot be read"):
        run_tokenizer.with_kept_tokenizer(settings, None)
    plain = recipe.load("demo.yaml", ["data.corpus=x"])
    assert run_tokenizer.with_kept_tokenizer(plain, run) is plain


def test_a_directory_that_cannot_be_written_is_a_sentence(directories: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = SentencePieceTokenizer.load(directories[0])
    with pytest.raises(PretrainError, match="the tokenizer cannot be kept in"):
        run_tokenizer.keep(tmp_path / "file", tokenizer)
