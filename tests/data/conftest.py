"""Small SentencePiece tokenizers, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizers(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small tokenizer of each kind, by kind."""
    from data.index import Corpus
    from data.sentencepiece_tokenizer import KINDS
    from data.sentencepiece_training import train_tokenizer

    folder, corpus = tmp_path_factory.mktemp("tokenizers"), Corpus.open(synthetic_corpus)
    for kind in KINDS:
        train_tokenizer(corpus, folder / kind, kind, vocabulary=160, sequences=150, seed=0)
    return {kind: folder / kind for kind in KINDS}
