"""RNA types as a model names them: the row that asks, the figures of a validation, the ranking of any sequences."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from data.alphabet import RNAERNIE, RNAERNIE_TYPES
from data.index import Corpus
from launch.cli import main_guard
from models.layouts import rnaernie as layout
from models.layouts.releasing import WriteOptions
from models.rnaernie import RNAErnie, RNAErnieConfig
from pretrain.errors import PretrainError
from pretrain.objectives.intervals import Intervals, Sample
from pretrain.objectives.intervals_config import IntervalsConfig
from pretrain.type_guided import rank_types
from pretrain.validation import Validation
from tests.models.conftest import telling_weights
from tests.pretrain.test_validation import Engine, Threads
from tests.ranks import QUICK, pretrain_well

ONLY_BASES = {"levels": {"base": 1, "span": 0, "motif": 0}}


def objective(**keys) -> Intervals:
    return Intervals(IntervalsConfig.of(**{"max_tokens": 128, **ONLY_BASES, **keys}))


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def test_the_row_that_asks_shows_every_letter_and_hides_the_type() -> None:
    trna = RNAERNIE.ids["[tRNA]"]
    samples = [Sample(letters("ACGU"), trna), Sample(letters("GG")), Sample(letters("A" * 200), trna)]
    batch = objective().ask_types(samples, np.arange(3, dtype=np.uint64))
    rows = [row.tolist() for row in torch.tensor_split(batch.tokens, batch.cu_seqlens[1:-1].long())]
    # specs/rnaernie 8: ACGU[IND][miRNA] is 1 6 7 8 9 28 38 2; here the type is <mask>, 4.
    assert rows[:2] == [[1, 6, 7, 8, 9, 28, 4, 2], [1, 8, 8, 28, 4, 2]]
    assert rows[2] == [1, *[6] * 124, 28, 4, 2]
    assert batch.targets.tolist()[::2] == [trna, trna]
    assert batch.target_index.tolist() == [6, 12, 8 + 6 + 126]
    assert batch.target_width.tolist()[::2] == [0, 0]


def test_types_are_all_28_or_those_of_the_configuration() -> None:
    assert [RNAERNIE.tokens[i] for i in objective().type_ids] == [f"[{name}]" for name in RNAERNIE_TYPES]
    some = objective(type_token={"types": ["tRNA", "pre_miRNA"]})
    assert [RNAERNIE.tokens[i] for i in some.type_ids] == ["[premiRNA]", "[tRNA]"]
    assert len(objective(type_token={"append": False}).type_ids) == 0


class ByFirstLetter(nn.Module):
    """Names a type by the first nucleotide; a letter always has the highest logit of all."""

    NAMED: ClassVar = {"A": "tRNA", "C": "rRNA", "G": "snoRNA", "U": "snRNA"}

    def forward(self, tokens, cu_seqlens, positions, max_seqlen, target_index):
        of_row = torch.searchsorted(cu_seqlens.long(), target_index, right=True) - 1
        logits = torch.zeros(len(target_index), len(RNAERNIE))
        for i, first in enumerate(tokens[cu_seqlens.long()[of_row] + 1].tolist()):
            name = self.NAMED.get(RNAERNIE.tokens[first])
            if name:
                logits[i, RNAERNIE.ids[f"[{name}]"]] = 5.0
        logits[:, RNAERNIE.ids["A"]] = 9.0
        return logits


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_validation_counts_right_types_and_the_most_frequent_one(synthetic_corpus: Path, ranks: int) -> None:
    corpus = Corpus.open(synthetic_corpus, "validation")
    report = Threads(ranks).run(Validation(corpus, objective(), 4096, 700), Engine(ByFirstLetter()))[0]
    ids = np.arange(corpus.count)
    true = [corpus.type_names[i] for i in corpus.types(ids)]
    first = [view.tobytes().decode()[0] for view in corpus.letters(ids)]
    right = sum(ByFirstLetter.NAMED.get(a) == b for a, b in zip(first, true, strict=True))
    assert report["type_accuracy"] == pytest.approx(right / corpus.count)
    assert report["type_majority"] == pytest.approx(Counter(true).most_common(1)[0][1] / corpus.count)
    assert report["type_sequences"] == corpus.count
    assert 0 < report["type_accuracy"] < 1


def test_types_that_are_not_trained_are_not_counted(synthetic_corpus: Path) -> None:
    corpus = Corpus.open(synthetic_corpus, "validation")
    some = Validation(corpus, objective(type_token={"types": ["tRNA", "rRNA"]}), 4096, 700)
    report = Threads(1).run(some, Engine(ByFirstLetter()))[0]
    true = Counter(corpus.type_names[i] for i in corpus.types(np.arange(corpus.count)))
    assert report["type_sequences"] == true["tRNA"] + true["rRNA"]
    assert report["type_majority"] == max(true["tRNA"], true["rRNA"]) / report["type_sequences"]


@pytest.mark.parametrize("types", [{"append": False}, {"mask_prob": 0.0}])
def test_a_run_that_never_asks_for_types_reports_none(synthetic_corpus: Path, types: dict) -> None:
    corpus = Corpus.open(synthetic_corpus, "validation")
    report = Threads(1).run(Validation(corpus, objective(type_token=types), 64, 700), Engine(ByFirstLetter()))[0]
    assert not [key for key in report if key.startswith("type_")]


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, RNAErnie]:
    model = telling_weights(RNAErnie(RNAErnieConfig(layers=2, width=32, heads=2, ffn=40))).eval()
    for name, write in (("full", layout.write_full), ("stripped", layout.write_stripped)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, model.state_dict(), model.config, WriteOptions(name))
    return tmp_path, model


def test_a_ranking_is_the_softmax_of_the_logits_of_types(release) -> None:
    folder, model = release
    texts = ["GGGAAACCC", "A", "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUG"]
    ranked = rank_types(str(folder / "full"), [letters(text) for text in texts])
    assert ranked.types == list(RNAERNIE_TYPES)
    for number, text in enumerate(texts):
        row = torch.tensor([1, *RNAERNIE.encode(text).tolist(), 28, 4, 2])
        n = len(row)
        with torch.no_grad():
            logits = model(row, torch.tensor([0, n], dtype=torch.int32), torch.arange(n), n)[n - 2, 29:57]
        expected = torch.softmax(logits.double(), 0).numpy()
        np.testing.assert_allclose(ranked.probabilities[number], expected, atol=1e-5)
        best = ranked.best(number, 3)
        assert [p for _, p in best] == sorted(ranked.probabilities[number], reverse=True)[:3]
        assert best[0][0] == RNAERNIE_TYPES[int(expected.argmax())]


def test_models_that_cannot_name_types_are_refused(release, synthetic_corpus: Path, tmp_path: Path) -> None:
    folder, _ = release
    with pytest.raises(PretrainError, match="stripped has 28 tokens and no RNA types among them; take a release that"):
        rank_types(str(folder / "stripped"), [letters("ACGU")])
    rnaernie = ["model.name=rnaernie", "model.vocab=57", "objective.alphabet=rnaernie", "budget.steps=1"]
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}"]
    pretrain_well([*QUICK, *rnaernie, *place, "run.name=plain"])
    with pytest.raises(PretrainError, match="plain was trained without type tokens"):
        rank_types(str(tmp_path / "plain"), [letters("ACGU")])
    never = ["objective.name=intervals", "objective.levels={motif: 0}", "objective.type_token.mask_prob=0"]
    pretrain_well([*QUICK, *rnaernie, *place, *never, "run.name=never"])
    with pytest.raises(PretrainError, match="it was never asked for a type, so its answer would mean nothing"):
        rank_types(str(tmp_path / "never"), [letters("ACGU")])


def test_the_command_prints_a_table_and_refuses_in_a_sentence(release, tmp_path, monkeypatch, capsys) -> None:
    folder, _ = release
    fasta = tmp_path / "some.fa"
    fasta.write_text(">one tRNA from 1 species\nGCGGAUUUAGCUCAGUU\n>two\nacgtacgt\n>three\n\n")
    arguments = ["rank_types.py", str(folder / "full"), "--sequences", str(fasta), "--top", "2"]
    path = list(sys.path)
    from launch import rank_types as command

    monkeypatch.setattr(sys, "path", path)
    monkeypatch.setattr(sys, "argv", arguments)
    assert main_guard(command.main)() == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "accession\ttype\tprobability"
    assert [line.split("\t")[0] for line in lines] == ["one", "one", "two", "two"]
    named = rank_types(str(folder / "full"), [letters("GCGGAUUUAGCUCAGUU"), letters("ACGUACGU")])
    assert [line.split("\t")[1] for line in lines] == [name for i in (0, 1) for name, _ in named.best(i, 2)]
    fasta.write_text(">none\n\n")
    assert main_guard(command.main)() == 2
    assert capsys.readouterr().err == (
        f"error: {fasta} holds no sequence that a model can read; give other --sequences.\n"
    )
