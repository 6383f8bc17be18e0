"""The dataset card of a corpus of alignments: README.md in the form of Hugging Face's hub, and describe.png beside it.

Both are written into the corpus directory but are no part of the corpus. A README.md of somebody else is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import CARD, PICTURE, SPLITS, read_manifest
from launch.alignment_tables import Figures, figures

_MARK = "<!-- made by launch/prepare.py describe; remove this line to keep your changes -->"


def write_alignment_card(directory: Path) -> str:
    """Writes both files; a sentence about what was written, or why not."""
    manifest = read_manifest(directory)
    card = directory / CARD
    if card.exists() and _MARK not in card.read_text(errors="replace"):
        return f"{card}: was not made here, so it was left alone."
    depths, columns = figures(directory, manifest)
    try:
        _draw(depths, columns, directory / PICTURE)
        card.write_text(_text(manifest, depths, columns))
    except OSError as error:
        return f"{card}: not written ({error.strerror}); the tables above are complete."
    return f"written: {card} and {directory / PICTURE}"


def _text(manifest: dict[str, Any], depths: Figures, columns: Figures) -> str:
    files = "".join(f"  - split: {split}\n    path: {split}-*.tar\n" for split in depths)
    splits = [
        [
            split,
            *(f"{manifest['splits'][split][what]:,}" for what in ("alignments", "rows", "letters")),
            f"{np.median(depths[split]):,.10g}",
            f"{np.median(columns[split]):,.10g}",
        ]
        for split in depths
    ]
    sources = [
        [
            source["name"],
            f"{source['alignments_read']:,}",
            *(f"{source['alignments'][split]:,}" for split in SPLITS),
            ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in source["dropped"].items() if n) or "-",
            "; ".join(f"{file['name']} (`{file['sha256'][:16]}`)" for file in source["files"][:3])
            + (f" and {len(source['files']) - 3:,} more" if len(source["files"]) > 3 else ""),
        ]
        for source in manifest["sources"]
    ]
    lines = [
        "---",
        f"pretty_name: {json.dumps(manifest['name'])}",
        "tags: [biology, RNA, webdataset, multiple-sequence-alignment]",
        "task_categories: [fill-mask]",
        f"configs:\n- config_name: default\n  data_files:\n{files}---",
        _MARK,
        f"# {manifest['name']}\n",
        "Alignments of RNA families for pretraining: letters A C G U X and `-`, row 0 the query, the other rows in",
        f"random order, in WebDataset shards with a manifest of hashes. Fingerprint `{manifest['fingerprint']}`.\n",
        f"![depths and lengths]({PICTURE})\n",
        *_table(["split", "alignments", "rows", "letters", "median rows", "median columns"], splits),
        f"No {manifest['split']['by']} is in both splits.\n",
        "## Sources\n",
        *_table(["source", "alignments", "kept: train", "kept: validation", "left out", "files (sha256)"], sources),
        "The licence of the alignments is that of their sources.\n",
        "## How it was made\n",
        f"With seed {manifest['seed']} and these options:\n",
        f"```json\n{json.dumps(manifest['options'], indent=1)}\n```\n",
        "## Reading it\n",
        "Each `.msa.npy` is uint8 [rows, columns] of ASCII letters; the `.json` beside it names the family, its clan,",
        "the query and the consensus structure over the columns.\n",
        "```python\nimport io, json, numpy as np, webdataset\n",
        "for family in webdataset.WebDataset('train-000000.tar', shardshuffle=False):",
        "    letters = np.load(io.BytesIO(family['msa.npy']))",
        "    structure = json.loads(family['json'])['structure']\n```\n",
    ]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return [*lines, ""]


def _draw(depths: Figures, columns: Figures, to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, found, title, unit in ((axes[0], depths, "Depths", "rows"), (axes[1], columns, "Lengths", "columns")):
        every = np.concatenate(list(found.values()))
        bins = np.geomspace(max(1, every.min()), every.max() + 1, 40)
        for split, values in found.items():
            axis.hist(values, bins=bins, histtype="step", label=split)
        axis.set(xscale="log", yscale="log", title=title, xlabel=unit, ylabel="alignments")
        axis.legend()
    figure.savefig(to, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
