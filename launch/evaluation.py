"""How `launch/evaluate.py` calls the evaluation and prints what comes of it."""

from __future__ import annotations

import argparse
from typing import Any

from data.reactivity_filter import CLASSES, SampleFilter
from launch.corpus_tables import build_progress
from pretrain import evaluate
from pretrain.errors import PretrainError

_ONLY_PREDICTING = ("weights", "classes", "max_length", "overwrite")


def show(arguments: argparse.Namespace) -> int:
    """Prints the figures of every model, and once those of trivial ones."""
    for option in _ONLY_PREDICTING:
        if getattr(arguments, option):
            raise PretrainError(f"--{option.replace('_', '-')} goes with --write-predictions")
    if arguments.sequences is not None and arguments.sequences < 1:
        raise PretrainError(f"--sequences is {arguments.sequences}, but must be at least 1")
    references: dict[str, Any] = {}
    for found in evaluate.evaluate(arguments.runs, arguments.corpus, arguments.config, arguments.sequences):
        print(f"{found.model.identity}: {_line(found.report)}", flush=True)
        for name, figures in found.report.get("types", {}).items():
            print(f"  {name}: {_line(figures)}")
        references = found.references
    for name, figures in references.items():
        print(f"{name.replace('_', ' ')}: {_line(figures)}")
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Writes predictions, with progress, and says what was written."""
    if arguments.sequences is not None:
        raise PretrainError("--sequences goes with validation figures; choose what to predict for with --classes")
    chosen = None
    if arguments.classes or arguments.max_length:
        chosen = SampleFilter.of(arguments.classes or CLASSES, max_length=arguments.max_length)
    with build_progress() as progress:
        manifest = evaluate.write_predictions(
            arguments.runs,
            arguments.corpus,
            arguments.write_predictions,
            config=arguments.config,
            weights=arguments.weights,
            chosen=chosen,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    told = manifest["provenance"]
    counts = {split: figures["sequences"] for split, figures in manifest["splits"].items() if figures["sequences"]}
    made = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    print(f"{arguments.write_predictions}: {made} profiles of {', '.join(manifest['channels'])},")
    print(f"  predicted for {told['source']['name']} by")
    for name, weight in zip(told["models"], told["weights"], strict=True):
        print(f"    {name}, weight {weight:.3g}")
    return 0


def _line(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
    return "  ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4f}" for key, value in shown.items()
    )
