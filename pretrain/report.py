"""A run's curves and what they mean: PNGs and one HTML page, from the run directory alone.

Reads metrics.jsonl, recipe.yaml and environment.json; needs neither the corpus nor a GPU, and works while a run trains.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from pretrain.console import duration, quantity
from pretrain.errors import PretrainError
from pretrain.report_pictures import NOT_DRAWN, draw_curves, draw_throughput, of_kind, series, title
from pretrain.tracking import Record, of_stage, read_metrics


def write_report(run: Path, to: Path | None = None) -> list[Path]:
    """Write curves.png, throughput.png and report.html into ``to`` (the run directory unless given).

    Raises PretrainError when the run has no metrics yet.
    """
    metrics = read_metrics(run / "metrics.jsonl")
    training = of_kind(metrics, "train")
    if not training:
        raise PretrainError(_why_nothing(run))
    to = to or run
    curves, throughput, page = to / "curves.png", to / "throughput.png", to / "report.html"
    try:
        to.mkdir(parents=True, exist_ok=True)
        draw_curves(curves, run.name, metrics)
        draw_throughput(throughput, run.name, training)
        page.write_text(_page(run, metrics, [curves, throughput]), encoding="utf-8")
    except OSError as error:
        raise PretrainError(f"the report cannot be written to {to} ({error}); choose a directory with --to") from error
    return [curves, throughput, page]


def _why_nothing(run: Path) -> str:
    """What a directory without a training step is instead."""
    if not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        return f"{run} {what}; give a run directory, such as runs/NAME"
    if (run / "logs").is_dir() or (run / "metrics.jsonl").is_file():
        return f"the run {run} has no training step yet; the last lines in {run / 'logs'} say where it stands"
    return f"{run} is no run directory, it has no metrics.jsonl; give one such as runs/NAME"


def summary(run: Path) -> str:
    """How far training got, in a few lines: against trivial models and, where it is known, the best possible loss.

    Of every corpus that is validated on, the last validation.
    """
    metrics = read_metrics(run / "metrics.jsonl")
    validation = series(of_kind(metrics, "validation"))
    if not validation:
        return "no validation yet"
    references = series(of_kind(metrics, "references"))
    lines = []
    for name, found in validation.items():
        same_targets = of_stage(references.get(name, []), found[-1].get("stage"))
        lines.append(_told(name, found[-1], same_targets[-1] if same_targets else {}))
    return "\n".join(lines)


def _told(corpus: str, last: Record, references: Record) -> str:
    of = f" of {corpus}" if corpus else ""
    lines = [f"validation{of} at step {last['step']}: {_figures(last)}"]
    for key, values in references.items():
        if isinstance(values, dict) and "loss" in values:
            lines.append(f"  {title(key)}: {_figures(values)}")
    if "generator_bound" in references:
        start, bound = references["letter_frequencies"]["loss"], references["generator_bound"]["loss"]
        share = (start - last["loss"]) / (start - bound)
        lines.append(f"  {share:.0%} of the way from letter frequencies to the best loss that the generator allows")
    return "\n".join(lines)


def _figures(values: Record) -> str:
    """The loss and whatever else this objective reports, in words."""
    shown = [f"loss {values['loss']:.4f}"]
    if values.get("perplexity") is not None:
        shown.append(f"perplexity {values['perplexity']:.3f}")
    for key, value in values.items():
        own = key.startswith(("loss_", "contact_precision", "type_accuracy")) and key not in NOT_DRAWN
        if own and value is not None:
            shown.append(f"{'loss ' * key.startswith('loss_')}{title(key)} {value:.4f}")
    return ", ".join(shown)


def _page(run: Path, metrics: list[Record], pictures: list[Path]) -> str:
    training, validation, saves = (of_kind(metrics, kind) for kind in ("train", "validation", "checkpoint"))
    last = training[-1]
    rows = {
        "Steps": f"{last['step']:,}",
        "Epoch": f"{last['epoch']:.3f}",
        "Sequences seen": f"{last['sequences']:,}",
        "Nucleotides seen": quantity(last["nucleotides"]),
        "Training loss": f"{last['loss']:.4f}",
        "Nucleotides per second": quantity(last["nucleotides_per_second"]),
        "MFU": f"{100 * last['mfu']:.1f} %" if last.get("mfu") else "unknown peak",
        "Padding": f"{100 * last['padding']:.1f} %",
        "Skipped steps": last["skipped_steps"],
        "Remaining": duration(last["eta_seconds"]),
        **_saving(saves),
    }
    parts = [f"<h1>{html.escape(run.name)}</h1>", f"<pre>{html.escape(summary(run))}</pre>", _table(rows)]
    parts += [_picture(path) for path in pictures]
    for name, found in series(validation).items():
        if found[-1].get("types"):
            parts += [f"<h2>Validation by RNA type {html.escape(name)}</h2>", _types_table(found[-1]["types"])]
    for name in ("environment.json", "recipe.yaml"):
        if (run / name).is_file():
            parts.append(f"<h2>{name}</h2><pre>{html.escape(_pretty(run / name))}</pre>")
    style = "body{font-family:sans-serif;max-width:1200px;margin:2em auto}td,th{padding:2px 12px;text-align:left}"
    title = html.escape(run.name)
    head = f"<meta charset='utf-8'><title>{title}</title><style>{style} img{{max-width:100%}}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _saving(saves: list[Record]) -> dict[str, str]:
    """What checkpoints cost: their size, and for how long training waited for one of them."""
    if not saves:
        return {}
    middle = sorted(saves, key=lambda save: save["waited_seconds"])[len(saves) // 2]
    seconds, steps = middle["waited_seconds"], middle["waited_steps"]
    steps = "" if steps is None else f", {steps:.2f} steps"
    return {
        "Checkpoints": f"{len(saves)} of {saves[-1]['bytes'] / 1e6:,.1f} MB; training waited {seconds:.3g} s{steps}"
    }


def _types_table(types: dict[str, Record]) -> str:
    head = "<tr><th>RNA type</th><th>masked tokens</th><th>loss</th><th>perplexity</th><th>accuracy</th></tr>"
    ordered = sorted(types.items(), key=lambda pair: -pair[1]["targets"])
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{row['targets']:,}</td><td>{row['loss']:.4f}</td>"
        f"<td>{row['perplexity']:.3f}</td><td>{row['accuracy']:.3f}</td></tr>"
        for name, row in ordered
    )
    return f"<table>{head}{body}</table>"


def _table(rows: dict[str, Any]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><td>{k}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        + "</table>"
    )


def _picture(path: Path) -> str:
    """Embedded, so that the page is one file that can be sent."""
    return f"<img alt='{path.stem}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"


def _pretty(path: Path) -> str:
    text = path.read_text()
    return json.dumps(json.loads(text), indent=1) if path.suffix == ".json" else text
