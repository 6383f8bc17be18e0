"""The dataset card of a corpus of profiles: README.md in the form of Hugging Face's hub, and describe.png beside it.

Both are written into the corpus directory but are no part of the corpus. A README.md of somebody else is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.manifest import CARD, PICTURE, SPLITS, read_manifest
from data.reactivity_filter import CLASSES
from launch.reactivity_tables import histograms

_MARK = "<!-- made by launch/prepare.py describe; remove this line to keep your changes -->"


def write_reactivity_card(directory: Path) -> str:
    """Writes both files; a sentence about what was written, or why not."""
    manifest = read_manifest(directory)
    card = directory / CARD
    if card.exists() and _MARK not in card.read_text(errors="replace"):
        return f"{card}: was not made here, so it was left alone."
    try:
        _draw(directory, manifest, directory / PICTURE)
        card.write_text(_text(manifest))
    except OSError as error:
        return f"{card}: not written ({error.strerror}); the tables above are complete."
    return f"written: {card} and {directory / PICTURE}"


def _text(manifest: dict[str, Any]) -> str:
    splits = [split for split in SPLITS if manifest["splits"][split]["sequences"]]
    files = "".join(f"  - split: {split}\n    path: {split}-*.tar\n" for split in splits)
    channels = manifest["channels"]
    counts = []
    for split in splits:
        said = manifest["splits"][split]
        numbers = [said["sequences"], *(said["classes"][c] for c in CLASSES), *(said["values"][c] for c in channels)]
        counts.append([split, *(f"{number:,}" for number in numbers)])
    sources = [
        [
            source["name"],
            f"{source['records']:,}",
            ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in source["dropped"].items() if n) or "-",
            "; ".join(f"{file['name']} (`{file['sha256'][:16]}`)" for file in source["files"][:3])
            + (f" and {len(source['files']) - 3:,} more" if len(source["files"]) > 3 else ""),
        ]
        for source in manifest["sources"]
    ]
    errors = manifest["errors"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(manifest['name'])}",
        "tags: [biology, RNA, webdataset, chemical-mapping]",
        f"configs:\n- config_name: default\n  data_files:\n{files}---",
        _MARK,
        f"# {manifest['name']}\n",
        f"Chemical mapping profiles of RNA, channels {', '.join(channels)}: values and errors per nucleotide, NaN",
        "where not measured, not clipped, with the signal-to-noise of each profile, in WebDataset shards with a",
        f"manifest of hashes. Fingerprint `{manifest['fingerprint']}`.\n",
        f"![lengths and signal-to-noise]({PICTURE})\n",
        *_table(["split", "sequences", *CLASSES, *(f"values of {channel}" for channel in channels)], counts),
        f"clean: signal-to-noise above {manifest['threshold']:g} in every channel; dirty: in some; noisy: in none.\n",
        *(
            ["The error columns of different channels are identical, so they belong to one of them: do not use them.\n"]
            if errors["samples"] and not errors["trusted"]
            else []
        ),
        "## Sources\n",
        *_table(["source", "profiles", "left out", "files (sha256)"], sources),
        "The licence of the profiles is that of their sources.\n",
        "## How it was made\n",
        f"With seed {manifest['seed']} and these options:\n",
        f"```json\n{json.dumps(manifest['provenance'] or manifest['options'], indent=1)}\n```\n",
        "## Reading it\n",
        "Sequence i of a block is `tok[off[i]:off[i + 1]]`; the same rows of `react` and `err` are its profile.\n",
        "```python\nimport io, numpy as np, webdataset\n",
        "for block in webdataset.WebDataset('train-000000.tar', shardshuffle=False):",
        "    letters, starts, values, channels = (",
        "        np.load(io.BytesIO(block[f'{part}.npy'])) for part in ('tok', 'off', 'react', 'channels')",
        "    )\n```\n",
    ]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return [*lines, ""]


def _draw(directory: Path, manifest: dict[str, Any], to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths, ratios = histograms(directory, manifest)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, rows, title, unit in (
        (axes[0], lengths, "Lengths", "nucleotides"),
        (axes[1], ratios, "Signal-to-noise", ""),
    ):
        names = list(rows[0][1])
        for place, name in enumerate(names):
            at = [i + (place + 0.5) / len(names) - 0.5 for i in range(len(rows))]
            axis.bar(at, [counts[name] for _, counts in rows], 0.8 / len(names), label=name)
        axis.set_xticks(range(len(rows)), [label for label, _ in rows], rotation=30, ha="right")
        axis.set(title=title, xlabel=unit, ylabel="samples")
        axis.legend()
    figure.savefig(to, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
