"""RNAErnie's releases and whatever else `releasing.py` asks of a layout file; the table of names is elsewhere.

Three forms (specification 7 and 8): MultiMolecule's `RnaErnieForPreTraining` directory with its own 28 tokens
("multimolecule"), the same with [IND] and the RNA types as special tokens, 57 ("full"), and the authors' Paddle file
("original"). All of them contain a pooler, which training has not: it is then at initial values, see `release_notes`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.layouts import huggingface, paddle
from models.layouts.multimolecule import vocabulary
from models.layouts.releasing import TRANSFORMERS_USAGE, ReleaseLayout, WriteOptions
from models.layouts.rnaernie_config import MODEL_TYPE, tokenizer_config
from models.layouts.rnaernie_rows import (
    FULL,
    STRIPPED,
    drop_pooler,
    fill,
    grow_vocabulary,
    never_trained,
    tokens,
    with_pooler,
    with_vocabulary,
)
from models.layouts.rnaernie_tensors import (
    HEADS,
    from_directory,
    from_original,
    recognises_original,
    rows,
    to_multimolecule,
    to_original,
)
from models.rnaernie import RNAErnieConfig

__all__ = [
    "HEADS",
    "MODEL_TYPES",
    "RELEASES",
    "drop_pooler",
    "from_directory",
    "from_original",
    "grow_vocabulary",
    "recognises_original",
    "release_notes",
    "rows",
    "to_multimolecule",
    "to_original",
    "tokens",
    "with_pooler",
    "write_full",
    "write_original",
    "write_stripped",
]

MODEL_TYPES = (MODEL_TYPE,)


def adapt(
    config: RNAErnieConfig, state: dict[str, Tensor], wanted: RNAErnieConfig
) -> tuple[RNAErnieConfig, dict[str, Tensor]]:
    """Released weights for a run of the configuration ``wanted``: without the pooler if that trains none, with initial
    rows for the RNA types (seed 0) if it has them and the release does not, and without those rows the other way round.
    """
    if config.pooler and not wanted.pooler:
        config, state = drop_pooler(state, config)
    if config.vocab == len(STRIPPED) and wanted.vocab == len(FULL):
        config, state = grow_vocabulary(state, config, torch.Generator().manual_seed(0))
    if config.vocab == len(FULL) and wanted.vocab == len(STRIPPED):
        state, config = with_vocabulary(state, config, STRIPPED), replace(config, vocab=len(STRIPPED))
    return config, state


def release_notes(config: RNAErnieConfig, letters: str | None = "ACGU") -> str:
    """Markdown for the model card: what in a release of such a model was not trained. "" if all was.

    ``letters`` are those that training gave rows of their own; None if every row is meant as it is (a conversion).
    """
    notes = []
    untrained = _untrained(config, letters)
    if untrained:
        notes.append(
            f"- The rows of `{' '.join(untrained)}` (embedding and bias) are copies of `<unk>`'s: training read those"
            " letters as `<unk>`.\n"
        )
    if config.vocab == len(STRIPPED):
        notes.append(
            "- `full/`: the model was trained without RNA types, whose rows are copies of `<unk>`'s as well.\n"
        )
    if not config.pooler:
        notes.append(
            "- The pooler is at initial values (normal, 0.02, seed 0): masked-token training has no use for it.\n"
        )
    return "".join(notes)


def write_stripped(directory: Path, state: dict[str, Tensor], config: RNAErnieConfig, options: WriteOptions) -> Path:
    """Write MultiMolecule's directory with its 28 (or 26) tokens; the rows of types are left out."""
    return _write_directory(directory, state, config, options, vocabulary(options.vocabulary))


def write_full(directory: Path, state: dict[str, Tensor], config: RNAErnieConfig, options: WriteOptions) -> Path:
    """Write MultiMolecule's directory with 57 tokens: [IND] and the types are special tokens of the tokenizer."""
    return _write_directory(directory, state, config, options, FULL)


def write_original(directory: Path, state: dict[str, Tensor], config: RNAErnieConfig, options: WriteOptions) -> Path:
    """Write the authors' file NAME.pdparams, in fp32: Paddle's bfloat16 is no number to numpy, so values are rounded.

    The file has no rows for ambiguity codes and symbols; ``options.letters`` decides what <null>'s stands for.
    """
    path = directory / f"{options.name}{paddle.SUFFIX}"
    tensors = to_original(fill(state, config, _untrained(config, options.letters)), config)
    paddle.write_pdparams(path, {name: x.to(options.dtype).float() for name, x in tensors.items()})
    return path


def _write_directory(
    directory: Path,
    state: dict[str, Tensor],
    config: RNAErnieConfig,
    options: WriteOptions,
    wanted: tuple[str, ...],
) -> Path:
    content, tensors = to_multimolecule(state, config, wanted, _untrained(config, options.letters))
    content["dtype"] = str(options.dtype).removeprefix("torch.")
    tensors = {name: x.to(options.dtype) for name, x in tensors.items()}
    tokenizer = tokenizer_config(config, len(wanted))
    huggingface.write_directory(directory, content, tensors, tokenizer, list(wanted), options.shard_bytes)
    return directory


def _untrained(config: RNAErnieConfig, letters: str | None) -> tuple[str, ...]:
    return () if letters is None else never_trained(config, letters)


_FULL_USAGE = """`full/` has the 28 RNA types as tokens too, as in `ACGU[IND][miRNA]`:

```python
model = AutoModelForMaskedLM.from_pretrained("PATH_OR_ID", subfolder="full")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID", subfolder="full")
```
"""
_ORIGINAL_USAGE = """`original/` holds the same weights as a Paddle file for the authors' code (39 tokens, T for U):

```python
import paddle  # model: an ErnieForMaskedLM of these sizes
model.set_state_dict(paddle.load("original/NAME.pdparams"))
```
"""
RELEASES = {
    "multimolecule": ReleaseLayout(
        "", write_stripped, TRANSFORMERS_USAGE, library="multimolecule", notes=release_notes
    ),
    "full": ReleaseLayout("full", write_full, _FULL_USAGE),
    # It has no rows for ambiguity codes, so it cannot hold what training made of them.
    "original": ReleaseLayout(
        "original", write_original, _ORIGINAL_USAGE, fits=lambda config, trained: set(trained.letters) <= set("ACGU")
    ),
}
