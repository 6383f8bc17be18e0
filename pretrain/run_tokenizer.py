"""The tokenizer that a run keeps: a copy of its directory in the run directory, so the run needs nothing outside it.

Single-nucleotide vocabularies are part of the program and leave no copy. A run may only be continued with the tokenizer
that it was started with: with another one the same ids would mean other letters.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from data.errors import DataError
from data.sentencepiece_tokenizer import SETTINGS, SentencePieceTokenizer
from data.tokenizer import Tokenizer
from pretrain.config import Recipe
from pretrain.errors import PretrainError

NAME = "tokenizer"


def keep(run: Path, tokenizer: Tokenizer) -> None:
    """Copy the tokenizer of a new run into its directory, replacing what an earlier attempt left. One rank only."""
    kept, aside = run / NAME, run / f".{NAME}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)
        if isinstance(tokenizer, SentencePieceTokenizer):
            copy_files(tokenizer, aside)
            aside.rename(kept)
    except OSError as error:
        raise PretrainError(
            f"the tokenizer cannot be kept in {run} ({error}); mend it, or set run.directory"
        ) from error


def copy_files(tokenizer: SentencePieceTokenizer, to: Path) -> None:
    """Copy a tokenizer's own files into the directory ``to``, created if absent, and check the copies."""
    to.mkdir(parents=True, exist_ok=True)
    for name in (*tokenizer.settings["files"], SETTINGS):
        shutil.copyfile(tokenizer.path.parent / name, to / name)
    SentencePieceTokenizer.load(to)


def require_same(run: Path, tokenizer: Tokenizer) -> None:
    """Raises PretrainError if the run was started with another tokenizer than this one."""
    before = fingerprint_of(run / NAME)
    now = tokenizer.fingerprint if isinstance(tokenizer, SentencePieceTokenizer) else None
    if before != now:
        raise PretrainError(
            f"{run} was started with {_called(before)}, but the recipe now gives {_called(now)}, whose ids mean other "
            + (f"letters; set objective.tokenizer={run / NAME}" if before else "letters; set objective.tokenizer=null")
            + ", or start a new run"
        )


def require_same_origin(source: Path, settings: Recipe) -> None:
    """Raises PretrainError if the weights in ``source`` (whatever `init_from` accepts) belong to another tokenizer."""
    places = (source, source / NAME, source.parent.parent / NAME)  # a release, a run, a checkpoint in a run
    before = next((found for found in map(fingerprint_of, places) if found), None)
    named = getattr(settings.objective, "tokenizer", None)
    now = SentencePieceTokenizer.load(named).fingerprint if named else None
    if before != now:
        raise PretrainError(
            f"init_from={settings.init_from} was trained with {_called(before)}, but the recipe gives {_called(now)}, "
            "whose ids mean other letters; set objective.tokenizer to the one of those weights"
        )


def fingerprint_of(directory: Path) -> str | None:
    """Of the tokenizer in a directory; None where there is none. Raises DataError if it is damaged."""
    return SentencePieceTokenizer.load(directory).fingerprint if (directory / SETTINGS).is_file() else None


def with_kept_tokenizer(settings: Recipe, run: Path | None) -> Recipe:
    """The recipe of a run, its tokenizer taken from the copy in the run directory ``run`` where there is one.

    Raises PretrainError if the recipe has a tokenizer and neither the copy nor the original is there.
    """
    named = getattr(settings.objective, "tokenizer", None)
    if named is None:
        return settings
    place = run / NAME if run is not None and (run / NAME / SETTINGS).is_file() else Path(named)
    try:
        SentencePieceTokenizer.load(place)
    except DataError as error:
        raise PretrainError(
            f"the run's tokenizer cannot be read ({error}) Give the run directory itself, which holds a copy."
        ) from error
    objective = dataclasses.replace(settings.objective, tokenizer=str(place))
    return dataclasses.replace(settings, objective=objective)


def _called(fingerprint: str | None) -> str:
    return f"the tokenizer {fingerprint[:16]}" if fingerprint else "single nucleotides"
