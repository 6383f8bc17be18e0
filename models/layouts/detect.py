"""Reading a checkpoint of unknown origin: which model is it, and in whose layout?

Knows no names of tensors; each model's layout file recognises its own. Does not download: a path only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models import MODELS
from models.errors import ModelError
from models.layouts import aido_rna, own, ribonanzanet, rinalmo, rnaernie, rnamsm
from models.layouts.reading import read_json, read_tensors

LAYOUTS = {  # our name of the model -> its layout file
    "rinalmo": rinalmo,
    "aido_rna": aido_rna,
    "rnamsm": rnamsm,
    "rnaernie": rnaernie,
    "ribonanzanet": ribonanzanet,
}


def read_checkpoint(path: Path | str, heads: int | None = None) -> tuple[str, Any, dict[str, Tensor]]:
    """(model name, configuration, state) of a MultiMolecule directory, ours, or a file in the authors' layout.

    ``heads``: attention heads of the model, for layouts that do not store them; else those of the published files.
    A directory is told by `model_type` in its config.json, a `.pt`, `.pth` or `.safetensors` file by the names of its
    tensors. Raises ModelError if there is nothing to read, reading would run code, or no model of ours fits.
    """
    path = Path(path)
    if path.is_dir():
        model_type = read_json(path / "config.json").get("model_type")
        if model_type == own.MODEL_TYPE:
            return own.read(path, {name: classes[0] for name, classes in MODELS.items()})
        for name, layout in LAYOUTS.items():
            if model_type in layout.MODEL_TYPES:
                return name, *layout.from_directory(path)
        known = ", ".join(known for layout in LAYOUTS.values() for known in layout.MODEL_TYPES)
        raise ModelError(
            f"{path / 'config.json'}: model_type is {model_type!r}; the types that can be read are {known}"
        )
    state = read_tensors(path)
    for name, layout in LAYOUTS.items():
        if layout.recognises_original(set(state)):
            return name, *layout.from_original(state, heads or layout.HEADS, source=str(path))
    raise ModelError(
        f"{path} holds {len(state)} tensors ({', '.join(sorted(state)[:3])}, ...) that fit none of the original layouts"
        f" of {', '.join(LAYOUTS)}"
    )


def channels_of(path: Path | str, name: str, config: Any) -> tuple[str, ...] | None:
    """What the outputs of a model of channels are, in the order in which `read_checkpoint` gives their rows.

    ``name`` and ``config`` as it gave them. None where nothing says it. Raises ModelError for a damaged directory.
    """
    path = Path(path)
    if path.is_dir() and read_json(path / "config.json").get("model_type") == own.MODEL_TYPE:
        return own.channels(path)
    return LAYOUTS[name].channels(config)
