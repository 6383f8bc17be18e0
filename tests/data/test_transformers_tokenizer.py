"""transformers reads a directory of ours and gives the same ids, ties and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.index import Corpus
from data.sentencepiece_tokenizer import KINDS, STRETCH, SentencePieceTokenizer
from data.sentencepiece_training import train_tokenizer
from data.transformers_tokenizer import last_merge
from tests.data.test_tokenizer import LETTERS, random_texts


def hard_texts() -> list[str]:
    """Ties and near-ties without end, stretches, letters out of the ordinary."""
    return [
        *random_texts("ACGU", 800, 400),
        *random_texts("ACGTacgtu", 300, 300),
        *random_texts(LETTERS + LETTERS.lower(), 300, 200),
        *random_texts("ACGUXx-. nN?E<é", 200, 80),
        *random_texts("AU", 200, 1500),
        *random_texts("AAAAAAAAAG", 300, 300),
        *("A" * n for n in (*range(1, 120), STRETCH - 1, STRETCH, STRETCH + 1, 5 * STRETCH)),
        *("N" * n for n in (1, 2, STRETCH + 1)),
        *(unit * 1500 for unit in ("AAG", "GGC", "AUAU", "GCGCC")),
    ]


def disagreements(directory: Path, texts: list[str]) -> list[str]:
    from transformers import AutoTokenizer

    ours, theirs = SentencePieceTokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    expected = theirs(texts)["input_ids"]
    return [text for text, row in zip(texts, expected, strict=True) if [0, *ours.encode(text).tolist(), 2] != row]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(kind: str, tokenizers: dict[str, Path], synthetic_corpus: Path) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    letters = Corpus.open(synthetic_corpus).letters(np.arange(1000))
    assert disagreements(tokenizers[kind], [*hard_texts(), *(x.tobytes().decode() for x in letters)]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_finds_special_tokens_pads_and_decodes(kind: str, tokenizers: dict[str, Path]) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(tokenizers[kind]), SentencePieceTokenizer.load(tokenizers[kind])
    assert len(theirs) == len(ours)
    found = [theirs.cls_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.mask_token_id]
    assert found == [0, 1, 2, 3, 4]
    acgu, g = ours.encode("ACGU").tolist(), ours.encode("G").tolist()
    assert theirs("acgt<mask>ACGU")["input_ids"] == [0, *acgu, 4, *acgu, 2]
    padded = theirs(["ACGU", "G"], padding=True)["input_ids"]
    assert padded == [[0, *acgu, 2], [0, *g, 2, *[1] * (len(acgu) - 1)]]
    assert theirs.decode(theirs("ACGTNN")["input_ids"], skip_special_tokens=True) == "ACGUNN"
    assert theirs("AC", "GU")["input_ids"] == [0, *ours.encode("AC"), 2, *ours.encode("GU"), 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids_on_real_rna(kind: str, tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    from data.corpus import prepare
    from tests.data.corpora import config

    prepare(config(tmp_path / "corpus", shared_data / "sequences" / "nrc_train_6320_13classes.fasta.gz"))
    corpus = Corpus.open(tmp_path / "corpus")
    train_tokenizer(corpus, tmp_path / "tokenizer", kind, vocabulary=512, sequences=2000, seed=0)
    texts = [x.tobytes().decode() for x in corpus.letters(np.arange(corpus.count))]
    assert len(texts) > 4000
    assert disagreements(tmp_path / "tokenizer", texts + [text.replace("U", "T").lower() for text in texts]) == []


def test_the_last_merge_of_a_piece() -> None:
    scores = {"AA": 0.0, "AAA": -1.0, "GA": -2.0, "GAA": -3.0, "CC": -4.0, "UCCU": -5.0}
    assert last_merge("AA", scores) == ["A", "A"]
    assert last_merge("AAA", scores) == ["AA", "A"]
    assert last_merge("GAA", scores) == ["G", "AA"]
    assert last_merge("UCCU", scores) is None  # U CC U: no two neighbours make up a piece
