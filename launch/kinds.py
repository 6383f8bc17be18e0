"""The kinds of corpora that `launch/prepare.py` knows: how each is built from a config, checked and described.

A config says `kind:`, a manifest `kind`; where neither does, it is a corpus of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import structured
from data.alignment_config import KIND as ALIGNMENTS
from data.errors import DataError
from data.manifest import read_manifest
from data.reactivity_config import KIND as REACTIVITY
from data.verify import verify
from data.verify_alignments import verify_alignments
from data.verify_reactivity import verify_reactivity
from launch.alignment_card import write_alignment_card
from launch.alignment_tables import print_alignment_description
from launch.alignments_command import alignments_command
from launch.cli import find_config
from launch.corpus_card import write_card
from launch.corpus_tables import print_description
from launch.reactivity_card import write_reactivity_card
from launch.reactivity_command import reactivity_command
from launch.reactivity_tables import print_reactivity_description

SEQUENCES = "sequences"


@dataclass(frozen=True)
class Kind:
    """``verify`` returns a report with `intact`, `problems` and `path`, and ``contents`` says what an intact one

    holds; ``describe`` prints tables, ``card`` writes README.md and says so; ``build`` is the command that makes one.
    """

    verify: Callable[[Path], Any]
    contents: Callable[[Any], str]
    describe: Callable[[Path], None]
    card: Callable[[Path], str]
    build: Callable[[Sequence[str]], None] | None = None  # None: `launch/prepare.py` itself


def _sequences(report: Any) -> str:
    return (
        f"{report.sequences:,} sequences, {report.nucleotides:,} nucleotides in "
        f"{report.blocks:,} blocks of {report.shards:,} shards, {report.bytes / 1e6:,.1f} MB"
    )


KINDS = {
    SEQUENCES: Kind(verify, _sequences, print_description, write_card),
    ALIGNMENTS: Kind(
        verify_alignments,
        lambda report: str(report.contents),
        print_alignment_description,
        write_alignment_card,
        alignments_command,
    ),
    REACTIVITY: Kind(
        verify_reactivity, _sequences, print_reactivity_description, write_reactivity_card, reactivity_command
    ),
}


def kind_of_corpus(directory: Path) -> Kind:
    """By its manifest; one that cannot be read is left to whoever checks the corpus. Raises DataError if unknown."""
    try:
        manifest = read_manifest(directory)
    except DataError:
        return KINDS[SEQUENCES]
    return _known(str(directory), manifest.get("kind", SEQUENCES))


def kind_of_config(name: str) -> Kind:
    """By its key `kind`. Raises DataError if unknown, or if there is no such config."""
    path = find_config(name)
    return _known(str(path), structured.read_yaml(path).get("kind", SEQUENCES))


def _known(where: str, kind: object) -> Kind:
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}.")
    return KINDS[str(kind)]
