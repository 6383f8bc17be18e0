"""Runs in stages: what a stage changes, what it leaves, and that a kill at a boundary is like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data.corpus import prepare
from data.errors import DataError
from data.prepare_config import PrepareConfig, SourceConfig
from data.synthetic import SyntheticCorpus
from pretrain import measuring, recipe, stages
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.report import summary
from tests.pretrain import faults
from tests.ranks import QUICK, last, losses, pretrain, pretrain_well, records, refused, same_bits

FAULTS = Path(faults.__file__)
TINY = Path(QUICK[1])
# step -> (stage, sequences): every 6 steps from the first of a stage on, the last stage every 2, and each at its end.
VALIDATED = {5: ("first", 16), 11: ("gentle", 16), 12: ("gentle", 16)}
VALIDATED |= {14: ("other", 8), 16: ("other", 8), 18: ("other", 8)}


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("other")
    fasta = SyntheticCorpus(98, "standard").write_fasta(directory / "other.fa", 400)
    source = SourceConfig(name="other", path=str(fasta))
    prepare(PrepareConfig(name="other", output=str(directory / "other"), sources=[source], validation_fraction=0.1))
    return directory / "other"


@pytest.fixture(scope="module")
def staged(synthetic_corpus: Path, other_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three stages: as the recipe says; fewer masks; another corpus, schedule and batch."""
    content = OmegaConf.to_container(OmegaConf.load(TINY))
    content["data"]["corpus"] = str(synthetic_corpus)
    content["run"]["directory"] = str(tmp_path_factory.mktemp("runs"))
    content["budget"] = {}
    content["validation"] = {"sequences": 16, "every_steps": 6}
    content["schedule"] = {"name": "linear", "warmup_steps": 4, "minimum": 1.0e-4}
    content["stages"] = {
        "first": {"budget": {"steps": 5}},
        "gentle": {"budget": {"steps": 7}, "objective": {"masked_fraction": 0.05}},
        "other": {
            "budget": {"steps": 6},
            "data": {"corpus": str(other_corpus)},
            "batch": {"sequences": 4},
            "optimizer": {"learning_rate": 2.0e-4},
            "schedule": {"name": "constant", "warmup_steps": 0},
            "validation": {"every_steps": 2, "sequences": 8, "baselines": False},
        },
    }
    path = tmp_path_factory.mktemp("recipes") / "staged.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


@pytest.fixture(scope="module")
def whole(staged: Path) -> Path:
    """An uninterrupted run on two ranks."""
    pretrain_well(["--config", str(staged), "run.name=whole"], ranks=2)
    return run_of(staged, "whole")


def run_of(staged: Path, name: str) -> Path:
    return Path(OmegaConf.load(staged).run.directory) / name


def test_metrics_say_the_stage_and_schedules_count_as_documented(whole: Path) -> None:
    trained = records(whole)
    assert [record["stage"] for record in trained] == ["first"] * 5 + ["gentle"] * 7 + ["other"] * 6
    rates = [record["learning_rate"] for record in trained]
    # The recipe's: warm-up in 4 steps, then a line to the minimum at step 18, through both stages that follow it.
    expected = [1e-3 * step / 4 if step < 4 else 1e-3 - 9e-4 * (step - 4) / 14 for step in range(12)]
    assert rates == pytest.approx([*expected, *[2e-4] * 6])
    assert records(whole)[-1]["sequences"] == 12 * 8 + 6 * 4
    # Epochs begin anew with a stage, as its corpus is read anew.
    assert trained[5]["epoch"] < trained[4]["epoch"]


def test_a_stage_is_saved_and_validated_at_its_end_on_its_own_targets(whole: Path) -> None:
    validated = {record["step"]: record for record in records(whole, "validation")}
    assert {step: (record["stage"], record["sequences"]) for step, record in validated.items()} == VALIDATED
    assert validated[11]["targets"] < 0.5 * validated[5]["targets"]
    references = records(whole, "references")
    assert [(record["step"], record["stage"]) for record in references] == [(0, "first"), (5, "gentle")]


def test_the_report_compares_with_trivial_models_of_the_same_stage(whole: Path) -> None:
    """The last stage has none: those of another stage stand for other targets."""
    assert "at step 18: loss" in summary(whole)
    assert "letter frequencies" not in summary(whole)


def test_what_each_stage_trains_on(staged: Path) -> None:
    settings = recipe.load(str(staged))
    opened = stages.open_stages(settings, World(0, 1, 0, 1, torch.device("cpu")))
    try:
        assert [(stage.start, stage.stop) for stage in opened] == [(0, 5), (5, 12), (12, 18)]
        rates = []
        for stage in opened:
            batches = [b for n in range(stage.start, stage.stop) for b in stage.data.planner.step(n).micro_batches]
            rates.append(sum(b.weight for b in batches) / sum(b.nucleotides.sum() for b in batches))
        assert rates == pytest.approx([0.15, 0.05, 0.15], abs=0.02)
        # The same corpus and local step, but not the same samples again.
        assert opened[0].data.mixture.fingerprint == opened[1].data.mixture.fingerprint
        first, second = (opened[i].data.mixture.step(0)[1] for i in (0, 1))
        assert not np.array_equal(np.sort(first), np.sort(second))
    finally:
        stages.close(opened)


def test_a_decay_in_epochs_is_counted_in_steps_of_the_corpus(synthetic_corpus: Path) -> None:
    keys = [
        "schedule.decay_epochs=0.5",
        "schedule.warmup_steps=2",
        "budget.steps=200",
        f"data.corpus={synthetic_corpus}",
    ]
    settings = recipe.load(str(TINY), keys)
    (stage,) = stages.open_stages(settings, World(0, 1, 0, 1, torch.device("cpu")))
    half = -(-stage.data.mixture.count // 16)  # steps of 8 sequences, rounded up
    assert stage.learning_rate(2 + half) == settings.schedule.minimum < stage.learning_rate(2 + half - 1)
    with pytest.raises(PretrainError, match=r"one of schedule\.decay_steps and schedule\.decay_epochs"):
        recipe.load(str(TINY), [*keys, "schedule.decay_steps=9"])


def test_other_ranks_have_the_same_losses(staged: Path, whole: Path) -> None:
    pretrain_well(["--config", str(staged), "run.name=alone"], ranks=1)
    np.testing.assert_allclose(losses(run_of(staged, "alone")), losses(whole), rtol=1e-5)


@pytest.mark.parametrize("step", [5, 12])
@pytest.mark.parametrize("place", ["before-rename", "before-rotate"])
@pytest.mark.slow
def test_a_kill_at_a_boundary_continues_exactly(staged: Path, whole: Path, step: int, place: str) -> None:
    """Before the rename the boundary was not reached on disk; before the rotation it was, but not validated."""
    name = f"killed-{step}-{place}"
    arguments = ["--config", str(staged), f"run.name={name}", "checkpoint.every_steps=4"]
    results = pretrain([f"kill_in_save=0:{step}:{place}", "--", *arguments], ranks=2, script=FAULTS)
    assert any(code for code, _, _ in results), results
    pretrain_well(arguments, ranks=2)
    assert same_bits(last(run_of(staged, name)), last(whole))
    assert losses(run_of(staged, name)) == losses(whole)
    for kind in ("validation", "references"):
        assert [(r["step"], r["stage"]) for r in records(run_of(staged, name), kind)] == [
            (r["step"], r["stage"]) for r in records(whole, kind)
        ]


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (15, "before-rotate"),
        pytest.param(14, "before-rotate", marks=pytest.mark.slow),
        pytest.param(14, "before-rename", marks=pytest.mark.slow),
        pytest.param(16, "before-rename", marks=pytest.mark.slow),
        pytest.param(16, "before-rotate", marks=pytest.mark.slow),
    ],
)
def test_a_kill_in_a_later_stage_keeps_the_steps_of_its_validations(
    staged: Path, whole: Path, step: int, place: str
) -> None:
    """Killed at a step that is validated, when its checkpoint is there (before the rotation) or not, and between."""
    name = f"later-{step}-{place}"
    arguments = ["--config", str(staged), f"run.name={name}", "checkpoint.every_steps=1"]
    results = pretrain([f"kill_in_save=0:{step}:{place}", "--", *arguments], script=FAULTS)
    assert any(code for code, _, _ in results), results
    pretrain_well(arguments)
    found = records(run_of(staged, name), "validation")
    assert {record["step"]: (record["stage"], record["sequences"]) for record in found} == VALIDATED
    np.testing.assert_allclose(losses_of(found), losses_of(records(whole, "validation")), rtol=1e-5)


def losses_of(found: list[dict]) -> list[float]:
    return [record["loss"] for record in found]


@pytest.mark.slow
def test_a_run_may_go_on_with_other_validations_of_a_stage(staged: Path) -> None:
    """They change no sample of a step; steps are those of the new interval from there on."""
    arguments = ["--config", str(staged), "run.name=other-interval", "checkpoint.every_steps=1"]
    results = pretrain(["kill_in_save=0:15:before-rotate", "--", *arguments], script=FAULTS)
    assert any(code for code, _, _ in results), results
    pretrain_well([*arguments, "stages.other.validation.every_steps=5"])
    assert [record["step"] for record in records(run_of(staged, "other-interval"), "validation")] == [
        5,
        11,
        12,
        14,
        17,
        18,
    ]


def test_a_benchmark_of_stages_validates_nothing(staged: Path) -> None:
    """Nor does it open the held-out split, which may not be there yet."""
    settings = recipe.load(str(staged), ["run.name=measured", "stages.first.validation.sequences=8"])
    world = World(0, 1, 0, 1, torch.device("cpu"))
    measured = measuring.without_extras(settings, "own")
    opened = stages.open_stages(measured, world)
    stages.close(opened)
    assert settings.stages["first"]["validation"] == {"sequences": 8}
    assert [stage.data.validations for stage in opened] == [{}, {}, {}]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("stages.first.model.layers=3", "stages.first.model: a stage has data, objective, batch"),
        ("stages.first.optimizer.eps=1e-6", "a stage may only set optimizer.learning_rate"),
        ("stages.first.budget.steps=null", "exactly one of budget.steps and budget.epochs"),
        (
            "stages.first.objective.max_token=9",
            "stages.first: there is no key objective.max_token; the nearest valid key is objective.max_tokens",
        ),
        ("stages.first=7", "stages.first must be sections"),
        ("budget.steps=9", "with stages every stage has its own budget"),
        ("stages.other.schedule.name=saw", "^stages.other: schedule.name is 'saw'"),
        ("optimizer.eps=-1", "^optimizer.eps is -1"),
        (
            "stages.other.validation.every_steps=-1",
            "^stages.other: validation.every_steps is -1, but must be 0 or more",
        ),
        ("stages.other.validation.sequences=-2", "^stages.other: validation.sequences is -2, but must be 0 or more"),
        ("stages.other.validation.every_steps=often", "^stages.other: validation.every_steps: .*'often'"),
        ("stages.other.validation.every_step=5", "^stages.other: there is no key validation.every_step; the nearest"),
        ("stages.other.validation.at_start=true", "^stages.other.validation.at_start: a stage may only set"),
        ("stages.other.validation=5", "^stages.other.validation must be a section of keys"),
        ("stages.other.data=5", "^stages.other.data must be a section of keys"),
    ],
)
def test_bad_stages_are_one_sentence(staged: Path, change: str, sentence: str) -> None:
    with pytest.raises((PretrainError, DataError), match=sentence):
        recipe.load(str(staged), [change])


def test_a_missing_corpus_of_a_later_stage_shows_before_the_first_step(staged: Path) -> None:
    arguments = ["--config", str(staged), "run.name=late", "stages.other.data.corpus=absent"]
    assert "stage other: " in refused(pretrain(arguments, ranks=2))
    assert not (run_of(staged, "late") / "metrics.jsonl").exists()


def test_a_resolved_recipe_reads_back(whole: Path, staged: Path) -> None:
    assert recipe.read_resolved(whole / "recipe.yaml") == recipe.load(str(staged), ["run.name=whole"])


def test_continuing_with_other_stages_is_refused(staged: Path, whole: Path) -> None:
    arguments = ["--config", str(staged), "run.name=whole", "stages.gentle.budget.steps=9"]
    assert "was trained on the corpus" in refused(pretrain(arguments))
