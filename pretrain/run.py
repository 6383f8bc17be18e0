"""The run directory: everything about a run, and the decision whether it starts or continues.

runs/NAME/recipe.yaml         every key with its value (of the latest start)
          environment.json    versions and machine (of the latest start)
          tokenizer/      a copy of the tokenizer, where tokens are pieces (run_tokenizer.py)
          metrics.jsonl       one record per logged step and validation
          lock                held by rank 0 while it runs (run_lock.py)
          logs/rank-00000.log one per rank
          checkpoints/        see checkpoint.py
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.secrets import masked, masked_content
from pretrain import checkpoint, recipe, resuming
from pretrain.config import Recipe
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.products import products_by

log = logging.getLogger("rnafoundry")
PACKAGES = (
    "rnafoundry",
    "torch",
    "deepspeed",
    "numpy",
    "webdataset",
    "sentencepiece",
    "omegaconf",
    "safetensors",
    "flash-attn",
)


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _LogFile(logging.FileHandler):
    """Says once, and in one line, when it cannot be written."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            print(f"warning: {self.baseFilename} cannot be written ({sys.exc_info()[1]})", file=sys.stderr)


class RunDirectory:
    def __init__(self, settings: Recipe):
        self.path = Path(settings.run.directory) / settings.run.name
        self.checkpoints = self.path / "checkpoints"

    def create(self) -> None:
        """Raises PretrainError when the directory cannot be made."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def start_log(self, rank: int) -> None:
        """Log to a file of this rank; warnings of rank 0 also go to the screen.

        Raises PretrainError when the file cannot be written.
        """
        log.setLevel(logging.INFO)
        log.propagate = False
        for handler in list(log.handlers):
            log.removeHandler(handler)
        try:
            file = _LogFile(self.path / "logs" / f"rank-{rank:05d}.log")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        file.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
        if rank == 0:
            screen = logging.StreamHandler(sys.stderr)
            screen.setLevel(logging.WARNING)
            screen.setFormatter(_WithoutSecrets("warning: %(message)s"))
            log.addHandler(screen)

    def describe(self, settings: Recipe, world: World) -> None:
        """Write recipe.yaml and environment.json. Raises PretrainError when they cannot be written."""
        try:
            _replace(self.path / "recipe.yaml", recipe.to_yaml(settings))
            _replace(self.path / "environment.json", json.dumps(environment(world), indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def to_resume(self, resume: str, world: World) -> checkpoint.Checkpoint | None:
        """The checkpoint to continue from, its content verified, or None for a new run.

        ``resume`` is run.resume of the recipe. All ranks call this; where it fails, it raises PretrainError on all.
        """
        if resume == "auto":
            found = resuming.newest_good(self.checkpoints, world)
        elif resume == "never":
            world.together(self._require_no_checkpoints)
            found = None
        else:
            found = resuming.open_verified(Path(resume), world)
            step = found.progress.step
            world.together(lambda: self._require_none_later(resume, step))
        world.require_same(found.sha256 if found else "none", "checkpoint to continue from")
        return found

    def _require_no_checkpoints(self) -> None:
        if checkpoint.steps_on_disk(self.checkpoints):
            raise PretrainError(
                f"{self.path} already holds checkpoints and run.resume is never; choose another run.name, or "
                "continue it with run.resume=auto"
            )

    def _require_none_later(self, resume: str, than: int) -> None:
        later = [path for step, path in checkpoint.steps_on_disk(self.checkpoints) if step > than]
        if later:
            raise PretrainError(
                f"run.resume={resume} is older than {later[0]} of the same run; continue that with run.resume=auto, or "
                "move the later checkpoints away, or choose another run.name"
            )


def _unwritable(path: Path, error: OSError) -> PretrainError:
    return PretrainError(f"the run directory {path} cannot be written ({error}); mend it, or set run.directory")


def require_same_run(found: checkpoint.Checkpoint, settings: Recipe, fingerprint: str) -> list[str]:
    """Refuse to continue ``found`` under a recipe that would make it another run; returns what else has changed.

    Corpus, seed and global batch decide which samples a step trains on, and the model what the weights mean.
    """
    if found.progress.fingerprint != fingerprint and not settings.data.allow_changed:
        raise PretrainError(
            f"{found.path} was trained on the corpus {found.progress.fingerprint[:16]}, but the recipe's is "
            f"{fingerprint[:16]}; use the old corpus, or start a new run with init_from={found.path} (or, to go on "
            "with other data under the same step numbers, data.allow_changed=true)"
        )
    before = recipe.read_resolved(found.recipe_path)
    for key in ("run.seed", "batch.sequences"):
        old, new = _value(before, key), _value(settings, key)
        if old != new:
            raise PretrainError(
                f"{found.path} was trained with {key}={old}, but the recipe says {new}, which would train other "
                f"samples in every step; keep {old}, or start a new run with init_from={found.path}"
            )
    if before.optimizer.name != settings.optimizer.name:
        raise PretrainError(
            f"{found.path} holds the state of the optimizer {before.optimizer.name}, but the recipe says "
            f"{settings.optimizer.name}; keep it, or start a new run with init_from={found.path}"
        )
    old_channels, new_channels = recipe.channels(before), recipe.channels(settings)
    if old_channels != new_channels:
        raise PretrainError(
            f"{found.path} predicts {', '.join(old_channels)}, but objective.channels is {', '.join(new_channels)}, so "
            f"its outputs would change places; keep the order, or start a new run with init_from={found.path}"
        )
    old_model, new_model = recipe.to_dict(before)["model"], recipe.to_dict(settings)["model"]
    for key in old_model.keys() | new_model.keys():
        if key not in recipe.HOW_IT_RUNS and old_model.get(key) != new_model.get(key):
            raise PretrainError(
                f"{found.path} holds a model with model.{key}={old_model.get(key)}, but the recipe says "
                f"{new_model.get(key)}; keep the model, or start a new run"
            )
    return _changes(masked_content(recipe.to_dict(before)), masked_content(recipe.to_dict(settings)))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = []
    for section in sorted(old.keys() & new.keys()):
        before, after = old[section], new[section]
        if isinstance(before, dict) and isinstance(after, dict):
            lines += [
                f"{section}.{key}: {before.get(key)} -> {after.get(key)}"
                for key in sorted(before.keys() | after.keys())
                if before.get(key) != after.get(key)
            ]
        elif before != after:  # init_from, which a run that is continued does not read again
            lines.append(f"{section}: {before} -> {after}")
    return lines


def _value(settings: Recipe, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def environment(world: World) -> dict[str, object]:
    """What a later reader needs to repeat a run; no user names, paths or variables of the shell."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor() or "cpu"
    return {
        "packages": versions,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
        "ranks": world.ranks,
        "threads_per_rank": torch.get_num_threads(),
        "cpu_products": products_by(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
    }


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
