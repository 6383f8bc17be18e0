"""What a person sees while a run trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FIGURES = {  # of a validation, as they are shown: key -> name and decimals
    "loss": ("loss", 4),
    "perplexity": ("perplexity", 3),
    "accuracy": ("accuracy", 3),
    "perplexity_acgu": ("perplexity over A, C, G, U alone", 3),
    "type_accuracy": ("accuracy of the RNA type", 3),
    "type_majority": ("accuracy of always naming the most frequent type", 3),
}


class Console:
    """Rank 0's screen. ``shown`` on other ranks is False and everything is silent."""

    def __init__(self, total_steps: int, first_step: int, shown: bool):
        self._rich = RichConsole(quiet=not shown, highlight=False, soft_wrap=True)
        self._total, self._shown = total_steps, shown
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(20),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._rich)
            self._task = self._bar.add_task("", total=total_steps, completed=first_step)
            self._bar.start()

    def say(self, text: str) -> None:
        """One line for the person, above the bar where there is one."""
        self._rich.print(text, markup=False)
        if self._shown:
            sys.stdout.flush()

    def step(self, values: Mapping[str, Any]) -> None:
        """A logged training step."""
        text = describe(values)
        if self._bar is not None:
            self._bar.update(self._task, completed=values["step"], description=text)
        else:
            self.say(f"step {values['step']}/{self._total}  {text}")

    def validation(self, step: int, report: Mapping[str, Any]) -> None:
        """A validation, of one corpus where there are several."""
        of = f" of {report['corpus']}" if "corpus" in report else ""
        own = [key for key in report if key.startswith(("loss_", "contact_")) and not key.startswith("loss_per_")]
        figures = FIGURES | {key: (key.replace("_", " "), 4) for key in own}
        parts = [f"{name} {report[key]:.{digits}f}" for key, (name, digits) in figures.items() if key in report]
        self.say(f"validation{of} at step {step}: {'  '.join(parts)}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(values: Mapping[str, Any]) -> str:
    parts = [
        f"loss {values['loss']:.4f}",
        *(f"{name} {values[key]:.3f}" for key, name in (("perplexity", "ppl"), ("accuracy", "acc")) if key in values),
        f"lr {values['learning_rate']:.2e}",
        f"|g| {values['gradient_norm']:.2f}",
        f"{quantity(values['nucleotides_per_second'])} nt/s",
    ]
    if values.get("mfu") is not None:
        parts.append(f"MFU {100 * values['mfu']:.1f}%")
    parts.append(f"pad {100 * values['padding']:.0f}%")
    parts.append(f"ETA {duration(values['eta_seconds'])}")
    return "  ".join(parts)


def quantity(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    if seconds != seconds or seconds == float("inf"):
        return "?"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
