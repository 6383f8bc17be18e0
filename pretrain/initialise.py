"""The weights a run starts from: drawn from the seed, or taken from a release (`init_from`)."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import randomness
from data.manifest import MANIFEST
from models import MODELS
from models.layouts import detect
from models.layouts.channels import reordered
from models.layouts.detect import LAYOUTS, read_checkpoint
from pretrain import checkpoint, recipe, run_tokenizer
from pretrain.config import Recipe
from pretrain.errors import PretrainError
from pretrain.estimate import cost_of

log = logging.getLogger("rnafoundry")


def build_model(settings: Recipe) -> nn.Module:
    """The recipe's model in fp32 on the CPU, initialised from the seed alone: the same on every rank and machine."""
    _, model_class = MODELS[recipe.model_name(settings)]
    torch.manual_seed(randomness.key(settings.run.seed, "weights"))
    model: nn.Module = model_class(settings.model)
    return model


def load_initial(model: nn.Module, settings: Recipe) -> dict[str, Any]:
    """Load `init_from` into ``model``; returns what a release must say of it (`origin_of`).

    Accepts a run directory or a checkpoint of ours, a directory in MultiMolecule/Hugging Face layout, a file in the
    original layout, or a hub id. Raises PretrainError when it holds another model or other sizes.
    """
    assert settings.init_from is not None
    source = locate(settings.init_from)
    name, config, state = read_weights(source, heads=settings.model.heads)
    wanted = recipe.model_name(settings)
    if name != wanted:
        raise PretrainError(f"init_from={settings.init_from} holds a {name} model, but the recipe trains {wanted}")
    adapt = getattr(LAYOUTS[name], "adapt", None)
    if adapt is not None:
        config, state = adapt(config, state, settings.model)
    _require_same_sizes(settings.model, config, settings.init_from)
    state = _in_order_of(settings, source, config, state)
    run_tokenizer.require_same_origin(source, settings)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if hasattr(settings.model, "ffn_pad_to"):
        state = cost_of(settings).add_padding(state, settings.model)
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found != expected:
        key = sorted(set(found.items()) ^ set(expected.items()))[0][0]
        raise PretrainError(
            f"init_from={settings.init_from}: tensor {key} has shape {found.get(key)}, but the recipe's model has "
            f"{expected.get(key)}; choose the model.size of that checkpoint"
        )
    model.load_state_dict(state)
    origin = origin_of(source, settings.init_from)
    licence = origin["licence"]
    if licence and "agpl" in licence.lower():
        log.warning(
            "%s is released under %s; what is trained from it may only be published under its terms",
            settings.init_from,
            licence,
        )
    return origin


def _in_order_of(settings: Recipe, source: Path, config: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the rows of the recipe's channels, found by name; unchanged where outputs are tokens.

    Raises PretrainError if the weights in ``source`` do not have them.
    """
    wanted = recipe.channels(settings)
    if not wanted:
        return state
    found = channels_of(source, recipe.model_name(settings), config)
    if found is None:
        outputs, named = len(state["head.bias"]), ", ".join(wanted)
        if outputs != len(wanted):
            raise PretrainError(
                f"init_from={settings.init_from} has {outputs} outputs without names, but objective.channels are "
                f"{named}; give other weights or as many channels"
            )
        log.warning(
            "init_from=%s: nothing names its %d outputs; they are taken to be %s", settings.init_from, outputs, named
        )
        return state
    missing = [name for name in wanted if name not in found]
    if missing:
        raise PretrainError(
            f"init_from={settings.init_from} predicts {', '.join(found)}, but objective.channels asks for "
            f"{', '.join(missing)}; choose channels that it has, or other weights"
        )
    return reordered(state, found, wanted)


def channels_of(source: Path, name: str, config: Any) -> tuple[str, ...] | None:
    """What the outputs of a model of channels are, in the order of its weights as `read_weights` gives them.

    None where nothing says it. ``name`` and ``config``: of the model.
    """
    own = own_checkpoint(source)
    if own is None:
        return detect.channels_of(source, name, config)
    return recipe.channels(recipe.read_resolved(own.recipe_path))


def origin_of(source: Path, named: str) -> dict[str, Any]:
    """Where the weights in ``source`` come from: {"init_from", "local", "licence", "before"}.

    ``before`` is the origin of the run that made them, if that is one of ours which started from other weights; their
    licence then goes on to apply. ``named`` is how the recipe called the source.
    """
    own = own_checkpoint(source)
    before = own.progress.origin if own else None
    licence = stated_licence(source) if own is None else (before or {}).get("licence")
    return {"init_from": named, "local": Path(named).exists(), "licence": licence, "before": before}


def stated_licence(path: Path) -> str | None:
    """The licence in the front matter of the model card beside released weights; None where there is none."""
    card = path / "README.md" if path.is_dir() else path.with_name("README.md")
    if not card.is_file():
        return None
    front = card.read_text(encoding="utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    found = re.search(r"^license:\s*(.+?)\s*$", front, flags=re.MULTILINE)
    return found.group(1).strip("\"'") if found else None


def locate(source: str) -> Path:
    """The local path of what `init_from` names: itself if it exists, else a snapshot of that hub repository."""
    if (Path(source) / MANIFEST).is_file():
        raise PretrainError(f"init_from={source} is a corpus, not weights; give a run, a release, a file or a hub id")
    return Path(source) if Path(source).exists() else _from_hub(source)


def read_weights(path: Path, heads: int | None = None) -> tuple[str, Any, dict[str, Tensor]]:
    """(model name, model config, state without feed-forward padding) from anything local that `init_from` accepts.

    ``heads`` is for the original layout, which does not store their number.
    """
    own = own_checkpoint(path)
    if own is None:
        return read_checkpoint(path, heads)
    own.verify()
    settings = recipe.read_resolved(own.recipe_path)
    return recipe.model_name(settings), settings.model, unpadded(settings, own.weights())


def own_checkpoint(path: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint that ``path`` is, or the newest one of the run directory that ``path`` is; else None."""
    if (path / checkpoint.MANIFEST).is_file() or checkpoint.is_step_directory(path):
        return checkpoint.Checkpoint(path)
    if (path / "checkpoints").is_dir():
        found = checkpoint.newest(path / "checkpoints")
        if found is None:
            raise PretrainError(f"the run {path} has no checkpoint yet; let it train until it has saved one")
        return found
    return None


def unpadded(settings: Recipe, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A training state in the shapes that are published."""
    return cost_of(settings).strip_padding(state, settings.model) if hasattr(settings.model, "ffn_pad_to") else state


def _require_same_sizes(ours: Any, theirs: Any, source: str) -> None:
    for key in ("layers", "width", "heads", "ffn", "vocab"):
        if getattr(ours, key) != getattr(theirs, key):
            raise PretrainError(
                f"init_from={source} has model.{key} = {getattr(theirs, key)}, but the recipe has {getattr(ours, key)}"
                "; choose the model.size of that checkpoint"
            )


def _from_hub(repository: str) -> Path:
    """A local snapshot of a hub repository: weights, configuration, vocabulary and model card only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.bin", "vocab.txt", "README.md"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise PretrainError(
            f"init_from={repository} is no file or directory here, and cannot be had from the hub as a repository "
            f"({type(error).__name__}); give a path, or check the id and the connection"
        ) from error
