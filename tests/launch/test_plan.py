"""`launch/plan.py` as a person runs it: tables, JSON, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import sys

import pytest

from launch import plan
from launch.cli import main_guard

RINALMO = ["--config", "rinalmo.yaml", "--gpus", "8", "data.corpus=not/there"]


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
        code = main_guard(plan.main)()
        return code, *capsys.readouterr()

    return call


def test_tables_say_what_was_assumed(run):
    code, out, err = run(*RINALMO, "--epoch-samples", "17000000", "--price", "2.5", "--sweep")
    assert (code, err) == (0, "")
    assert "656,353,591 parameters" in out
    assert "75,893" in out
    assert "not/there is not here, so every sample is taken to have 1,024 tokens" in out
    assert "ZeRO 1 (recipe)" in out
    assert "A step on more GPUs" in out
    assert re.search(r"validations, samples of each +│ +76 of 8,192, [0-9.]+ s each", out)


def test_json_holds_the_same_figures(run):
    code, out, _ = run(*RINALMO, "--epoch-samples", "17000000", "--price", "2.5", "--sweep", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["steps"] == 75_893
    assert (found["stages"][0]["validations"], found["stages"][0]["validation_sequences"]) == (76, 8192)
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 2.5)
    waiting = (found["checkpoints_written"] - 1) * found["checkpoint_wait_seconds"] + found["checkpoint_seconds"]
    (stage,) = found["stages"]
    forward = stage["flops_per_step"] / stage["sequences_per_step"] / 3
    rate = found["gpus"] * 0.4 * found["gpu"]["tera_half"] * 1e12
    assert stage["validation_seconds"] == pytest.approx(8192 * forward / rate)
    training = 75_893 * stage["seconds_per_step"] + 76 * stage["validation_seconds"]
    assert found["seconds"] == pytest.approx(training + waiting)
    assert [row["gpus"] for row in found["sweep"]] == plan.SWEPT
    assert next(row for row in found["sweep"] if row["gpus"] == 8)["seconds_per_step"] == pytest.approx(
        found["stages"][0]["seconds_per_step"]
    )
    assert [stage["stage"] for stage in found["stages"][0]["zero"]] == [0, 1, 2, 3]


def test_too_many_gpus_for_the_sweep_are_named(run):
    _, out, _ = run("--config", "rnamsm.yaml", "--sweep", "data.corpus=not/there")
    assert "16 and 32 and 64" in out
    assert "a step has 8 samples" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gpu", "h100-80g"], "--gpu h100-80g is not known; did you mean h100-80gb?"),
        (["--gpus", "2000"], "--gpus 2000 is more than batch.sequences = 1344"),
        (["--gpus", "0"], "--gpus is 0, but must be above 0"),
        (["--mfu", "40"], "--mfu is 40.0, but must be at most 1"),
        (["--disk-gbps", "0"], "--disk-gbps is 0.0, but must be above 0"),
        (["--gpu", "v100-32gb"], "a v100-32gb has no bf16; use fp32 or another GPU"),
        (["batch.sequences=x"], "batch.sequences"),
        ([f"data.corpus={__file__}"], "test_plan.py: is a file, and a corpus is a directory"),
        (["data.corpus=."], ".: is not a corpus, it has no manifest.json"),
        (["--sample-tokens", "1"], "--sample-tokens is 1, but must be at least 3"),
    ],
)
def test_mistakes_are_one_sentence(run, arguments, sentence):
    code, out, err = run("--config", "rinalmo.yaml", "data.corpus=not/there", *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
