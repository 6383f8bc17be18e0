"""`launch/prepare.py motifs CORPUS --to FILE` and `npmi CORPUS --to FILE`: words mined from a corpus, for masking."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.errors import DataError

_SHOWN = 20  # words of the table


def motifs_command(arguments: Sequence[str]) -> None:
    """Finds k-mers that are more frequent in a corpus than a Markov chain explains, one sequence per cluster.

    Name the file in a recipe: objective.motif.mined=[FILE], or objective.motif.files=[FILE].
    """
    parser = _parser("motifs", motifs_command.__doc__, "6-10")
    parser.add_argument("--order", type=int, default=2, help="of the Markov background (2)")
    parsed = _parsed(parser, arguments)
    from data.index import Corpus  # after the arguments are known to be good
    from data.motif_mining import mine_enriched

    corpus = Corpus.open(parsed.corpus, "train")
    shortest, longest = parsed.k
    options = {"k": f"{shortest}-{longest}", "order": parsed.order, "top": parsed.top, "least": parsed.least}
    mined = mine_enriched(corpus, shortest, longest, parsed.top, parsed.order, parsed.least, parsed.sequences)
    _write(parsed.to, mined, corpus, "z", options, "objective.motif.mined")


def npmi_command(arguments: Sequence[str]) -> None:
    """Finds k-mers whose letters belong together: high normalised pointwise mutual information, however they are cut.

    Name the file in a recipe: objective.npmi.files=[FILE] objective.levels.npmi=1.
    """
    parsed = _parsed(_parser("npmi", npmi_command.__doc__, "4-8"), arguments)
    from data.index import Corpus  # after the arguments are known to be good
    from data.motif_mining import mine_npmi

    corpus = Corpus.open(parsed.corpus, "train")
    shortest, longest = parsed.k
    options = {"k": f"{shortest}-{longest}", "top": parsed.top, "least": parsed.least}
    mined = mine_npmi(corpus, shortest, longest, parsed.top, parsed.least, parsed.sequences)
    _write(parsed.to, mined, corpus, "npmi", options, "objective.npmi.files")


def _parser(name: str, description: str | None, lengths: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"prepare.py {name}",
        description=inspect.cleandoc(description or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path, help="a corpus directory, clustered for good reason")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the list to write")
    parser.add_argument("--k", type=_lengths, default=lengths, metavar="MIN-MAX", help=f"letters of a word; {lengths}")
    parser.add_argument("--top", type=int, default=1000, help="how many words (1000)")
    parser.add_argument("--least", type=int, default=20, help="occurrences that a word must have (20)")
    parser.add_argument(
        "--sequences", type=int, help="read only so many, one per cluster (a corpus is shuffled); all unless given"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return parser


def _lengths(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of lengths such as 6-10")
    return int(match[1]), int(match[2] or match[1])


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    parsed = parser.parse_args(arguments)
    if parsed.to.exists() and not parsed.overwrite:
        raise DataError(f"{parsed.to}: already exists; give --overwrite to replace it, or choose another --to.")
    return parsed


def _write(to: Path, mined: Any, corpus: Any, score: str, options: dict[str, Any], key: str) -> None:
    from data.motif_mining import write_words

    if not mined.words:
        raise DataError(f"{corpus.path}: no word of it qualifies; lower --least, or ask for other lengths with --k.")
    write_words(to, mined, corpus, score, options)
    table = Table("word", title=f"The first of {len(mined.words):,} words")
    for title in (score, "count", "expected"):
        table.add_column(title, justify="right")
    for word in mined.words[:_SHOWN]:
        table.add_row(word.letters, f"{word.score:.3g}", f"{word.count:,}", f"{word.expected:,.1f}")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    counted = "one per cluster" if corpus.clusters is not None else "not clustered: every sequence counts"
    console.print(
        f"counted in {mined.sequences:,} sequences ({counted}), {mined.nucleotides:,} nucleotides; written to {to}; "
        f"use it with {key}=[{to}]",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
