"""Writing a directory that `from_pretrained` of transformers loads: configuration, weights, tokenizer, vocabulary.

Only the file formats; what goes into them is a layout's affair, and the model card (README.md) the release's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from models.layouts.reading import SAFETENSORS_INDEX

METADATA = {"format": "pt"}  # transformers refuses safetensors files without it


def write_directory(
    directory: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    tokenizer_config: dict[str, Any],
    vocabulary: list[str],
    shard_bytes: int | None = None,
) -> None:
    """Write config.json, tokenizer_config.json, vocab.txt and the weights into ``directory``, created if absent.

    The weights are one model.safetensors, or files of at most ``shard_bytes`` bytes of tensors each (more only where a
    single tensor is larger) with an index. Same inputs give the same bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    (directory / "vocab.txt").write_text("".join(token + "\n" for token in vocabulary), encoding="utf-8")
    tensors = {name: tensors[name].contiguous() for name in sorted(tensors)}
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        save_file(tensors, directory / "model.safetensors", METADATA)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: tensors[key] for key in shard}, directory / name, METADATA)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(x.nbytes for x in tensors.values())
    _write_json(directory / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: dict[str, Tensor], shard_bytes: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, x in tensors.items():
        if shard_bytes is not None and shards[-1] and filled + x.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += x.nbytes
    return shards


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
