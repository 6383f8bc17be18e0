"""`launch/prepare.py tokenizer`: what it makes and prints, and its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.index import Corpus
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from launch.cli import main_guard
from launch.tokenizer_command import tokenizer_command

COMMAND = main_guard(lambda arguments: tokenizer_command(arguments))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_with_one_command(
    kind: str, synthetic_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "tokenizers" / kind
    options = ["--kind", kind, "--vocabulary", "120", "--to", str(to), "--sequences", "100", "--seed", "4"]
    assert COMMAND([str(synthetic_corpus), *options]) == 0
    printed = capsys.readouterr().out
    assert "120 tokens: 5 special, 16 of 1," in printed
    assert "learned from 100 sequences" in printed
    assert f"objective.tokenizer={to} model.vocab=120" in printed
    assert "nucleotides per token" in printed
    made = SentencePieceTokenizer.load(to)
    assert (made.settings["kind"], made.settings["seed"], len(made)) == (kind, 4, 120)
    assert made.settings["corpus"]["fingerprint"] == Corpus.open(synthetic_corpus).fingerprint


def test_an_existing_directory_is_kept_unless_told_otherwise(
    synthetic_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "tokenizer"
    to.mkdir()
    (to / "mine.txt").write_text("mine")
    arguments = [str(synthetic_corpus), "--to", str(to), "--vocabulary", "60", "--sequences", "50"]
    assert COMMAND(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {to}: already exists; give --overwrite to replace it, or choose another --to.\n"
    )
    assert (to / "mine.txt").exists()
    assert COMMAND([*arguments, "--overwrite"]) == 0
    assert len(SentencePieceTokenizer.load(to)) == 60
    assert not (to / "mine.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocabulary", "10"], "the vocabulary is 10, expected 22 to"),
        (["--vocabulary", "100000", "--sequences", "3"], "more than the sample supports"),
        (["--sequences", "0"], "the sample is 0 sequences"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(
    options: list[str], message: str, synthetic_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND([str(synthetic_corpus), "--to", str(tmp_path / "tokenizer"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND([str(tmp_path / "none"), "--to", str(tmp_path / "tokenizer")]) == 2
    assert "does not exist" in capsys.readouterr().err
