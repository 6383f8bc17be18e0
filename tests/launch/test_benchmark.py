"""launch/benchmark.py: real steps, honest figures, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ranks import QUICK, ROOT, pretrain, pretrain_well, records, refused

BENCHMARK = ROOT / "launch" / "benchmark.py"


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_measures_the_steps_that_training_begins_with(synthetic_corpus: Path, tmp_path: Path, ranks: int) -> None:
    """The same tokens, padding and arithmetic per step as in the records of a run; nothing is left behind."""
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path / 'runs'}", "run.name=run"]
    arguments = [*QUICK, *place, "compute.peak_tflops=0.1", "budget.steps=40"]
    results = pretrain([*arguments, "--warm-up", "2", "--steps", "4", "--json"], ranks, script=BENCHMARK)
    assert [code for code, _, _ in results] == [0] * ranks, results
    found = json.loads(results[0][1][results[0][1].index("{\n") :])
    assert not (tmp_path / "runs").exists()
    pretrain_well([*arguments, "budget.steps=6", "schedule.decay_steps=36"], ranks)
    real = records(tmp_path / "runs" / "run")[2:]
    seconds = found["seconds_per_step"]
    assert (found["steps"], found["ranks"], found["device"], found["run_steps"]) == (4, ranks, "CPU", 40)
    assert found["fastest"] <= seconds <= found["slowest"]
    assert found["run_seconds"] == pytest.approx(40 * seconds)
    work = sorted(record["tflops_per_device"] * record["seconds_per_step"] for record in real)
    assert work[0] * 0.5 < found["tflops_per_device"] * seconds < work[-1] * 2  # medians of rates and of times
    assert found["mfu"] == pytest.approx(found["tflops_per_device"] / 0.1)
    padding = [record["padding"] for record in real]
    assert min(padding) <= found["padding"] <= max(padding)
    assert 2**26 < found["peak_bytes"] < 2**34


def test_it_prints_a_table_and_leaves_other_runs_alone(synthetic_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run"]
    ((code, out, err),) = pretrain([*QUICK, *place, "--warm-up", "0", "--steps", "1"], script=BENCHMARK)
    assert code == 0, err
    assert "1 steps on 1 x CPU" in out
    assert "20 steps, " in out
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--warm-up", "-1"], "--warm-up at least 0"),
        (["--steps", "18"], "the recipe has 20 steps, fewer than --warm-up 3 and --steps 18"),
        (["data.corpus=absent"], "absent"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(synthetic_corpus, tmp_path, arguments, said) -> None:
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path / 'runs'}", "run.name=run"]
    assert said in refused(pretrain([*QUICK, *place, *arguments], script=BENCHMARK))
    assert not (tmp_path / "runs").exists()
