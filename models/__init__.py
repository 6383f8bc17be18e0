"""The models, as pure PyTorch modules that know nothing of training.

`MODELS` maps a model's name, as recipes spell it, to its (config class, module class). A model's file is imported when
it is looked up, so that using one model never loads the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from models.errors import ModelError

_CLASSES = {  # name in recipes -> module, config class, module class
    "rinalmo": ("models.rinalmo", "RiNALMoConfig", "RiNALMo"),
    "aido_rna": ("models.aido_rna", "AidoRNAConfig", "AidoRNA"),
    "rnamsm": ("models.rnamsm", "RNAMSMConfig", "RNAMSM"),
    "rnaernie": ("models.rnaernie", "RNAErnieConfig", "RNAErnie"),
    "ribonanzanet": ("models.ribonanzanet", "RibonanzaNetConfig", "RibonanzaNet"),
}


class _Models(Mapping[str, tuple[type[Any], type[Any]]]):
    """Read-only and lazy: a look-up imports one model's file."""

    def __getitem__(self, name: str) -> tuple[type[Any], type[Any]]:
        file, config, module = _CLASSES[name]
        loaded = import_module(file)
        return getattr(loaded, config), getattr(loaded, module)

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


MODELS = _Models()


def model_classes(name: str) -> tuple[type[Any], type[Any]]:
    """The (config class, module class) of a model; ModelError naming the known ones if there is none."""
    if name not in _CLASSES:
        raise ModelError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")
    return MODELS[name]
