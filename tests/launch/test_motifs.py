"""`launch/prepare.py motifs` and `npmi`: what they write and print, and their refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.formats.motifs import read_motifs
from data.index import Corpus
from launch.cli import main_guard
from launch.motifs_command import motifs_command, npmi_command
from launch.prepare import COMMANDS

RUN = {"motifs": main_guard(lambda a: motifs_command(a)), "npmi": main_guard(lambda a: npmi_command(a))}


@pytest.mark.parametrize(
    ("name", "lengths", "hint"),
    [("motifs", (6, 7), "objective.motif.mined=["), ("npmi", (5, 6), "objective.npmi.files=[")],
)
def test_a_list_of_words_with_one_command(
    name: str,
    lengths: tuple[int, int],
    hint: str,
    synthetic_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "lists" / f"{name}.txt"
    options = ["--to", str(to), "--k", f"{lengths[0]}-{lengths[1]}", "--top", "40"]
    assert RUN[name]([str(synthetic_corpus), *options]) == 0
    printed = capsys.readouterr().out
    assert "The first of 40 words" in printed
    assert f"{hint}{to}]" in printed
    words = read_motifs([to]).words
    assert len(words) == 40
    assert {len(word) for word in words} <= set(range(lengths[0], lengths[1] + 1))
    assert Corpus.open(synthetic_corpus).fingerprint in to.read_text()
    assert name in COMMANDS


@pytest.mark.parametrize("name", ["motifs", "npmi"])
def test_an_existing_file_is_kept_unless_told_otherwise(
    name: str, synthetic_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "mine.txt"
    to.write_text("mine")
    assert RUN[name]([str(synthetic_corpus), "--to", str(to)]) == 2
    assert capsys.readouterr().err == (
        f"error: {to}: already exists; give --overwrite to replace it, or choose another --to.\n"
    )
    assert to.read_text() == "mine"
    assert RUN[name]([str(synthetic_corpus), "--to", str(to), "--overwrite", "--top", "5", "--sequences", "300"]) == 0
    assert len(read_motifs([to]).words) == 5
    assert "300 sequences" in to.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "6-20"], "words of 6 to 20 letters are not possible"),
        (["--top", "0"], "the number of words is 0"),
        (["--least", "100000000"], "no word of it qualifies; lower --least"),
        (["--order", "9"], "a Markov background of order 9"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(
    options: list[str], message: str, synthetic_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RUN["motifs"]([str(synthetic_corpus), "--to", str(tmp_path / "words.txt"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RUN["npmi"]([str(tmp_path / "none"), "--to", str(tmp_path / "words.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err
