"""The dataset card of a corpus: README.md in the form of Hugging Face's hub, and describe.png beside it.

Both are written into the corpus directory but are no part of the corpus: no hash covers them and nothing reads them. A
README.md that somebody else wrote is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.index import Corpus
from data.manifest import CARD, PICTURE, SPLITS, read_manifest
from launch.corpus_tables import cluster_sizes

_MARK = "<!-- made by launch/prepare.py describe; remove this line to keep your changes -->"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGE = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
_MOST_TYPES = 15
_MOST_LENGTHS = 1 << 20  # sequences in the histogram of lengths


def write_card(directory: Path) -> str:
    """Writes both files; a sentence about what was written, or why not."""
    manifest = read_manifest(directory)
    card = directory / CARD
    if card.exists() and _MARK not in card.read_text(errors="replace"):
        return f"{card}: was not made here, so it was left alone."
    try:
        _draw(directory, manifest, directory / PICTURE)
        card.write_text(card_text(directory, manifest))
    except OSError as error:
        return f"{card}: not written ({error.strerror}); the tables above are complete."
    return f"written: {card} and {directory / PICTURE}"


def card_text(directory: Path, manifest: dict[str, Any]) -> str:
    """README.md: front matter, counts, how it was made, how it is read."""
    splits = [split for split in SPLITS if manifest["splits"][split]["sequences"]]
    total = sum(manifest["splits"][split]["sequences"] for split in splits)
    size = next((name for limit, name in (*_SIZES, *_LARGE) if total < limit), "n>1B")
    files = "".join(f"  - split: {split}\n    path: {split}-*.tar\n" for split in splits)
    lines = [
        "---",
        f"pretty_name: {json.dumps(manifest['name'])}",
        "tags: [biology, RNA, webdataset]",
        "task_categories: [fill-mask]",
        f"size_categories: [{size}]",
        f"configs:\n- config_name: default\n  data_files:\n{files}---",
        _MARK,
        f"# {manifest['name']}\n",
        "RNA sequences for pretraining: upper-case ASCII with U for uracil, without duplicates, shuffled, in",
        f"WebDataset shards with a manifest of hashes. Fingerprint `{manifest['fingerprint']}`.\n",
        f"![lengths, types, clusters and duplicates]({PICTURE})\n",
        *_table(
            ["split", "sequences", "nucleotides", "clusters", "duplicate records"],
            [[split, *_counts(manifest["splits"][split])] for split in splits],
        ),
        "## Sources\n",
        *_table(
            ["source", "records", *(f"kept: {split}" for split in splits), "files (sha256)"],
            [
                [
                    source["name"],
                    f"{source['records']:,}",
                    *(f"{source['sequences'][split]:,}" for split in splits),
                    "; ".join(f"{file['name']} (`{file['sha256'][:16]}`)" for file in source["files"][:3])
                    + (f" and {len(source['files']) - 3:,} more" if len(source["files"]) > 3 else ""),
                ]
                for source in manifest["sources"]
            ],
        ),
        "The licence of the sequences is that of their sources.\n",
        "## What was left out\n",
        *_table(
            ["source", "reason", "records"],
            [
                [source["name"], reason.replace("_", " "), f"{count:,}"]
                for source in manifest["sources"]
                for reason, count in source["dropped"].items()
                if count
            ],
        ),
        *_excluded(manifest),
        "## How it was made\n",
        f"With seed {manifest['seed']} and these options:\n",
        f"```json\n{json.dumps(manifest['options'], indent=1)}\n```\n",
        "## Reading it\n",
        "Each member `.tok.npy` holds the letters of up to 1,024 sequences end to end, `.off.npy` where each starts,",
        "`.id.npy` their accessions and `.type.npy` their RNA types (`type_names` in `manifest.json`).\n",
        "```python\nimport io, numpy as np, webdataset\n",
        "blocks = webdataset.WebDataset('train-000000.tar', shardshuffle=False)",
        "for block in blocks:",
        "    letters, starts = (np.load(io.BytesIO(block[name])) for name in ('tok.npy', 'off.npy'))",
        "    sequences = [letters[a:b].tobytes().decode() for a, b in zip(starts, starts[1:])]\n```\n",
    ]
    return "\n".join(lines)


def _counts(split: dict[str, Any]) -> list[str]:
    clusters = f"{split['clusters']:,}" if "clusters" in split else "-"
    return [f"{split['sequences']:,}", f"{split['nucleotides']:,}", clusters, f"{split.get('duplicates', 0):,}"]


def _excluded(manifest: dict[str, Any]) -> list[str]:
    rows = []
    for entry in manifest.get("exclude", ()):
        limits = (f"{entry['identity']:g}", f"{entry['coverage']:g}")
        rows.append([entry["fasta"]["name"], entry["action"], *limits, f"{entry['sequences']:,}"])
    header = ["compared with", "action", "identity", "coverage", "sequences that resemble it"]
    return ["## Leak check\n", *_table(header, rows)] if rows else []


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return [*lines, ""]


def _draw(directory: Path, manifest: dict[str, Any], to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
    lengths, types, clusters, records = axes.flat
    for split in SPLITS:
        if manifest["splits"][split]["sequences"]:
            corpus = Corpus.open(directory, split)
            sample = np.asarray(corpus.lengths[:_MOST_LENGTHS])  # the order is random, so the first ones are a sample
            bins = np.geomspace(max(1, sample.min()), sample.max() + 1, 60)
            lengths.hist(sample, bins=bins, histtype="step", density=True, label=split)
            corpus.close()
    lengths.set(xscale="log", title="Lengths", xlabel="nucleotides", ylabel="density")
    lengths.legend()

    counts = sorted(manifest["splits"]["train"]["types"].items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_TYPES]
    types.barh([name for name, _ in counts][::-1], [count for _, count in counts][::-1])
    types.set(xscale="log", title="RNA types (train)", xlabel="sequences")

    sizes = cluster_sizes(directory, manifest)
    if sizes:
        clusters.bar([name for name, _ in sizes], [found[0] for _, found in sizes])
        clusters.set(yscale="log", ylabel="clusters", xlabel="sequences in a cluster")
        clusters.tick_params(axis="x", rotation=30)
    else:
        clusters.text(0.5, 0.5, "no clusters", ha="center", va="center", transform=clusters.transAxes)
    clusters.set_title("Clusters (train)")

    names = [source["name"] for source in manifest["sources"]]
    left = np.zeros(len(names))
    for label, found in (
        ("train", [source["sequences"]["train"] for source in manifest["sources"]]),
        ("validation", [source["sequences"]["validation"] for source in manifest["sources"]]),
        ("duplicates", [source["dropped"]["duplicate"] for source in manifest["sources"]]),
        ("dropped", [_dropped(source) for source in manifest["sources"]]),
    ):
        records.barh(names, found, left=left, label=label)
        left += np.array(found)
    records.set(title="Records by source", xlabel="records")
    records.legend()
    figure.savefig(to, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def _dropped(source: dict[str, Any]) -> int:
    return sum(count for reason, count in source["dropped"].items() if reason != "duplicate")
