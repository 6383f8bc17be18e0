"""RibonanzaNet between three layouts: ours, the authors' files, MultiMolecule's directories.

Source: RibonanzaNet specification 8 and 9. `to_*` take the state of a `RibonanzaNet` module, `from_*` return a
configuration and a state in fp32 with all values unchanged. Outputs are in the published order, 2A3 before DMS, in all
of them; what is written is brought into it by the names of the channels (channels.py). Nothing here trains or runs a
model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.layouts import huggingface
from models.layouts.channels import PUBLISHED, RIBONANZA, as_published, of_outputs, published_order
from models.layouts.multimolecule import read_vocabulary, row_of_token, vocabulary
from models.layouts.reading import read_directory
from models.layouts.releasing import ReleaseLayout, Trained, WriteOptions, python_block
from models.layouts.ribonanzanet_config import MODEL_TYPE, REACH, read_config, tokenizer_config, write_config
from models.layouts.ribonanzanet_table import Row, rows
from models.ribonanzanet import LETTERS, RibonanzaNet, RibonanzaNetConfig

MODEL_TYPES = (MODEL_TYPE,)
HEADS = 8  # for the interface alone: the authors' files tell it by the shape of pairwise2heads
SPECIALS = ("<cls>", "<eos>")
SEED = 1016  # of the rows of tokens that the model does not know
BASES = {"R": "AG", "Y": "CU", "S": "CG", "W": "AU", "K": "GU", "M": "AC"}
BASES |= {"B": "CGU", "D": "AGU", "H": "ACU", "V": "ACG", "X": "N"}


def tokens(config: RibonanzaNetConfig) -> tuple[str, ...]:
    """The tokens in the order of the model's ids."""
    return (*LETTERS, *(SPECIALS if config.special_tokens else ()))


def to_original(state: dict[str, Tensor], config: RibonanzaNetConfig) -> dict[str, Tensor]:
    """The names of the authors' code; values unchanged. ModelError for a model that their code does not have."""
    if config.attention_residual != "double":
        raise ModelError(
            "the authors' RibonanzaNet always has the second residual and norm after attention, but this model was"
            " trained with attention_residual single; release it in the other layouts only"
        )
    return {name: x for row in rows(config) for name, x in _split(state[row.ours], row.original).items()}


def channels(config: RibonanzaNetConfig) -> tuple[str, ...] | None:
    """What the outputs of a published file are, in its order; None where its number of outputs does not tell."""
    return of_outputs(config.channels)


def recognises_original(names: set[str]) -> bool:
    """Whether the names are those of a RibonanzaNet file of the authors."""
    names = {name.removeprefix("model.") for name in names}
    return {"encoder.weight", "transformer_encoder.0.triangle_update_out.left_proj.weight"} <= names


def from_original(
    state: dict[str, Tensor], heads: int = HEADS, source: str = "the checkpoint"
) -> tuple[RibonanzaNetConfig, dict[str, Tensor]]:
    """A state of the authors' code -> (configuration, our state); ``source`` names the file in errors.

    Names may be wrapped under `model` or carry the prefix `model.`; tensors outside the network proper (heads of
    fine-tuned models) are dropped, and a decoder of other than two rows sets ``channels``. All sizes come from the
    shapes, so ``heads`` is not needed. Raises ModelError if a tensor is missing, unknown or of another shape.
    """
    state = state.get("model", state)  # type: ignore[assignment]
    state = {name.removeprefix("model."): x for name, x in state.items()}
    layers = 1 + max((int(m[1]) for name in state if (m := re.match(r"transformer_encoder\.(\d+)\.", name))), default=0)

    def size(name: str, dim: int) -> int:
        x = _take(state, (name,), source)
        return x.shape[dim] if x.dim() > dim else 0

    first = "transformer_encoder.0."
    triangle = first + "triangle_attention_out.linear_for_pair.weight"
    letters = size("encoder.weight", 0)
    if letters not in (len(LETTERS), len(LETTERS) + len(SPECIALS)):
        raise ModelError(f"{source}: encoder.weight has {letters} rows where RibonanzaNet has {len(LETTERS)} letters")
    config = RibonanzaNetConfig(
        layers=layers,
        width=size("encoder.weight", 1),
        heads=size(first + "pairwise2heads.weight", 0),
        ffn=size(first + "linear1.bias", 0),
        pair=size(first + "pairwise_norm.bias", 0),
        outer=size("outer_product_mean.proj_down1.bias", 0),
        kernel_size=size(first + "conv.weight", 2) if layers > 1 else 5,
        reach=(size("pos_encoder.linear.weight", 1) - 1) // 2,
        channels=size("decoder.bias", 0),
        triangle_attention=triangle in state,
        triangle_heads=size(triangle, 0) if triangle in state else 4,
        special_tokens=letters > len(LETTERS),
    )
    return config, _read(state, config, {row: row.original for row in rows(config)}, "transformer_encoder.", source)


def to_multimolecule(
    state: dict[str, Tensor], config: RibonanzaNetConfig, tokens_theirs: int = 28
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """(config.json, tensors in fp32, vocabulary) of a `RibonanzaNetForPreTraining` directory.

    Rows of ambiguity codes are the mean of their bases, <pad> is zero, and tokens that the model does not know get
    small random rows, always the same (spec 8.3). Raises ModelError if their class cannot express the model.
    """
    content, theirs = write_config(config, tokens_theirs), list(vocabulary(tokens_theirs))
    tensors: dict[str, Tensor] = {}
    for row in rows(config):
        x = state[row.ours].float()
        tensors |= _split(_spread(x, config, theirs) if row.by_token else x, row.multimolecule)
    return content, tensors, theirs


def from_directory(directory: Path | str) -> tuple[RibonanzaNetConfig, dict[str, Tensor]]:
    """A MultiMolecule directory of RibonanzaNetForPreTraining -> (configuration, our state on our letters).

    Raises ModelError naming file and key if the model type is another, a tensor is missing, unknown or of another
    shape, the vocabulary lacks a letter, or the configuration switches on something that RibonanzaNet does not have.
    """
    directory = Path(directory)
    config, source = read_config(directory / "config.json"), str(directory)
    theirs = read_vocabulary(directory)
    # Their own converter leaves this name as the authors have it.
    state = {name.replace("triangle.gate.0.", "triangle.gate."): x for name, x in read_directory(directory).items()}
    table = rows(config)
    name = table[0].multimolecule[0]
    if name in state:
        if state[name].shape[0] != len(theirs):
            raise ModelError(
                f"{source}: {name} has {state[name].shape[0]} rows and vocab.txt {len(theirs)} tokens; the two must"
                " come from the same release"
            )
        state[name] = state[name][row_of_token(tokens(config), theirs, directory / "vocab.txt")]
    return config, _read(state, config, {row: row.multimolecule for row in table}, "model.encoder.", source)


def _spread(ours: Tensor, config: RibonanzaNetConfig, theirs: list[str]) -> Tensor:
    """[V, d] in our order -> [V', d] in the order of the tokens ``theirs``."""
    known = tokens(config)
    spread = torch.randn(len(theirs), ours.shape[1], generator=torch.Generator().manual_seed(SEED)) * 0.02
    spread[theirs.index("<pad>")] = 0
    for code, bases in BASES.items():
        spread[theirs.index(code)] = ours[[known.index(base) for base in bases]].mean(0)
    spread[[theirs.index(token) for token in known]] = ours
    return spread


def _split(x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, (part.clone() for part in x.chunk(len(names))), strict=True))


def _read(
    state: dict[str, Tensor], config: RibonanzaNetConfig, names: dict[Row, tuple[str, ...]], inner: str, source: str
) -> dict[str, Tensor]:
    """Our state out of tensors of other ``names``; of those that begin with ``inner`` none may be left over."""
    with torch.device("meta"):
        shapes = {name: list(x.shape) for name, x in RibonanzaNet(config).state_dict().items()}
    ours = {row.ours: _take(state, parts, source, shapes[row.ours]) for row, parts in names.items()}
    used = {name for parts in names.values() for name in parts}
    rest = [name for name in state if name.startswith(inner) and name not in used]
    if rest:
        raise ModelError(
            f"{source} has {len(rest)} tensors that RibonanzaNet of this size does not have, {min(rest)} first;"
            " reading on would drop them in silence"
        )
    return ours


def _take(state: dict[str, Tensor], names: tuple[str, ...], source: str, shape: list[int] | None = None) -> Tensor:
    """The tensors ``names`` joined along dimension 0, in fp32; together they must have ``shape`` if one is given."""
    for name in names:
        if name not in state:
            raise ModelError(
                f"{source} has no tensor {name}, which every such RibonanzaNet has; it is incomplete, or holds another"
                f" model (its {len(state)} tensors start with {', '.join(sorted(state)[:3])})"
            )
        found = list(state[name].shape)
        if shape is not None and found != [shape[0] // len(names), *shape[1:]]:
            raise ModelError(
                f"{source}: {name} has shape {found} where a RibonanzaNet of the file's own sizes has"
                f" {[shape[0] // len(names), *shape[1:]]}"
            )
    return torch.cat([state[name] for name in names]).float()


def _write_multimolecule(
    directory: Path, state: dict[str, Tensor], config: RibonanzaNetConfig, options: WriteOptions
) -> Path:
    state = as_published(state, options.channels, (RIBONANZA,))
    content, tensors, theirs = to_multimolecule(state, config, options.vocabulary)
    content["dtype"] = str(options.dtype).removeprefix("torch.")
    tensors = {name: x.to(options.dtype) for name, x in tensors.items()}
    huggingface.write_directory(directory, content, tensors, tokenizer_config(config), theirs, options.shard_bytes)
    return directory


def _write_original(
    directory: Path, state: dict[str, Tensor], config: RibonanzaNetConfig, options: WriteOptions
) -> Path:
    state = as_published(state, options.channels)
    path = directory / f"{options.name}.pt"
    torch.save({name: x.to(options.dtype) for name, x in to_original(state, config).items()}, path)
    return path


_USAGE = (
    python_block(
        "import multimolecule",
        "from transformers import AutoTokenizer",
        "",
        'model = multimolecule.RibonanzaNetForPreTraining.from_pretrained("PATH_OR_ID", attn_implementation="eager")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")',
    )
    + "\n`logits_2a3` and `logits_dms` are the predicted reactivities of every nucleotide.\n"
)
_ORIGINAL_USAGE = """In the authors' repository (github.com/Shujun-He/RibonanzaNet), with their configs/pairwise.yaml:

```python
model = RibonanzaNet(load_config_from_yaml("configs/pairwise.yaml"))
model.load_state_dict(torch.load("PATH_OR_ID", weights_only=True))
```

Their code treats padding differently: predict sequences of one length per batch, or one at a time.
"""


def _multimolecule_says_padding(config: RibonanzaNetConfig) -> bool:
    return config.mask_mode in ("fixed", "signed")


def _multimolecule_notes(config: RibonanzaNetConfig, letters: str) -> str:
    if _multimolecule_says_padding(config):
        return ""
    return (
        f"The model was trained with mask_mode {config.mask_mode}, which MultiMolecule does not have. Its outputs are "
        "right without padding: predict sequences of one length per batch, or one at a time.\n"
    )


def _original_notes(config: RibonanzaNetConfig, letters: str) -> str:
    return f"The outputs of the file in `original/` are {', '.join(channels(config) or ())}, in this order.\n"


def _fits_multimolecule(config: RibonanzaNetConfig, trained: Trained) -> bool:
    return (published_order(trained.channels), config.reach) == (RIBONANZA, REACH)


def _fits_original(config: RibonanzaNetConfig, trained: Trained) -> bool:
    """Their code knows no other residual than the double one; rows have no names, so their order must be known."""
    return config.attention_residual == "double" and published_order(trained.channels) in PUBLISHED


RELEASES = {
    "multimolecule": ReleaseLayout(
        "",
        _write_multimolecule,
        _USAGE,
        library="multimolecule",
        fits=_fits_multimolecule,
        notes=_multimolecule_notes,
        says_padding=_multimolecule_says_padding,
    ),
    "original": ReleaseLayout(
        "original",
        _write_original,
        _ORIGINAL_USAGE,
        fits=_fits_original,
        notes=_original_notes,
        says_padding=lambda config: config.mask_mode == "fixed",  # the file says nothing, and is read as that
    ),
}
