"""The pictures of a report, drawn from the records of metrics.jsonl (pretrain/report.py)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from pretrain.tracking import Record, of_stage

LOSSES = {True: "cross-entropy (nats per masked token)", False: "mean absolute error of the reactivity"}
# Besides the loss and by the beginning of its name: what validations report and deserves a curve.
LEARNED = {
    "accuracy": "accuracy on masked tokens",
    "loss_": "mean absolute error by chemical",
    "contact_precision": "precision of contacts",
    "type_": "share of RNA types named right",
}
NOT_DRAWN = ("type_sequences", "loss_per_token", "loss_per_nucleotide")


def title(name: str) -> str:
    """A figure of metrics.jsonl, or a trivial model, in words."""
    known = {
        "markov_2": "order-2 Markov model",
        "generator_bound": "generator's bound",
        "type_accuracy": "type named right",
    }
    known |= {"type_majority": "always the most frequent type"}
    known |= {f"contact_precision_l{n}": f"contact precision at L{f'/{n}' * bool(n)}" for n in ("", "2", "5")}
    return known.get(name, name.removeprefix("loss_").replace("_", " "))


def draw_curves(path: Path, name: str, metrics: list[Record]) -> None:
    """Loss beside that of trivial models, and one panel for each kind of thing that validations say was learned."""
    training, validation, references = (of_kind(metrics, kind) for kind in ("train", "validation", "references"))
    panels = _panels([*training, *validation])
    figure, axes = plt.subplots(1, 1 + len(panels), figsize=(6 * (1 + len(panels)), 4.5), layout="constrained")
    axes = [axes] if not panels else list(axes)
    figure.suptitle(name)
    _line(axes[0], training, "loss", "training", color="tab:blue", alpha=0.6)
    for which, records in series(validation).items():
        _line(axes[0], records, "loss", f"validation {which}".strip(), marker="o")
    now = of_stage(references, training[-1].get("stage") if training else None)
    for line, style in zip(_lines(now), itertools.cycle((":", "--", "-.", (0, (1, 4))))):
        axes[0].axhline(line[1], color="grey", linestyle=style, label=title(line[0]))
    axes[0].set(xlabel="step", ylabel=LOSSES[any("perplexity" in record for record in training)])
    for panel, (label, keys) in zip(axes[1:], panels.items(), strict=True):
        for key in keys:
            _line(panel, training, key, f"training {title(key)}", alpha=0.6)
            for which, records in series(validation).items():
                _line(panel, records, key, f"validation {title(key)} {which}".strip(), marker="o")
        panel.set(xlabel="step", ylabel=label)
    for one in axes:
        _mark_stages(one, training)
        one.legend()
        one.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_throughput(path: Path, name: str, training: list[Record]) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    figure.suptitle(name)
    titles = {
        "nucleotides_per_second": "nucleotides per second",
        "learning_rate": "learning rate",
        "gradient_norm": "gradient norm (before clipping)",
    }
    for axes, (key, label) in zip(panels, titles.items(), strict=True):
        _line(axes, training, key, label)
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
        _mark_stages(axes, training)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def of_kind(metrics: list[Record], kind: str) -> list[Record]:
    """Records of one kind; of training only those that have a loss."""
    return [one for one in metrics if one["kind"] == kind and (kind != "train" or one["loss"] is not None)]


def series(records: list[Record]) -> dict[str, list[Record]]:
    """By corpus, where a run validates on several; under an empty name where it has one."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.get("corpus", ""), []).append(record)
    return found


def _panels(records: list[Record]) -> dict[str, list[str]]:
    """Label of a panel -> the figures in it, in the order in which they first appear."""
    keys = dict.fromkeys(key for record in records for key in record if key not in NOT_DRAWN)
    found: dict[str, list[str]] = {}
    for key in keys:
        label = next((label for start, label in LEARNED.items() if key.startswith(start)), None)
        if label is not None:
            found.setdefault(label, []).append(key)
    return found


def _lines(references: list[Record]) -> list[tuple[str, float]]:
    """(trivial model, its loss), of the first corpus."""
    first = references[0] if references else {}
    return [(key, value["loss"]) for key, value in first.items() if isinstance(value, dict) and "loss" in value]


def _line(axes: Axes, records: list[Record], key: str, label: str, **style: Any) -> None:
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _mark_stages(axes: Axes, training: list[Record]) -> None:
    """A line where a stage begins, with its name."""
    for before, after in itertools.pairwise([{}, *training]):
        stage = after.get("stage")
        if stage and stage != before.get("stage"):
            at = before.get("step", 0)
            axes.axvline(at, color="grey", linewidth=0.8)
            axes.annotate(
                stage,
                (at, 1.0),
                xytext=(3, -10),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color="grey",
                fontsize=8,
            )
