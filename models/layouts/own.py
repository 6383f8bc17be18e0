"""Our own layout: our names of parameters and configuration, for models that no other layout can express.

    config.json          {"model_type": "rnafoundry", "model": NAME, "config": every field of the model's configuration}
    model.safetensors    the weights under our names, or shards with an index
    vocab.txt            the tokens in the order of their ids

`channels` in config.json names the outputs, in their order, of a model that predicts channels and not tokens.

It is written where a vocabulary of several nucleotides per token, or other channels than the published ones, leave the
layouts of the models' authors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layouts.huggingface import write_directory
from models.layouts.reading import read_directory, read_json

MODEL_TYPE = "rnafoundry"


def write(
    directory: Path,
    name: str,
    state: dict[str, Tensor],
    config: Any,
    vocabulary: list[str],
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
    channels: tuple[str, ...] = (),
) -> None:
    """Write the model ``name`` with its configuration dataclass and state into ``directory``, created if absent.

    Raises ModelError if the vocabulary is not the model's.
    """
    if len(vocabulary) != config.vocab:
        raise ModelError(f"the vocabulary has {len(vocabulary)} tokens, but the model {config.vocab}")
    content = {"model_type": MODEL_TYPE, "model": name, "config": dataclasses.asdict(config)}
    if channels:
        content["channels"] = list(channels)
    tensors = {key: value.to(dtype) for key, value in state.items()}
    write_directory(directory, content, tensors, {}, vocabulary, shard_bytes)


def read(directory: Path, config_classes: dict[str, type[Any]]) -> tuple[str, Any, dict[str, Tensor]]:
    """(model name, configuration, state in fp32) of a directory that `write` made.

    ``config_classes``: the configuration of every model there is, by name. Raises ModelError if it is none of them.
    """
    content = read_json(directory / "config.json")
    name, fields = content.get("model"), content.get("config")
    if name not in config_classes or not isinstance(fields, dict):
        raise ModelError(
            f"{directory / 'config.json'}: the model is {name!r}, but must be one of {', '.join(config_classes)}"
        )
    known = {field.name for field in dataclasses.fields(config_classes[name])}
    if not set(fields) <= known:
        unknown = ", ".join(sorted(set(fields) - known))
        raise ModelError(f"{directory / 'config.json'}: {name} has no {unknown}; a later release may have written it")
    state = {key: value.float() for key, value in read_directory(directory).items()}
    return name, config_classes[name](**fields), state


def channels(directory: Path) -> tuple[str, ...] | None:
    """The names of the outputs of a model in ``directory``, in their order; None if nothing names them.

    Raises ModelError if they are not names.
    """
    found = read_json(directory / "config.json").get("channels")
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{directory / 'config.json'}: channels must be a list of names, not {found!r}")
    return tuple(found)
