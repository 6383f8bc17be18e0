"""`launch/prepare.py tokenizer CORPUS --to DIR`: learns a tokenizer from a corpus and says what it does to it."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data.errors import DataError
from data.index import Corpus
from data.sentencepiece_tokenizer import KINDS, SPECIALS, SentencePieceTokenizer

_LENGTH_EDGES = (1, 50, 100, 200, 400, 1024, 2048)
_MEASURED = 2000  # sequences of the table


def tokenizer_command(arguments: Sequence[str]) -> None:
    """Learns a BPE or unigram vocabulary (SentencePiece) from the training split of a corpus.

    Name the directory in a recipe: objective.tokenizer=DIR, and its number of tokens: model.vocab. transformers
    loads the directory as well (AutoTokenizer.from_pretrained).
    """
    parser = argparse.ArgumentParser(
        prog="prepare.py tokenizer",
        description=inspect.getdoc(tokenizer_command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path, help="a corpus directory")
    parser.add_argument("--kind", choices=KINDS, default="bpe", help="of vocabulary (bpe)")
    parser.add_argument(
        "--vocabulary", type=int, default=1024, help="tokens, specials and single letters included (1024)"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the directory to make")
    parser.add_argument(
        "--sequences",
        type=int,
        default=20_000,
        help="training sequences to learn from, drawn at random (20000); memory grows",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which sequences (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    parsed = parser.parse_args(arguments)
    if parsed.to.exists() and not parsed.overwrite:
        raise DataError(f"{parsed.to}: already exists; give --overwrite to replace it, or choose another --to.")
    from data.sentencepiece_training import train_tokenizer  # after the arguments are known to be good

    corpus = Corpus.open(parsed.corpus, "train")
    tokenizer = train_tokenizer(
        corpus, parsed.to, parsed.kind, parsed.vocabulary, parsed.sequences, parsed.seed, parsed.overwrite
    )
    _print(tokenizer, corpus, parsed.to)


def _print(tokenizer: SentencePieceTokenizer, corpus: Corpus, to: Path) -> None:
    sample, pieces = tokenizer.settings["sample"], tokenizer.tokens[len(SPECIALS) :]
    by_length = np.bincount([len(piece) for piece in pieces])
    table = Table("nucleotides", title="Training sequences as tokens")
    for title in ("sequences", "nucleotides per token"):
        table.add_column(title, justify="right")
    sequences = corpus.letters(np.arange(min(_MEASURED, corpus.count)))
    nucleotides = np.array([len(sequence) for sequence in sequences])
    tokens = np.array([len(tokenizer.encode(sequence)) for sequence in sequences])
    for low, high in zip(_LENGTH_EDGES, [*_LENGTH_EDGES[1:], np.iinfo(np.int64).max], strict=True):
        mine = (nucleotides >= low) & (nucleotides < high)
        if mine.any():
            name = f"{low} - {high - 1}" if high < np.iinfo(np.int64).max else f"{low} - more"
            table.add_row(name, f"{mine.sum():,}", f"{nucleotides[mine].sum() / tokens[mine].sum():.2f}")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    lines = [
        f"{len(tokenizer):,} tokens: {len(SPECIALS)} special, "
        + ", ".join(f"{n:,} of {length}" for length, n in enumerate(by_length.tolist()) if n)
        + " nucleotides",
        f"learned from {sample['sequences']:,} sequences with {sample['nucleotides']:,} nucleotides",
        f"written to {to}, fingerprint {tokenizer.fingerprint[:16]}; use it with objective.tokenizer={to} "
        f"model.vocab={len(tokenizer)}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
