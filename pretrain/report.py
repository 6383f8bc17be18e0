"""A run's curves and what they mean: PNGs and one HTML page, from the run directory alone.

Reads metrics.jsonl, recipe.yaml and environment.json; needs neither the corpus nor a GPU, and works while a run trains.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from pretrain.console import duration, quantity
from pretrain.errors import PretrainError
from pretrain.tracking import Record, read_metrics

TITLES = {
    "letter_frequencies": "letter frequencies",
    "markov_2": "order-2 Markov model",
    "generator_bound": "generator's bound",
}


def write_report(run: Path, to: Path | None = None) -> list[Path]:
    """Write curves.png, throughput.png and report.html into ``to`` (the run directory unless given).

    Raises PretrainError when the run has no metrics yet.
    """
    metrics = read_metrics(run / "metrics.jsonl")
    training = [record for record in metrics if record["kind"] == "train" and record["loss"] is not None]
    if not training:
        raise PretrainError(f"{run / 'metrics.jsonl'} holds no training step yet; is {run} a run directory?")
    validation = [record for record in metrics if record["kind"] == "validation"]
    references = next((record for record in metrics if record["kind"] == "references"), {})
    to = to or run
    to.mkdir(parents=True, exist_ok=True)
    curves, throughput, page = to / "curves.png", to / "throughput.png", to / "report.html"
    _draw_curves(curves, run.name, training, validation, references)
    _draw_throughput(throughput, run.name, training)
    page.write_text(_page(run, training, validation, references, [curves, throughput]), encoding="utf-8")
    return [curves, throughput, page]


def summary(run: Path) -> str:
    """How far training got, in a few lines: against trivial models and, where it is known, the best possible loss."""
    metrics = read_metrics(run / "metrics.jsonl")
    validation = [record for record in metrics if record["kind"] == "validation"]
    references = next((record for record in metrics if record["kind"] == "references"), None)
    if not validation:
        return "no validation yet"
    last = validation[-1]
    lines = [f"validation at step {last['step']}: loss {last['loss']:.4f}, perplexity {last['perplexity']:.3f}"]
    for key, title in TITLES.items():
        if references and key in references:
            lines.append(
                f"  {title}: loss {references[key]['loss']:.4f}, perplexity {references[key]['perplexity']:.3f}"
            )
    if references and "generator_bound" in references:
        start, bound = references["letter_frequencies"]["loss"], references["generator_bound"]["loss"]
        share = (start - last["loss"]) / (start - bound)
        lines.append(f"  {share:.0%} of the way from letter frequencies to the best loss that the generator allows")
    return "\n".join(lines)


def _draw_curves(path: Path, name: str, training: list[Record], validation: list[Record], references: Record) -> None:
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    figure.suptitle(name)
    _line(loss, training, "loss", "training", color="tab:blue", alpha=0.6)
    _line(loss, validation, "loss", "validation", color="tab:orange", marker="o")
    for (key, title), style in zip(TITLES.items(), (":", "--", "-."), strict=True):
        if key in references:
            loss.axhline(references[key]["loss"], color="grey", linestyle=style, label=title)
    loss.set(xlabel="step", ylabel="cross-entropy (nats per masked token)")
    _line(accuracy, training, "accuracy", "training", color="tab:blue", alpha=0.6)
    _line(accuracy, validation, "accuracy", "validation", color="tab:orange", marker="o")
    accuracy.set(xlabel="step", ylabel="accuracy on masked tokens")
    for axes in (loss, accuracy):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_throughput(path: Path, name: str, training: list[Record]) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    figure.suptitle(name)
    titles = {
        "nucleotides_per_second": "nucleotides per second",
        "learning_rate": "learning rate",
        "gradient_norm": "gradient norm (before clipping)",
    }
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        _line(axes, training, key, title)
        axes.set(xlabel="step", ylabel=title, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axes: Axes, records: list[Record], key: str, label: str, **style: Any) -> None:
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _page(run: Path, training: list[Record], validation: list[Record], references: Record, pictures: list[Path]) -> str:
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
    }
    parts = [f"<h1>{html.escape(run.name)}</h1>", f"<pre>{html.escape(summary(run))}</pre>", _table(rows)]
    parts += [_picture(path) for path in pictures]
    if validation and validation[-1].get("types"):
        parts += ["<h2>Validation by RNA type</h2>", _types_table(validation[-1]["types"])]
    for name in ("environment.json", "recipe.yaml"):
        if (run / name).is_file():
            parts.append(f"<h2>{name}</h2><pre>{html.escape(_pretty(run / name))}</pre>")
    style = "body{font-family:sans-serif;max-width:1200px;margin:2em auto}td,th{padding:2px 12px;text-align:left}"
    title = html.escape(run.name)
    head = f"<meta charset='utf-8'><title>{title}</title><style>{style} img{{max-width:100%}}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


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
