"""Training on profiles through the real command: the same losses however it is split, and what each setting does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.reactivity import ReactivityCorpus
from data.reactivity_config import SplitConfig
from data.reactivity_filter import SampleFilter
from tests.data.reactivity_files import build, other, rows_of, write_table
from tests.ranks import ROOT, losses, pretrain, pretrain_well, records, refused

pytest.importorskip("pyarrow")

TINY = ["--config", str(ROOT / "tests" / "tiny_reactivity.yaml")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 sequences of 30 to 90 nucleotides with errors; a third each is clean, dirty and noisy."""
    folder = tmp_path_factory.mktemp("profiles")
    rows = rows_of(120, shortest=30, longest=90)
    build(folder / "corpus", write_table(folder / "t.csv", rows, width=90))
    return folder / "corpus"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trained(corpus: Path, directory: Path, name: str, *settings: str, ranks: int = 1) -> list[float]:
    base = [f"data.corpus={corpus}", f"run.directory={directory}", f"run.name={name}"]
    pretrain_well([*TINY, *base, *settings], ranks)
    return losses(directory / name)


@pytest.fixture(scope="module")
def alone(corpus: Path, directory: Path) -> list[float]:
    found = trained(corpus, directory, "alone")
    assert len(found) == 4
    assert len(set(found)) == 4
    return found


@pytest.mark.parametrize(
    ("ranks", "stage", "budget"),
    [
        (2, 2, 900),
        pytest.param(3, 3, 16384, marks=pytest.mark.slow),
        pytest.param(1, 0, 900, marks=pytest.mark.slow),
        pytest.param(2, 0, 16384, marks=pytest.mark.slow),
        pytest.param(3, 2, 900, marks=pytest.mark.slow),
    ],
)
def test_losses_do_not_depend_on_ranks_budget_or_stage(
    corpus: Path, directory: Path, alone: list[float], ranks: int, stage: int, budget: int
) -> None:
    settings = [f"deepspeed.zero_stage={stage}", f"batch.tokens_per_micro_batch={budget}"]
    found = trained(corpus, directory, f"{ranks}-{stage}-{budget}", *settings, ranks=ranks)
    np.testing.assert_allclose(found, alone, rtol=2e-5)
    assert (
        records(directory / f"{ranks}-{stage}-{budget}")[-1]["nucleotides"]
        == records(directory / "alone")[-1]["nucleotides"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "objective.flip=0",
        "objective.min_signal_to_noise=3",
        "objective.weighting=log_signal_to_noise",
        "objective.weighting=error",
        "objective.sampling=signal_to_noise",
        "objective.noise=1",
        "objective.flank_5=10",
        "objective.flank_3=10",
        "objective.samples.classes=clean",
        "objective.samples.threshold=4",
        "objective.samples.min_signal_to_noise=2",
        "objective.samples.drop_libraries=[LIB0]",
        "objective.samples.min_length=50",
        "objective.samples.max_length=70",
    ],
)
def test_every_setting_has_an_effect(corpus: Path, directory: Path, alone: list[float], setting: str) -> None:
    more = ["objective.samples.classes=clean+dirty"] if "threshold" in setting else []
    name = setting.replace("=", "-")
    assert trained(corpus, directory, name, setting, *more, "budget.steps=1")[0] != alone[0]


def test_a_stage_trains_on_its_classes(corpus: Path, directory: Path) -> None:
    """Stage sets through a run: what it says it trains on is what an independent count finds."""
    settings = ["objective.samples.classes=noisy", "objective.min_signal_to_noise=-10", "budget.steps=1"]
    base = [f"data.corpus={corpus}", f"run.directory={directory}", "run.name=noisy"]
    out = pretrain_well([*TINY, *base, *settings])
    count = ReactivityCorpus.open(corpus).view(SampleFilter.of("noisy")).count
    assert count == 40
    assert f"{count} training" in out


def test_a_step_without_any_target_changes_nothing_but_time(corpus: Path, directory: Path) -> None:
    settings = ["objective.flank_5=1000", "budget.steps=2"]
    assert trained(corpus, directory, "nothing", *settings, ranks=2) == [0.0, 0.0]


@pytest.mark.slow
def test_padding_is_small_on_mixed_lengths(corpus: Path, directory: Path) -> None:
    settings = ["batch.sequences=60", "batch.tokens_per_micro_batch=3000", "budget.steps=1"]
    trained(corpus, directory, "mixed", *settings)
    (record,) = records(directory / "mixed")
    assert 0 < record["padding"] < 0.1  # lengths of 30 to 90 at random would waste a third


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["batch.tokens_per_micro_batch=300"], "nucleotides costs"),
        (["objective.channels=[DMS,2A3]"], "has the channels 2A3, DMS, but objective.channels is DMS, 2A3"),
        (["objective.channels=[DMS]"], "model.channels is 2, but objective.channels are DMS"),
        (["model.special_tokens=true"], "set model.special_tokens=false"),
        (["compute.compile=true"], "set compute.compile=false"),
        (["objective.samples.classes=clear"], "'clear' is no class of profiles"),
        (["objective.samples.min_length=500"], "takes none of the"),
        (["objective.min_signal_to_noise=1e9"], "no profile of 2A3 among the samples of this stage"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_the_first_step(
    corpus: Path, tmp_path: Path, settings: list[str], sentence: str
) -> None:
    base = [f"data.corpus={corpus}", f"run.directory={tmp_path}", "run.name=refused"]
    assert sentence in refused(pretrain([*TINY, *base, *settings]))
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


def test_a_channel_without_profiles_and_errors_of_another_channel(tmp_path: Path) -> None:
    """Prepared without a validation split nothing refuses a corpus of one chemical; training does."""
    rows = rows_of(30)
    only = [row for row in rows if row.experiment.startswith("2A3")]
    build(tmp_path / "one", write_table(tmp_path / "one.csv", only), split=SplitConfig(folds=0))
    wrong = [other(row, errors=rows[i | 1].errors) for i, row in enumerate(rows)]  # those of DMS in both
    build(tmp_path / "wrong", write_table(tmp_path / "wrong.csv", wrong))
    for corpus, setting, sentence in (
        ("one", "objective.flip=0", "no profile of DMS among the samples of this stage has a signal-to-noise of at le"),
        ("wrong", "objective.noise=1", "identical in 30 of 30 samples"),
        ("wrong", "objective.weighting=error", "identical in 30 of 30 samples"),
    ):
        base = [f"data.corpus={tmp_path / corpus}", f"run.directory={tmp_path}", "run.name=refused"]
        assert sentence in refused(pretrain([*TINY, *base, setting]))
