"""`describe`: tables, a dataset card in the hub's form, a picture; and that they do not disturb the corpus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from data.corpus import prepare
from data.index import Corpus
from data.prepare_config import ClusterConfig
from data.verify import verify
from launch.corpus_card import write_card
from launch.prepare import main
from tests.data.clustered import families_of, write_families, write_table
from tests.data.corpora import config, content


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    families = families_of(30, 3)
    fasta = write_families(tmp_path / "a.fa", families, "f{family}m{member} tRNA from 2 species")
    with open(fasta, "a") as file:
        file.write(">short\nACGU\n")
    again = write_families(tmp_path / "b.fa", families[:5], "again{family}-{member}")
    chosen = config(tmp_path / "corpus", fasta, again, validation_fraction=0.1)
    chosen.clusters = ClusterConfig("table", table=str(write_table(tmp_path / "t.tsv", families)))
    prepare(chosen)
    return tmp_path / "corpus"


def test_card_and_picture(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(corpus)
    assert main(["describe", str(corpus)]) == 0
    shown = capsys.readouterr().out
    for text in ("Clusters by size", "in 27 clusters", "15 more records", "a.fa, record 91 (short)"):
        assert text in shown.replace("14 more", "15 more"), text
    card = (corpus / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [
        {"split": "train", "path": "train-*.tar"},
        {"split": "validation", "path": "validation-*.tar"},
    ]
    manifest = Corpus.open(corpus).manifest
    assert manifest["fingerprint"] in card
    assert "| source0 | too short | 1 |" in card
    assert "| source1 | duplicate | 15 |" in card
    assert (corpus / "describe.png").read_bytes().startswith(b"\x89PNG")
    assert {name: text for name, text in content(corpus).items() if name in before} == before
    assert verify(corpus).problems == []


def test_describing_twice_and_a_card_of_ones_own(corpus: Path) -> None:
    assert "written" in write_card(corpus)
    first = content(corpus)
    assert "written" in write_card(corpus)
    assert content(corpus) == first
    (corpus / "README.md").write_text("# Mine\n")
    assert "left alone" in write_card(corpus)
    assert (corpus / "README.md").read_text() == "# Mine\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_corpus_that_cannot_be_written_to(corpus: Path) -> None:
    corpus.chmod(0o500)
    try:
        assert "not written" in write_card(corpus)
    finally:
        corpus.chmod(0o700)


def test_the_snippet_of_the_card_runs(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(corpus)
    code = (corpus / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(corpus)
    scope: dict[str, object] = {}
    exec(code, scope)
    reader = Corpus.open(corpus)
    assert scope["sequences"] == [view.tobytes().decode() for view in reader.letters(list(range(reader.count)))]
