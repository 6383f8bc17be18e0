"""Reading training checkpoints that hold objects of classes we neither have nor want: every such object becomes inert.

PyTorch Lightning pickles a run's hyper-parameters beside the weights, so loading its files as their authors do runs
whatever they name. Here torch's restricted loader reads the tensors, and each class or function that it does not know
stands for `StandIn`, which takes any arguments and does nothing. So nothing named in the file is imported or called.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals


class StandIn:
    """In place of an object of a foreign class: holds nothing, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what the class it stands for would."""

    def __setstate__(self, state: Any) -> None:
        """Drops the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drops the entry."""


def load_with_stand_ins(path: Path) -> Any:
    """`torch.load` with weights_only, foreign objects replaced. Raises what `torch.load` raises."""
    if not zipfile.is_zipfile(path):  # torch before 1.6; such a file is read if it holds nothing foreign
        return torch.load(path, map_location="cpu", weights_only=True)
    foreign = [(StandIn, name) for name in get_unsafe_globals_in_checkpoint(path)]
    with safe_globals(foreign):  # type: ignore[arg-type]  # torch takes (object, name) pairs, its annotation does not
        return torch.load(path, map_location="cpu", weights_only=True)
