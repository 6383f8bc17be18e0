"""From a recipe file and `key=value` arguments to a checked, complete recipe, and back to YAML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data import structured
from data.secrets import masked_content
from models import MODELS
from pretrain.config import BudgetConfig, DataConfig, Recipe
from pretrain.errors import PretrainError
from pretrain.objectives import OBJECTIVES
from pretrain.objectives.intervals_config import IntervalsConfig, with_presets
from pretrain.schedule import NAMES


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe ``name`` (a path, or a name in configs/) with overrides laid over it.

    Raises DataError, ModelError or PretrainError.
    """
    path = structured.find(name)
    file = structured.read_yaml(path)
    layers = [(str(path), file), ("the command line", structured.read_overrides(overrides))]
    return resolve(layers, default_name=path.stem)


def resolve(layers: Sequence[tuple[str, DictConfig]], default_name: str) -> Recipe:
    """A complete recipe from (origin, mapping) layers, later ones winning."""
    recipe = _merged(layers, default_name)
    if recipe.stages:
        _check_stages(recipe)
        if recipe.budget.steps is not None or recipe.budget.epochs is not None:
            raise PretrainError("with stages every stage has its own budget; leave budget.steps and budget.epochs out")
    else:
        check(recipe)
    return recipe


def _merged(layers: Sequence[tuple[str, DictConfig]], default_name: str) -> Recipe:
    schema = Recipe()
    schema.run.name = default_name
    # `model` and `objective` have a schema of their own, known once their name is.
    plain = [(origin, _without(layer, "model", "objective")) for origin, layer in layers]
    recipe: Recipe = structured.merge(dataclasses.replace(schema, model=None, objective=None), plain)
    try:
        recipe.model = _model(layers)
        recipe.objective = _objective(layers)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        where = " and ".join(origin for origin, _ in layers)
        raise PretrainError(f"{where}: {error.full_key}: {str(error).splitlines()[0]}") from error
    return recipe


STAGE_SECTIONS = ("data", "objective", "batch", "budget", "schedule", "optimizer", "validation")
STAGE_KEYS = {  # of a section that a stage may set in part
    "optimizer": ("learning_rate",),
    "validation": ("every_steps", "sequences", "baselines"),  # at_start is before the first step of the run
}


def stage_recipes(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """(name, the recipe as it holds in that stage) of every stage; one without name where there are none.

    Raises PretrainError or DataError if a stage has another section than STAGE_SECTIONS, or a key that is not one or
    holds for the whole run.
    """
    if not recipe.stages:
        return [("", recipe)]
    base = to_dict(dataclasses.replace(recipe, stages={}))
    found = []
    for name, own in recipe.stages.items():
        if not isinstance(own, Mapping):
            raise PretrainError(f"stages.{name} must be sections with keys of this stage, not {own!r}")
        for section, keys in own.items():
            _require_of_a_stage(f"stages.{name}.{section}", section, keys)
        layer = dict(own)
        if "data" in own:  # a stage's corpus takes the place of a mixture and the other way round
            layer["data"] = {"corpus": None, "mixture": [], **own["data"]}
        layers = [("the recipe", OmegaConf.create(base)), (f"stages.{name}", OmegaConf.create(layer))]
        found.append((str(name), _merged(layers, recipe.run.name)))
    return found


def channels(recipe: Recipe) -> tuple[str, ...]:
    """What the outputs of the model are, in their order: of the last stage, as of all. None where they are tokens."""
    _, last = stage_recipes(recipe)[-1]
    return tuple(getattr(last.objective, "channels", ()))


# Keys of a model that change its memory and speed and nothing else, each with a value that every machine can run.
HOW_IT_RUNS = {"kernel": "auto", "triangle_kernel": "own", "checkpointing": False}


def on_any_machine(model: Any) -> Any:
    """The configuration of a model without what only the machine that trains it may have, such as a kernel."""
    has = {field.name for field in dataclasses.fields(model)}
    return dataclasses.replace(model, **{key: value for key, value in HOW_IT_RUNS.items() if key in has})


def _require_of_a_stage(path: str, section: str, keys: Any) -> None:
    if section not in STAGE_SECTIONS:
        raise PretrainError(
            f"{path}: a stage has {', '.join(STAGE_SECTIONS)} of its own; everything else holds for the whole run"
        )
    if not isinstance(keys, Mapping):
        raise PretrainError(f"{path} must be a section of keys, such as {path}.KEY, not {keys!r}")
    if section not in STAGE_KEYS:
        return
    for key in structured.all_keys(getattr(Recipe(), section)):
        if key in keys and key not in STAGE_KEYS[section]:  # what is no key at all is told with the nearest one
            allowed = " and ".join(f"{section}.{one}" for one in STAGE_KEYS[section])
            raise PretrainError(f"{path}.{key}: a stage may only set {allowed}; {section}.{key} is of the whole run")


def _check_stages(recipe: Recipe) -> None:
    """`check` of every stage; a problem is told with the stage's name where it is the stage that brings it."""
    common = _problem(dataclasses.replace(recipe, data=DataConfig(corpus="any"), budget=BudgetConfig(steps=1)))
    for name, stage in stage_recipes(recipe):
        found = _problem(stage)
        if found is not None:
            raise PretrainError(found if found == common else f"stages.{name}: {found}")


def _problem(recipe: Recipe) -> str | None:
    try:
        check(recipe)
    except PretrainError as error:
        return str(error)
    return None


def _without(layer: DictConfig, *sections: str) -> DictConfig:
    kept = [key for key in layer if key not in sections]
    return OmegaConf.masked_copy(layer, kept)  # type: ignore[arg-type]  # keys need not be str for it


def _section(layers: Sequence[tuple[str, DictConfig]], section: str) -> list[tuple[str, DictConfig]]:
    found = []
    for origin, layer in layers:
        part = layer.get(section)
        if part is None:
            continue
        if not OmegaConf.is_dict(part):
            raise PretrainError(f"{origin}: {section} must be a section of keys such as {section}.name, not {part!r}")
        found.append((origin, part))
    return found


def _chosen(layers: list[tuple[str, DictConfig]], section: str, known: Sequence[str]) -> str:
    names = [part.name for _, part in layers if "name" in part]
    if not names:
        raise PretrainError(f"{section}.name must be given; known are {', '.join(known)}")
    if names[-1] not in known:
        raise PretrainError(f"{section}.name is {names[-1]!r}, but must be one of {', '.join(known)}")
    return str(names[-1])


def _model(layers: Sequence[tuple[str, DictConfig]]) -> Any:
    """The model's config dataclass. `size` picks one of its named sizes (null: none), every other key sets a field."""
    parts = _section(layers, "model")
    name = _chosen(parts, "model", list(MODELS))
    config_class, _ = MODELS[name]
    sizes = [part["size"] for _, part in parts if "size" in part]
    start = config_class.named(str(sizes[-1])) if sizes and sizes[-1] is not None else config_class
    fields = [(origin, _without(part, "size", "name")) for origin, part in parts]
    return structured.merge(start, fields, prefix="model.", also=("name", "size"))


def _objective(layers: Sequence[tuple[str, DictConfig]]) -> Any:
    parts = _section(layers, "objective")
    name = _chosen(parts, "objective", list(OBJECTIVES))
    config_class, _ = OBJECTIVES[name]
    if config_class is IntervalsConfig:
        parts = with_presets(parts)
    return structured.merge(config_class(), parts, prefix="objective.")


def model_name(recipe: Recipe) -> str:
    return next(name for name, (config_class, _) in MODELS.items() if isinstance(recipe.model, config_class))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, as plain nested dictionaries."""
    content = dataclasses.asdict(recipe)
    content["model"] = {"name": model_name(recipe), **content["model"]}
    return content


def to_yaml(recipe: Recipe) -> str:
    """`to_dict` as YAML without secrets (data/secrets.py); where it has none, reading it back gives an equal recipe."""
    return OmegaConf.to_yaml(OmegaConf.create(masked_content(to_dict(recipe))))


def read_resolved(path: Path) -> Recipe:
    """A recipe that a run wrote with ``to_yaml``."""
    return resolve([(str(path), structured.read_yaml(path))], default_name=path.parent.name)


def check(recipe: Recipe) -> None:
    """Values that are of the right type but cannot work, each with a sentence."""

    def refuse(key: str, found: object, expected: str) -> None:
        raise PretrainError(f"{key} is {found!r}, but must be {expected}")

    if (recipe.data.corpus is None) == (not recipe.data.mixture):
        raise PretrainError("give exactly one of data.corpus (a directory or url) and data.mixture (a list of corpora)")
    budget = recipe.budget
    if (budget.steps is None) == (budget.epochs is None):
        raise PretrainError("give exactly one of budget.steps and budget.epochs (the other as null)")
    positive = {
        "budget.steps": budget.steps,
        "budget.epochs": budget.epochs,
        "batch.sequences": recipe.batch.sequences,
        "batch.tokens_per_micro_batch": recipe.batch.tokens_per_micro_batch,
        "tracking.log_every_steps": recipe.tracking.log_every_steps,
        "optimizer.stop_after_skipped": recipe.optimizer.stop_after_skipped,
        "checkpoint.keep": recipe.checkpoint.keep,
        "compute.prefetch_steps": recipe.compute.prefetch_steps,
        "compute.threads": recipe.compute.threads,
        "compute.timeout_minutes": recipe.compute.timeout_minutes,
        "compute.peak_tflops": recipe.compute.peak_tflops,
        "optimizer.learning_rate": recipe.optimizer.learning_rate,
        "optimizer.lookahead_steps": recipe.optimizer.lookahead_steps,
        "spikes.window": recipe.spikes.window,
        "spikes.threshold": recipe.spikes.threshold,
        "spikes.leave_out_steps": recipe.spikes.leave_out_steps,
        "spikes.most": recipe.spikes.most,
        "schedule.decay_steps": recipe.schedule.decay_steps,
        "schedule.decay_epochs": recipe.schedule.decay_epochs,
        "checkpoint.permanent_every_steps": recipe.checkpoint.permanent_every_steps,
    }
    not_negative = {
        "optimizer.eps": recipe.optimizer.eps,
        "optimizer.weight_decay": recipe.optimizer.weight_decay,
        "optimizer.gradient_clipping": recipe.optimizer.gradient_clipping,
        "schedule.warmup_steps": recipe.schedule.warmup_steps,
        "schedule.warmup_start": recipe.schedule.warmup_start,
        "schedule.minimum": recipe.schedule.minimum,
        "validation.every_steps": recipe.validation.every_steps,
        "validation.sequences": recipe.validation.sequences,
        "checkpoint.every_steps": recipe.checkpoint.every_steps,
        "checkpoint.every_minutes": recipe.checkpoint.every_minutes,
    }
    for key, number in positive.items():
        if number is not None and not 0 < number < math.inf:
            refuse(key, number, "above 0")
    for key, number in not_negative.items():
        if number is not None and not 0 <= number < math.inf:
            refuse(key, number, "0 or more")
    if len(recipe.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.optimizer.betas):
        refuse("optimizer.betas", recipe.optimizer.betas, "two numbers in [0, 1)")
    if not 0 < recipe.optimizer.lookahead_share <= 1:
        refuse("optimizer.lookahead_share", recipe.optimizer.lookahead_share, "above 0 and at most 1")
    choices = {
        "spikes.action": (recipe.spikes.action, ("ignore", "report", "roll_back")),
        "optimizer.name": (recipe.optimizer.name, ("adamw", "ranger")),
        "optimizer.decayed": (recipe.optimizer.decayed, ("matrices", "all_but_norms", "all")),
        "schedule.name": (recipe.schedule.name, NAMES),
        "compute.precision": (recipe.compute.precision, ("fp32", "bf16", "bf16_autocast")),
        "deepspeed.zero_stage": (recipe.deepspeed.zero_stage, (0, 1, 2, 3)),
        "tracking.wandb": (recipe.tracking.wandb, ("disabled", "offline", "online")),
    }
    for key, (found, allowed) in choices.items():
        if found not in allowed:
            refuse(key, found, "one of " + ", ".join(map(str, allowed)))
    if recipe.schedule.decay_steps is not None and recipe.schedule.decay_epochs is not None:
        raise PretrainError("give one of schedule.decay_steps and schedule.decay_epochs, not both")
    ranger_uncut = recipe.optimizer.name == "ranger" and recipe.deepspeed.zero_stage == 0
    if recipe.optimizer.clip_before_centralising and not ranger_uncut:
        raise PretrainError(
            "optimizer.clip_before_centralising=true needs optimizer.name=ranger and deepspeed.zero_stage=0: from "
            "stage 1 on gradients are clipped when ZeRO has cut them, and only whole ones can be centralised"
        )
    if recipe.deepspeed.offload and recipe.deepspeed.zero_stage == 0:
        raise PretrainError("deepspeed.offload=true needs deepspeed.zero_stage 1, 2 or 3")
    if recipe.compute.precision == "bf16" and recipe.deepspeed.zero_stage == 0:
        raise PretrainError(
            "compute.precision=bf16 with deepspeed.zero_stage=0 is refused: there DeepSpeed applies an optimizer step "
            "before training starts, so weights and Adam's step count are wrong; use stage 1 or 2 (also on one GPU)"
        )
    longest = getattr(recipe.objective, "max_tokens", 0)  # of reactivity none: the corpus says it
    if recipe.batch.tokens_per_micro_batch < longest:
        raise PretrainError(
            f"batch.tokens_per_micro_batch = {recipe.batch.tokens_per_micro_batch} cannot hold one sequence of "
            f"objective.max_tokens = {longest}; raise the first or lower the second"
        )
    most = getattr(recipe.model, "max_tokens", None)
    if most is not None and longest > most:
        raise PretrainError(
            f"objective.max_tokens = {longest}, but the model has positions for {most} tokens only; lower the first"
        )
    if recipe.run.name != Path(recipe.run.name).name or recipe.run.name in ("", ".", ".."):
        refuse("run.name", recipe.run.name, "a plain directory name; the parent goes into run.directory")
