"""From a run to a directory that others load, checked before it is published.

The directory is written aside; every layout in it is read back from disk, put into a fresh model, and must give the
trained model's outputs on real sequences; only then is it renamed into place.

    release/README.md, config.json, model.safetensors, ...   the model's main layout, loaded by `from_pretrained`
            original/NAME.pt, ...                            its other layouts, such as that of the authors' repository
            recipe.yaml                                      every setting of the run

Which layouts a model has is said in its layout file (`RELEASES`, see models/layouts/releasing.py). Where its main one
cannot express the model (channels other than the published ones), our own stands in its place (models/layouts/own.py).
Where tokens are pieces of several nucleotides, none of them can express the vocabulary. Such a run is released in our
own layout with its tokenizer, which transformers loads:

    release/README.md, config.json, model.safetensors, vocab.txt, recipe.yaml
            tokenizer.json, tokenizer_config.json, sentencepiece.model, sentencepiece.json
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.sentencepiece_tokenizer import SentencePieceTokenizer
from models.layouts import own
from models.layouts.detect import LAYOUTS, read_checkpoint
from models.layouts.releasing import ReleaseLayout, Trained, WriteOptions
from pretrain import recipe, run_tokenizer
from pretrain.card import model_card, own_usage
from pretrain.checkpoint import Checkpoint
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.initialise import channels_of, own_checkpoint, unpadded
from pretrain.release_check import (
    compared_columns,
    model_of,
    outputs_of,
    samples_of,
    trained_letters,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
log = logging.getLogger("rnafoundry")

# Largest difference of a logit that counts as the same model. fp32 weights come back bit for bit; bf16 ones are
# rounded, so they are compared with the trained weights rounded alike.
TOLERANCE = 1e-4


@dataclass
class Options:
    layouts: tuple[str, ...] | None = None  # all that can express the model's vocabulary
    vocabulary: int = 28  # MultiMolecule's alphabet: 28 tokens since 0.2.0, 26 before
    dtype: str = "float32"
    shard_bytes: int | None = None
    licence: str | None = None
    sequences: Path | None = None  # FASTA to check outputs on; the run's corpus unless given
    overwrite: bool = False


@dataclass
class Checked:
    layout: str
    path: Path
    largest_difference: float  # of any logit
    sequences: int
    filled: str  # Markdown on rows that training never used and that are filled; "" for none


def release(source: Path, to: Path, options: Options) -> tuple[Checkpoint, list[Checked]]:
    """Export ``source`` (a run directory or one checkpoint) to the new directory ``to``.

    Raises PretrainError, DataError or ModelError, leaving nothing behind, when something is missing, ``to`` exists, or
    a written layout does not give the trained model's outputs.
    """
    found = own_checkpoint(source)
    if found is None:
        raise PretrainError(_why_none(source))
    if to.exists() and not options.overwrite:
        raise PretrainError(f"{to} exists already; choose another --to, or give --overwrite to replace it")
    if to.exists() and not to.is_dir():
        raise PretrainError(f"{to} is a file, and a release is a directory; choose another --to")
    if to.exists() and any(to.iterdir()) and not (to / "recipe.yaml").is_file():
        raise PretrainError(f"{to} is not a release, so --overwrite does not replace it; choose another --to")
    found.verify()
    settings = recipe.read_resolved(found.recipe_path)
    run = found.path.parent.parent if found.path.parent.name == "checkpoints" else None
    _, last = recipe.stage_recipes(settings)[-1]
    with_tokenizer = run_tokenizer.with_kept_tokenizer(last, run)
    layouts = _layouts(with_tokenizer, options.layouts)
    state = unpadded(settings, found.weights())
    samples = samples_of(with_tokenizer, options.sequences)

    partial = to.parent / f".{to.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        checked = [
            _write_and_check(layout, writer, partial, state, with_tokenizer, samples, options)
            for layout, writer in layouts.items()
        ]
        filled = "".join(result.filled for result in checked)
        (partial / "recipe.yaml").write_text(recipe.to_yaml(settings))
        (partial / "README.md").write_text(
            model_card(run, found, settings, with_tokenizer, to.name, options.licence, layouts, filled)
        )
        _publish(partial, to)
    except OSError as error:
        raise PretrainError(f"the release cannot be written to {to} ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for result in checked:
        result.path = to / result.path.relative_to(partial)
    return found, checked


def _why_none(source: Path) -> str:
    """Why there is no checkpoint in what was given as one."""
    if not source.exists():
        return f"{source} does not exist; give a run directory or a checkpoint (step-NNNNNNNN)"
    if (source / "recipe.yaml").is_file() and (source / "config.json").is_file():
        return f"{source} is a release; give the run, or the checkpoint, that it was made of"
    if (source / "logs").is_dir():
        return f"the run {source} has no checkpoint yet; the last lines in {source / 'logs'} say where it stands"
    return f"{source} is neither a run directory nor a checkpoint (step-NNNNNNNN)"


def _own_layout(settings: Recipe) -> ReleaseLayout:
    name, named = recipe.model_name(settings), getattr(settings.objective, "tokenizer", None)
    tokenizer = None if named is None else SentencePieceTokenizer.load(named)
    tokens = LAYOUTS[name].tokens(settings.model) if tokenizer is None else tokenizer.tokens

    def write(directory: Path, state: dict[str, Tensor], config: Any, options: WriteOptions) -> Path:
        how = options.dtype, options.shard_bytes, options.channels
        own.write(directory, name, state, config, list(tokens), *how)
        if tokenizer is not None:
            run_tokenizer.copy_files(tokenizer, directory)
        return directory

    return ReleaseLayout("", write, own_usage(recipe.channels(settings)))


def release_layouts(settings: Recipe) -> dict[str, ReleaseLayout]:
    """Every layout that can express the run's model and vocabulary, by name, the main directory first."""
    found: dict[str, ReleaseLayout] = {}
    if getattr(settings.objective, "tokenizer", None) is None:
        releases: dict[str, ReleaseLayout] = LAYOUTS[recipe.model_name(settings)].RELEASES
        trained = Trained(trained_letters(settings), recipe.channels(settings))
        found = {key: layout for key, layout in releases.items() if layout.fits(settings.model, trained)}
    if any(layout.folder == "" for layout in found.values()):
        return found
    return {"rnafoundry": _own_layout(settings), **found}


def _layouts(settings: Recipe, wanted: tuple[str, ...] | None) -> dict[str, ReleaseLayout]:
    """The layouts to write. Raises PretrainError for one that the model or its vocabulary has not."""
    possible = release_layouts(settings)
    for layout in wanted or ():
        if layout not in possible:
            kind = "single nucleotides" if getattr(settings.objective, "tokenizer", None) is None else "pieces"
            what = f"whose tokens are {kind}"
            if channels := recipe.channels(settings):
                what = f"of these settings and the channels {', '.join(channels)}"
            raise PretrainError(
                f"there is no {layout} layout for a {recipe.model_name(settings)} model {what}; "
                f"choose --layout {' or '.join(possible)}, or leave it out"
            )
    return {name: layout for name, layout in possible.items() if not wanted or name in wanted}


def _write_and_check(
    layout: str,
    writer: ReleaseLayout,
    directory: Path,
    state: dict[str, Tensor],
    settings: Recipe,
    samples: list[Any],
    options: Options,
) -> Checked:
    name, dtype = recipe.model_name(settings), DTYPES[options.dtype]
    config, place = _unpadded_config(settings), directory / writer.folder
    place.mkdir(exist_ok=True)
    stem = f"{name}_{settings.run.name}"
    channels = recipe.channels(settings)
    how = WriteOptions(stem, dtype, options.shard_bytes, options.vocabulary, trained_letters(settings), channels)
    path = writer.write(place, state, config, how)
    read_name, read_config, read_state = read_checkpoint(path, config.heads)
    if read_name != name:
        raise PretrainError(f"the release was not published: {path} reads back as a {read_name} model")
    rounded = {key: value.to(dtype).float() for key, value in state.items()}
    padded = writer.says_padding(config)
    if not padded:
        text = "the %s layout cannot say how padding is treated: its outputs are the trained model's without padding"
        log.warning(text, layout)
    models = (model_of(name, config, rounded), model_of(name, read_config, read_state))
    before, after = (outputs_of(model, settings, samples, padded=padded) for model in models)
    named = channels_of(path, name, read_config) if channels else None
    ours, theirs = compared_columns(settings, config, read_config, named)
    pairs = zip(before, after, strict=True)
    difference = max(float((one[..., ours] - other[..., theirs]).abs().max()) for one, other in pairs)
    if not difference <= TOLERANCE:
        raise PretrainError(
            f"the release was not published: read back from the {layout} layout, the model's outputs differ by "
            f"{difference:.2g} (at most {TOLERANCE:g} is allowed)"
        )
    return Checked(layout, path, difference, len(samples), writer.filled(state, how))


def _unpadded_config(settings: Recipe) -> Any:
    config = recipe.on_any_machine(settings.model)
    return dataclasses.replace(config, ffn_pad_to=1) if hasattr(config, "ffn_pad_to") else config


def _publish(partial: Path, to: Path) -> None:
    """Rename into place; a directory that stands there (--overwrite) is moved aside first and removed after."""
    umask = os.umask(0)
    os.umask(umask)
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)  # safetensors writes files that only their owner may read
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    aside = to.parent / f".{to.name}.replaced"
    shutil.rmtree(aside, ignore_errors=True)
    if to.exists():
        to.rename(aside)
    partial.rename(to)
    shutil.rmtree(aside, ignore_errors=True)
