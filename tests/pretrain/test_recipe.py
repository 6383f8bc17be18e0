"""Recipes: precedence, one sentence for every mistake, the published numbers, and no key without an effect."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data.errors import DataError
from data.structured import CONFIGS
from models.errors import ModelError
from models.rinalmo import RiNALMoConfig
from pretrain import config, recipe
from pretrain.engine import OWNED_KEYS, deepspeed_config
from pretrain.errors import PretrainError
from pretrain.objectives.mlm import MLMConfig

ROOT = CONFIGS.parent
MINIMAL = """
model: {name: rinalmo, size: nano}
data: {corpus: corpora/any}
objective: {name: mlm, max_tokens: 128}
batch: {sequences: 32}
budget: {steps: 10}
optimizer: {learning_rate: 1.0e-3}
"""
TRAINING_RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(MINIMAL)
    return file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises((DataError, ModelError, PretrainError)) as caught:
        recipe.load(str(path), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence


def test_the_command_line_beats_the_file_which_beats_the_defaults(path):
    loaded = recipe.load(str(path), ["batch.sequences=64", "run.seed=7"])
    assert loaded.batch.sequences == 64
    assert loaded.optimizer.learning_rate == 1e-3
    assert loaded.optimizer.betas == [0.9, 0.999]
    assert loaded.run.seed == 7
    assert loaded.objective == MLMConfig(max_tokens=128)


def test_the_run_is_named_after_the_file_unless_it_has_a_name(path):
    assert recipe.load(str(path)).run.name == "mine"
    assert recipe.load(str(path), ["run.name=other"]).run.name == "other"


def test_a_named_size_gives_the_sizes_and_single_keys_override_them(path):
    loaded = recipe.load(str(path), ["model.layers=2", "model.residual_dropout=0"])
    expected = dataclasses.replace(RiNALMoConfig.named("nano"), layers=2, residual_dropout=0.0)
    assert loaded.model == expected
    assert recipe.model_name(loaded) == "rinalmo"
    assert recipe.load(str(path), ["model.size=micro"]).model == RiNALMoConfig.named("micro")


def test_a_model_without_a_size_needs_all_its_sizes(path):
    sizes = ["model.size=null", "model.layers=1", "model.width=8", "model.heads=2"]
    assert recipe.load(str(path), [*sizes, "model.ffn=5"]).model.width == 8
    assert "model.ffn must be given" in refusal(path, *sizes)


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("budjet.steps", "budget"),
        ("batch.sequencs", "batch.sequences"),
        ("model.widht", "model.width"),
        ("model.sise", "model.size"),
        ("objective.max_token", "objective.max_tokens"),
        ("deepspeed.zero_stge", "deepspeed.zero_stage"),
        ("init_fro", "init_from"),
    ],
)
def test_an_unknown_key_in_the_file_names_file_key_and_nearest_key(path, wrong, nearest):
    section, _, key = wrong.partition(".")
    text = MINIMAL.replace(f"{section}: {{", f"{section}: {{{key}: 3, ") if section + ":" in MINIMAL else MINIMAL
    path.write_text(text if text != MINIMAL else MINIMAL + (f"{section}: {{{key}: 3}}" if key else f"{section}: 3"))
    named = wrong if section in config.Recipe.__dataclass_fields__ else section
    assert refusal(path) == f"{path}: there is no key {named}; the nearest valid key is {nearest}"
    path.write_text(MINIMAL)
    assert refusal(path, f"{wrong}=3").startswith(f"the command line: there is no key {named}; ")


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("batch.sequences=many", "batch.sequences"),
        ("batch=32", "batch"),
        ("optimizer.betas=0.9", "optimizer.betas"),
        ("optimizer.betas=[a,b]", "optimizer.betas[0]"),
        ("compute.compile=perhaps", "compute.compile"),
        ("model.layers=many", "model.layers"),
        ("model=rinalmo", "model"),
        ("objective.exact_count=7x", "objective.exact_count"),
        ("deepspeed.config=[1]", "deepspeed.config"),
        ("data.corpus=${nowhere}", "data.corpus"),
        ("model.name=${nowhere}", "model.name"),
        ("run.name=null", "run.name"),
    ],
)
def test_a_value_of_the_wrong_type_names_where_it_stands_and_its_key(path, argument, key):
    sentence = refusal(path, argument)
    assert "the command line: " in sentence
    assert f": {key}" in sentence


@pytest.mark.parametrize(
    ("without", "key"),
    [
        ("batch: {sequences: 32}", "batch.sequences"),
        ("optimizer: {learning_rate: 1.0e-3}", "optimizer.learning_rate"),
        ("model: {name: rinalmo, size: nano}", "model.name"),
        ("objective: {name: mlm, max_tokens: 128}", "objective.name"),
    ],
)
def test_a_missing_mandatory_key_is_named(path, without, key):
    path.write_text(MINIMAL.replace(without, ""))
    assert f"{key} must be given" in refusal(path)


def test_data_is_one_corpus_or_a_mixture(path):
    assert "exactly one of data.corpus" in refusal(path, "data.corpus=null")
    assert "exactly one of data.corpus" in refusal(path, "data.mixture=[{corpus: other}]")
    assert "data.mixture[0].corpus must be given" in refusal(path, "data.corpus=null", "data.mixture=[{weight: 2}]")
    settings = recipe.load(str(path), ["data.corpus=null", "data.mixture=[{corpus: a, weight: 2}, {corpus: b}]"])
    assert [(source.corpus, source.weight) for source in settings.data.mixture] == [("a", 2.0), ("b", 1.0)]
    assert recipe.resolve([("yaml", OmegaConf.create(recipe.to_yaml(settings)))], "mine") == settings


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model.name=bert", "model.name is 'bert', but must be one of rinalmo"),
        ("model.size=huge", "no size 'huge'; choose one of giga, mega, micro, nano"),
        ("objective.name=clm", "objective.name is 'clm', but must be one of mlm"),
        ("schedule.name=saw", "schedule.name is 'saw', but must be one of cosine, linear, trapezoid, constant"),
        ("compute.precision=fp16", "compute.precision is 'fp16', but must be one of fp32, bf16, bf16_autocast"),
        ("deepspeed.zero_stage=4", "deepspeed.zero_stage is 4, but must be one of 0, 1, 2, 3"),
        ("tracking.wandb=on-line", "tracking.wandb is 'on-line', but must be one of disabled, offline, online"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9], but must be two numbers in [0, 1)"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas is [0.9, 1.0], but must be two numbers in [0, 1)"),
        ("run.name=a/b", "run.name is 'a/b', but must be a plain directory name"),
        ("run.name=..", "run.name is '..', but must be a plain directory name"),
        ("budget.epochs=2", "give exactly one of budget.steps and budget.epochs"),
        ("budget.steps=null", "give exactly one of budget.steps and budget.epochs"),
        ("batch.tokens_per_micro_batch=127", "= 127 cannot hold one sequence of objective.max_tokens = 128"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_what_can(path, argument, expected):
    assert expected in refusal(path, argument)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("optimizer.learning_rate",) for value in ("0", "-1", ".nan", ".inf")),
        *((key, "0") for key in ("budget.steps", "batch.sequences", "batch.tokens_per_micro_batch")),
        *((key, "0") for key in ("tracking.log_every_steps", "optimizer.stop_after_skipped", "checkpoint.keep")),
        *((key, "0") for key in ("compute.prefetch_steps", "compute.threads", "compute.peak_tflops")),
        *((key, "0") for key in ("schedule.decay_steps", "checkpoint.permanent_every_steps")),
        *((key, "-1") for key in ("schedule.warmup_steps", "schedule.warmup_start", "schedule.minimum")),
        *((key, "-1") for key in ("optimizer.weight_decay", "optimizer.eps", "optimizer.gradient_clipping")),
        *((key, "-1") for key in ("validation.every_steps", "validation.sequences", "checkpoint.every_steps")),
        ("checkpoint.every_minutes", "-1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_key(path, key, value):
    assert refusal(path, f"{key}={value}").startswith(f"{key} is ")


def test_epochs_must_be_above_zero_and_finite(path):
    for value in ("0", "-1", ".inf"):
        assert refusal(path, "budget.steps=null", f"budget.epochs={value}").startswith("budget.epochs is ")


def test_micro_batches_that_just_hold_one_sequence_are_accepted(path):
    assert recipe.load(str(path), ["batch.tokens_per_micro_batch=128"]).batch.tokens_per_micro_batch == 128


def test_an_unknown_recipe_suggests_the_nearest_one():
    with pytest.raises(DataError, match=r"no configuration rinalmo_mgea.*did you mean rinalmo_mega\.yaml\?"):
        recipe.load("rinalmo_mgea")


def test_bad_yaml_names_the_file(path):
    path.write_text(MINIMAL + "run: {name: [")
    assert str(path) in refusal(path)
    assert "line" in refusal(path)


# DeepSpeed


def test_clipping_before_centralising_needs_ranger_and_whole_gradients(path):
    late, stage = "optimizer.clip_before_centralising=true", "deepspeed.zero_stage="
    for more in (["optimizer.name=ranger", stage + "1"], ["optimizer.name=adamw", stage + "0"]):
        assert "needs optimizer.name=ranger and deepspeed.zero_stage=0" in refusal(path, late, *more)
    assert recipe.load(str(path), [late, "optimizer.name=ranger", stage + "0"]).optimizer.clip_before_centralising


def test_bf16_without_zero_is_refused_and_with_it_accepted(path):
    assert "compute.precision=bf16 with deepspeed.zero_stage=0" in refusal(path, "compute.precision=bf16")
    assert recipe.load(str(path), ["compute.precision=bf16", "deepspeed.zero_stage=1"])
    assert recipe.load(str(path), ["compute.precision=bf16_autocast", "deepspeed.zero_stage=0"])


@pytest.mark.parametrize("key", [*OWNED_KEYS, "zero_optimization.stage"])
def test_deepspeed_keys_that_the_recipe_decides_are_refused_with_the_key_to_use(path, key):
    loaded = recipe.load(str(path), [f"deepspeed.config.{key}=1"])
    with pytest.raises(PretrainError, match=rf"deepspeed\.config\.{key}.*use ") as caught:
        deepspeed_config(loaded)
    used = OWNED_KEYS.get(key, "deepspeed.zero_stage")
    assert used in str(caught.value)
    fields = {*dataclasses.asdict(loaded), *(f"{s}.{k}" for s, v in recipe.to_dict(loaded).items() for k in v or {})}
    assert used in fields or used.startswith("nothing")


def test_other_deepspeed_keys_pass_through_key_by_key(path):
    overrides = ["deepspeed.config.wall_clock_breakdown=true", "deepspeed.config.zero_optimization.overlap_comm=true"]
    given = deepspeed_config(recipe.load(str(path), [*overrides, "deepspeed.zero_stage=2"]))
    assert given["wall_clock_breakdown"] is True
    assert given["zero_optimization"] == {"stage": 2, "overlap_comm": True}


@pytest.mark.parametrize(("stage", "written"), [(0, 0.0), (1, 0.7), (3, 0.7)])
def test_clipping_is_always_written_out(path, stage, written):
    overrides = [f"deepspeed.zero_stage={stage}", "optimizer.gradient_clipping=0.7"]
    assert deepspeed_config(recipe.load(str(path), overrides))["gradient_clipping"] == written


# YAML of a whole recipe


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_every_recipe_in_configs_loads_and_survives_yaml(name, tmp_path):
    loaded = recipe.load(name)
    written = tmp_path / loaded.run.name / "recipe.yaml"
    written.parent.mkdir()
    written.write_text(recipe.to_yaml(loaded))
    assert recipe.read_resolved(written) == loaded
    assert recipe.load(str(written)) == loaded


def test_unusual_values_survive_yaml(path, tmp_path):
    loaded = recipe.load(
        str(path),
        ["run.name='007'", "optimizer.eps=1e-12", "deepspeed.config.zero_optimization.round_robin_gradients=true"],
    )
    written = tmp_path / "recipe.yaml"
    written.write_text(recipe.to_yaml(loaded))
    again = recipe.read_resolved(written)
    assert again == loaded
    assert again.run.name == "007"
    assert again.deepspeed.config == {"zero_optimization": {"round_robin_gradients": True}}


# The published recipes (specs: rinalmo 1.1 and 5)


@pytest.mark.parametrize(
    ("name", "sizes", "peak"),
    [
        ("rinalmo.yaml", (33, 1280, 20, 3413), 5e-5),
        ("rinalmo_mega.yaml", (30, 640, 20, 1706), 1e-4),
        ("rinalmo_micro.yaml", (12, 480, 20, 1280), 1e-4),
    ],
)
def test_the_published_recipes_have_the_published_numbers(name, sizes, peak):
    loaded = recipe.load(name)
    model, schedule, objective = loaded.model, loaded.schedule, loaded.objective
    assert (model.layers, model.width, model.heads, model.ffn) == sizes
    assert (model.attention_dropout, model.residual_dropout, model.transition_dropout) == (0.1, 0.1, 0.0)
    assert model.normalised_residual
    assert loaded.batch.sequences == 1344
    assert loaded.optimizer.learning_rate == peak
    assert (loaded.optimizer.weight_decay, loaded.optimizer.gradient_clipping) == (0.01, 1.0)
    assert (loaded.optimizer.betas, loaded.optimizer.eps) == ([0.9, 0.999], 1e-8)
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_start) == ("cosine", 2000, 1e-7)
    assert (schedule.minimum, schedule.decay_steps) == (1e-5, 200_000)
    assert loaded.budget.epochs == 6
    assert objective.max_tokens == 1024
    assert (objective.masked_fraction, objective.mask_share, objective.random_share) == (0.15, 0.8, 0.1)
    assert (objective.eligible, objective.exact_count, objective.random_differs) == ("letters", False, True)


# No option without an effect


def attributes_read(file: Path) -> set[str]:
    """Names read as attributes, parameters and annotations in a file."""
    tree = ast.parse(file.read_text())
    read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return read | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def sections() -> list[tuple[str, str, str]]:
    found = [("", field.name, "Recipe") for field in dataclasses.fields(config.Recipe)]
    for field in dataclasses.fields(config.Recipe):
        if field.name not in ("model", "objective", "stages", "init_from"):
            section = type(getattr(config.Recipe(), field.name))
            found += [(field.name, key.name, section.__name__) for key in dataclasses.fields(section)]
    return found


@pytest.fixture(scope="module")
def readers() -> list[set[str]]:
    """Per source file that may act on a recipe; reading and checking one is not acting on it."""
    files = [file for package in ("pretrain", "models", "launch") for file in (ROOT / package).rglob("*.py")]
    return [attributes_read(file) for file in files if file.name not in ("config.py", "recipe.py")]


@pytest.mark.parametrize(("section", "key", "schema"), sections(), ids=lambda part: part or "recipe")
def test_every_key_is_read_beside_its_section_outside_of_the_checks(section, key, schema, readers):
    assert any(key in read and (not section or section in read or schema in read) for read in readers)
