"""The model card of a release (README.md), filled from the run: data, recipe, steps, losses, origin, licence."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.manifest import read_manifest
from data.tokenizer import made_of
from models.layouts.releasing import ReleaseLayout
from pretrain import recipe
from pretrain.checkpoint import Checkpoint
from pretrain.config import Recipe
from pretrain.console import FIGURES, duration, quantity
from pretrain.estimate import cost_of
from pretrain.objectives import for_release
from pretrain.opening import sources_of
from pretrain.tracking import of_stage, read_metrics

TITLES = {
    "rinalmo": "RiNALMo",
    "aido_rna": "AIDO.RNA",
    "rnaernie": "RNAErnie",
    "rnamsm": "RNA-MSM",
    "ribonanzanet": "RibonanzaNet",
}

OWN_USAGE = """The tokens are pieces of several nucleotides, which no public model class expresses. transformers loads
the tokenizer:

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")
```

rnafoundry loads the weights (`init_from`, or `models.layouts.detect.read_checkpoint`).
"""


def own_usage(channels: Sequence[str]) -> str:
    """Markdown: how our own layout is loaded. ``channels``: what the model predicts, if not tokens."""
    if not channels:
        return OWN_USAGE
    return (
        "No public model class knows these outputs by name. rnafoundry loads the weights (`init_from`, or "
        f"`models.layouts.detect.read_checkpoint`); they predict {', '.join(channels)}, in this order.\n"
    )


def model_card(
    run: Path | None,
    found: Checkpoint,
    whole: Recipe,
    settings: Recipe,
    release_name: str,
    licence: str | None,
    layouts: dict[str, ReleaseLayout],
    filled: str = "",
) -> str:
    """Markdown with front matter, in the form that hubs read. ``run`` is the run directory where it is still there.

    ``filled``: Markdown on rows of the layouts that training never used.
    ``whole``: the recipe of the run; ``settings``: the same as it holds in its last stage, with the tokenizer at hand.
    """
    metrics = read_metrics(run / "metrics.jsonl") if run else []
    metrics = [record for record in metrics if record["step"] <= found.progress.step]
    origin = found.progress.origin
    name, library = recipe.model_name(settings), next(iter(layouts.values())).library
    objective = for_release(settings.objective)
    masked = objective.kind == "sequences"
    mask = objective.alphabet.mask
    letters = "".join(itertools.compress(objective.alphabet.tokens, made_of(objective.alphabet)))
    front = {
        "language": "rna",
        "tags": ["Biology", "RNA", name],
        "license": licence,
        "library_name": library,
        "pipeline_tag": "fill-mask" if library and masked else None,
        "mask_token": mask if masked else None,
        "widget": [{"example_title": "tRNA", "text": f"GCGGAUUUAGCUCAGUU{mask}GGGAGAGCGCCAGACUG"}] if masked else None,
        "base_model": origin["init_from"] if origin and _is_hub_id(origin) else None,
    }
    sections = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None),
        "---",
        f"\n# {release_name}\n",
        f"{TITLES[name]}, a model of RNA, pretrained with rnafoundry.\n",
        "## Use\n",
        *(layout.usage for layout in layouts.values()),
        *(layout.notes(settings.model, letters) for layout in layouts.values()),
        filled,
        "## Model\n",
        _table(_specification(settings, objective)),
        "## Training data\n",
        _data(whole, found),
        "## Training\n",
        _table(_procedure(whole, settings, objective, found)),
        "`recipe.yaml` in this directory holds every setting.\n",
        _results(metrics, found),
        "## Origin and licence\n",
        _origin(origin, settings, licence),
    ]
    return "\n".join(section for section in sections if section) + "\n"


def _specification(settings: Recipe, objective: Any) -> dict[str, object]:
    model, cost = settings.model, cost_of(settings)
    rows: dict[str, object] = {
        "Layers": model.layers,
        "Hidden size": model.width,
        "Attention heads": model.heads,
        "Feed-forward inner size": model.ffn,
        f"Parameters (as trained, {model.vocab} tokens)": f"{cost.count_parameters(model):,}",
    }
    if objective.kind == "sequences":
        rows["Training FLOPs per sequence of 500 tokens"] = f"{cost.flops(model, [500]):.3g}"
    return rows


def _procedure(whole: Recipe, settings: Recipe, objective: Any, found: Checkpoint) -> dict[str, object]:
    optimizer, schedule, progress = settings.optimizer, settings.schedule, found.progress
    named = {"adamw": "AdamW", "ranger": "Ranger"}[optimizer.name]
    return {
        **objective.described(),
        "Stages": ", ".join(whole.stages) if whole.stages else "one",
        "Steps": f"{progress.step:,}",
        "Samples per global batch": f"{settings.batch.sequences:,}",
        "Samples seen": f"{progress.sequences:,}",
        "Nucleotides seen": quantity(progress.nucleotides),
        "Optimizer": f"{named}, betas {tuple(optimizer.betas)}, eps {optimizer.eps:g}, weight decay "
        f"{optimizer.weight_decay:g}, gradient norm clipped at {optimizer.gradient_clipping:g}",
        "Learning rate": f"peak {optimizer.learning_rate:g}, {schedule.warmup_steps:,} warm-up steps, {schedule.name} "
        f"to {schedule.minimum:g}",
        "Precision": settings.compute.precision,
        "Seed": settings.run.seed,
        "Training time": f"{duration(progress.seconds)} on {found.written_by['ranks']} rank(s)",
        "Training FLOPs": f"{progress.flops:.3g}",
        "Steps skipped for a gradient that was not finite": progress.skipped_steps,
    }


def _data(settings: Recipe, found: Checkpoint) -> str:
    """One paragraph and table per corpus; only the fingerprint where a corpus is not at hand any more."""
    parts = [f"Fingerprint of the training data: `{found.progress.fingerprint}`.\n"]
    stages = [stage for _, stage in recipe.stage_recipes(settings)]
    sources = list({source.corpus: source for stage in stages for source in sources_of(stage.data)}.values())
    for source in sources:
        title = f"**{Path(source.corpus).name}**" + (f", weight {source.weight:g}" if len(sources) > 1 else "")
        try:
            manifest = read_manifest(Path(source.corpus))
        except (DataError, OSError):
            parts.append(f"{title}: not at hand when this card was written.\n")
            continue
        plain = len(sources) == 1 and len(stages) == 1 and manifest.get("kind", "sequences") == "sequences"
        if plain and not settings.data.structures and manifest["fingerprint"] != found.progress.fingerprint:
            parts.append(f"{title}: another corpus stands there by now.\n")
            continue
        train, held_out = manifest["splits"]["train"], manifest["splits"]["validation"]
        unit, kind = ("alignments", manifest["kind"]) if "alignments" in train else ("sequences", None)
        told = ", ".join(f"{count:,} {what}" for what, count in train.items() if isinstance(count, int))
        rows: dict[str, object] = {}
        if kind is None and all("records" in origin for origin in manifest["sources"]):
            rows = {
                origin["name"]: f"{origin['records']:,} records, {sum(origin['sequences'].values()):,} kept"
                for origin in manifest["sources"]
            }
        parts.append(
            f"{title}: {told} for training, {held_out[unit]:,} {unit} held out.\n\n" + (_table(rows) if rows else "")
        )
    return "\n".join(parts)


def _results(metrics: list[dict[str, Any]], found: Checkpoint) -> str:
    """Losses at the released step, and what trivial models reach on the same targets."""
    rows: dict[str, object] = {}
    training = [record for record in metrics if record["kind"] == "train"]
    validation = [record for record in metrics if record["kind"] == "validation"]
    references = [record for record in metrics if record["kind"] == "references"]
    if training:
        rows[f"Training loss at step {training[-1]['step']:,}"] = f"{training[-1]['loss']:.4f}"
    for last in validation[-1:]:
        for key, (title, digits) in FIGURES.items():
            if key in last:
                rows[f"Validation {title} at step {last['step']:,}"] = f"{last[key]:.{digits}f}"
    judged = of_stage(references, validation[-1].get("stage")) if validation else references
    for record in judged[-1:]:
        for name, figures in record.items():
            if isinstance(figures, dict):
                shown = ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items())
                rows[f"{name.replace('_', ' ').capitalize()}, on the same targets"] = shown
    return "## Results\n\n" + _table(rows) if rows else ""


def _origin(origin: dict[str, Any] | None, settings: Recipe, licence: str | None) -> str:
    text = f"Released under {licence}.\n" if licence else "The publisher has not stated a licence for these weights.\n"
    if origin is None:
        return text + f"\nTrained from new weights (seed {settings.run.seed}).\n"
    while origin is not None:
        source = origin["init_from"] if _is_hub_id(origin) else Path(origin["init_from"]).name
        stated = f"`{origin['licence']}`" if origin["licence"] else "not stated there"
        text += f"\nTraining started from `{source}`, whose licence is {stated}.{_terms(source)}\n"
        origin = origin["before"]
    return text


def _terms(source: str) -> str:
    """What publishers of weights on the hub demand of those who train from theirs (specs: aido_rna 0, 8)."""
    publisher = source.lower().partition("/")[0]
    if publisher == "genbio-ai":
        return " GenBio's weights are for non-commercial use only, and so is what is trained from them."
    if publisher == "multimolecule":
        return " MultiMolecule's weights are under AGPL-3.0; its FAQ asks that training data be conveyed as well."
    return ""


def _is_hub_id(origin: dict[str, Any]) -> bool:
    """As it was when training started: a local directory may be gone by the time of the release."""
    source: str = origin["init_from"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) is None:
        return False
    local: bool = origin["local"] if "local" in origin else Path(source).exists()  # older checkpoints do not say
    return not local


def _table(rows: dict[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]) + "\n"
