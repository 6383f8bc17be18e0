"""What a layout file tells the rest of the system, so that a new model needs no change elsewhere.

A layout file has

    MODEL_TYPES                              values of `model_type` in the config.json that `from_directory` reads
    HEADS                                    attention heads where a file does not say (published files)
    tokens(configuration)                    the tokens in the order of the ids that the model has
    channels(configuration)                  of models that predict channels: their names in the order of a file
    from_directory(path)                     -> (configuration, state) of such a directory
    recognises_original(names)               whether tensors of these names are a file of the authors
    from_original(state, heads, source)      -> (configuration, state) of such a file
    RELEASES                                 name -> `ReleaseLayout`: the parts of a release, the main directory first

States are dictionaries of fp32 tensors under our names, in the shapes that are published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class WriteOptions:
    """How a release is written; every layout uses what applies to it."""

    name: str  # of single files: NAME.pt
    dtype: torch.dtype = torch.float32
    shard_bytes: int | None = None  # largest file of a directory; None: one file
    vocabulary: int = 28  # tokens of MultiMolecule's alphabet: 28 since 0.2.0, 26 before
    letters: str | None = "ACGU"  # that training gave rows of their own; None: every row is meant as it is
    channels: tuple[str, ...] = ()  # that the model predicts, in its order; none: tokens, or the published channels


@dataclass(frozen=True)
class Trained:
    """What a model was trained on, as far as a layout may not be able to express it."""

    letters: str  # that training gave rows of their own
    channels: tuple[str, ...] = ()  # that it predicts, in its order; none: tokens


@dataclass(frozen=True)
class ReleaseLayout:
    """One form in which weights are released.

    ``folder`` inside the release; "" is the release directory itself. ``write(directory, state, config, options)``
    writes into the existing directory and returns the path that `detect.read_checkpoint` reads back. ``usage`` is
    Markdown for the model card: how others load it, with PATH_OR_ID for the place. ``library``: the hub's name of the
    library that loads it, for the card. ``fits(config, trained)``: whether the layout can express such a model at all.
    ``notes(config, letters)``: Markdown for the card on what was not trained, or what stands where; ``filled(state,
    options)``: the same where the weights tell which rows no training ever used.
    ``says_padding(config)``: whether it can say how the model treats padding; else outputs are compared without any.
    """

    folder: str
    write: Callable[[Path, dict[str, Tensor], Any, WriteOptions], Path]
    usage: str
    library: str | None = None
    fits: Callable[[Any, Trained], bool] = lambda config, trained: True
    notes: Callable[[Any, str], str] = lambda config, letters: ""
    filled: Callable[[dict[str, Tensor], WriteOptions], str] = lambda state, options: ""
    says_padding: Callable[[Any], bool] = lambda config: True


def python_block(*lines: str) -> str:
    """Markdown: lines for whoever loads a release to run, not for this project."""
    return "```python\n" + "\n".join(lines) + "\n```\n"


TRANSFORMERS_USAGE = python_block(
    "import multimolecule  # registers the model with transformers",
    "from transformers import AutoModelForMaskedLM, AutoTokenizer",
    "",
    'model = AutoModelForMaskedLM.from_pretrained("PATH_OR_ID")',
    'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")',
)
