"""Reading other people's checkpoint files without running anything in them.

Tensors come from safetensors files, or from torch files by `weights_only` loading, which refuses a pickle that needs
code. Does not know any model: the layout files interpret the names.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.errors import ModelError
from models.layouts.paddle import SUFFIX, read_pdparams
from models.layouts.stand_ins import load_with_stand_ins

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS_INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError if the file is missing, is not JSON, or is not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ModelError(f"{path} does not exist; the directory is not a complete checkpoint") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{path} is not JSON ({e}); it may be truncated, fetch it again") from e
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a JSON {type(content).__name__} where an object was expected")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file, on the CPU, in the file's dtype.

    A dictionary wrapped under `model` or `state_dict` is unwrapped. Entries that are not tensors are left out. Raises
    ModelError if the file is missing, of another kind, damaged, or needs code to load.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is not a file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as e:
            raise ModelError(f"{path} is not a valid safetensors file ({e}); it may be truncated") from e
    if path.suffix == SUFFIX:
        return read_pdparams(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise ModelError(f"{path} is neither a .safetensors nor a torch file ({', '.join(TORCH_SUFFIXES)})")
    try:
        if path.suffix == ".ckpt":  # Lightning's: hyper-parameters beside the weights
            content = load_with_stand_ins(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ModelError(
            f"{path} cannot be loaded as plain tensors: it is not a torch file, or holds Python objects that would run"
            " code when loaded; convert it to safetensors where you trust it"
        ) from e
    except (RuntimeError, EOFError) as e:
        raise ModelError(f"{path} is damaged ({str(e).splitlines()[0]}); fetch it again") from e
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__} where a dictionary of tensors was expected")
    return {str(name): x for name, x in content.items() if isinstance(x, Tensor)}


def read_directory(directory: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory: one safetensors file, shards with an index, or pytorch_model.bin."""
    index = directory / SAFETENSORS_INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{index} has no weight_map that says which file holds which tensor")
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(map(str, weight_map.values()))):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index} points to {name!r}, which is not a safetensors file of the same directory")
            tensors |= read_tensors(directory / name)
        absent = sorted(weight_map.keys() - tensors.keys())
        if absent:
            raise ModelError(f"{index} promises {len(absent)} tensors that no shard holds, {absent[0]} first")
        return tensors
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            return read_tensors(directory / name)
    raise ModelError(f"{directory} holds no weights: neither {SAFETENSORS_INDEX}, model.safetensors nor a .bin file")
