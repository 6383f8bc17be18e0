"""The RNAErnie recipes say what specs/rnaernie 1, 4, 5 and 12 say, and the alternatives in their comments work."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from data.alphabet import ALPHABETS
from data.prepare_config import load_prepare_config
from models.rnaernie import RNAErnieConfig, count_parameters
from pretrain import recipe
from pretrain.objectives.intervals_config import IntervalsConfig, check
from pretrain.stages import Stage

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
COMMENTS = [line[1:] for line in (CONFIGS / "rnaernie.yaml").read_text().splitlines() if line.startswith("#")]
ALTERNATIVES = dict(
    (match[1], match[2].split()) for line in COMMENTS if (match := re.match(r"   (\w[^:]*):\s+(\w+\.\w+=.*)", line))
)
LEVELS = ("base", "span", "motif")


def used(weights: object) -> list[str]:
    return [level for level in LEVELS if getattr(weights, level)]


def test_the_model_and_the_run_are_the_published_ones() -> None:
    loaded = recipe.load("rnaernie.yaml")
    assert loaded.model == RNAErnieConfig(layers=12, width=768, heads=12, ffn=3072, vocab=57)
    assert count_parameters(loaded.model) == 86_087_481  # ForMaskedLM with 57 tokens
    assert len(ALPHABETS[loaded.objective.alphabet]) == loaded.model.vocab
    assert (loaded.budget.steps, loaded.batch.sequences, loaded.run.seed) == (2_580_000, 200, 1000)
    assert (loaded.optimizer.learning_rate, loaded.optimizer.weight_decay) == (1e-4, 0.01)
    assert loaded.optimizer.betas == [0.9, 0.999]
    assert (loaded.optimizer.eps, loaded.optimizer.gradient_clipping) == (1e-8, 1.0)


def test_the_objective_is_our_default() -> None:
    """4.4; so nothing in the file changes it but the lists of motifs, which are the user's."""
    objective = recipe.load("rnaernie.yaml").objective
    files, mined = objective.motif.files, objective.motif.mined
    assert files
    assert mined
    assert objective == IntervalsConfig.of(motif={"files": files, "mined": mined})
    check(objective)


@pytest.mark.parametrize(
    ("alternative", "rates"),
    [
        (None, {0: 0.0, 129_000: 1e-4, 1_000_000: 1e-4, 2_451_000: 1e-4, 2_515_500: 7.5e-5, 2_580_000: 5e-5}),
        (
            "after the warm-up one straight line to the minimum",
            {0: 0.0, 64_500: 5e-5, 129_000: 1e-4, 1_354_500: 7.5e-5, 2_580_000: 5e-5},
        ),
    ],
)
def test_learning_rates(alternative, rates) -> None:
    settings = recipe.load("rnaernie.yaml", ALTERNATIVES[alternative] if alternative else [])
    data = SimpleNamespace(steps_in=None)
    stage = Stage("", settings, data, 0, 2_580_000, 0, 2_580_000)  # type: ignore[arg-type]
    assert {step: stage.learning_rate(step) for step in rates} == pytest.approx(rates, rel=1e-12)


def test_alternatives_in_the_comments() -> None:
    assert len(ALTERNATIVES) == 6
    loaded = {title: recipe.load("rnaernie.yaml", settings) for title, settings in ALTERNATIVES.items()}
    for settings in loaded.values():
        check(settings.objective)
        assert len(ALPHABETS[settings.objective.alphabet]) == settings.model.vocab
    code, card, second, _, decay, iupac = loaded.values()
    assert (code.objective.span.min, code.objective.motif.min_len, code.objective.motif.order) == (5, 4, "db_first")
    assert (code.objective.topup, code.objective.type_token.mask_prob) == ("none", 0)
    assert [used(stage) for stage in card.objective.stages] == [["base"], ["span"], ["motif"]]
    assert [stage.until for stage in card.objective.stages] == pytest.approx([1 / 3, 2 / 3, 1])
    assert (used(second.objective.levels), second.objective.type_token.append) == (["base"], False)
    assert decay.optimizer.weight_decay == 0
    assert iupac.objective.alphabet == "rnaernie_iupac"


def test_the_stages_in_the_comments(tmp_path: Path) -> None:
    """Put where the comment says, in place of the budget: three levels in sequence over the same steps."""
    start = COMMENTS.index("   stages:")
    block = "\n".join(line[3:] for line in COMMENTS[start : start + 4])
    content = OmegaConf.to_container(OmegaConf.load(CONFIGS / "rnaernie.yaml"))
    del content["budget"]
    content |= OmegaConf.to_container(OmegaConf.create(block))
    (tmp_path / "staged.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    stages = recipe.stage_recipes(recipe.load(str(tmp_path / "staged.yaml")))
    assert [name for name, _ in stages] == list(LEVELS)
    assert [used(stage.objective.levels) for _, stage in stages] == [[level] for level in LEVELS]
    assert sum(stage.budget.steps for _, stage in stages) == 2_580_000


def test_the_demonstration_has_the_three_levels_as_stages() -> None:
    stages = recipe.stage_recipes(recipe.load("demo_rnaernie.yaml"))
    assert [(name, used(stage.objective.levels)) for name, stage in stages] == [(level, [level]) for level in LEVELS]
    for _, stage in stages:
        check(stage.objective)


def test_the_corpus() -> None:
    loaded = load_prepare_config(CONFIGS / "data" / "rnaernie.yaml")
    assert (loaded.min_length, loaded.max_length, loaded.validation_fraction) == (1, 510, 0.01)
    assert str(loaded.output_path) == recipe.load("rnaernie.yaml").data.corpus
    clustered = load_prepare_config(CONFIGS / "data" / "rnaernie.yaml", ["clusters.method=mmseqs"])
    assert clustered.grouped
    assert not loaded.grouped
