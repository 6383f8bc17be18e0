"""Where metrics go, what a resumed run forgets, and the figures of a log line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from data.loader import Step
from pretrain.config import TrackingConfig
from pretrain.console import describe, duration, quantity
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.meter import Meter
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.tracking import Tracker, forget_after, last_validation, read_metrics

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def tracker(directory: Path, ids: dict[str, str] | None = None, **config) -> Tracker:
    return Tracker(directory, TrackingConfig(**config), "a-run", {"run": {"seed": 1}}, {} if ids is None else ids)


def written(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_record_is_a_line_that_is_on_disk_before_the_run_ends(tmp_path):
    own = tracker(tmp_path)
    own.write("train", 10, {"loss": 1.25, "targets": 7})
    assert written(tmp_path) == [{"kind": "train", "step": 10, "loss": 1.25, "targets": 7}]
    own.close()


def test_numbers_that_are_not_finite_become_null_at_every_depth(tmp_path):
    own = tracker(tmp_path)
    nested = {"rRNA": {"loss": float("-inf"), "targets": 3}}
    own.write("validation", 1, {"loss": float("nan"), "perplexity": float("inf"), "mfu": None, "types": nested})
    own.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert written(tmp_path)[0]["types"] == {"rRNA": {"loss": None, "targets": 3}}
    assert written(tmp_path)[0]["loss"] is written(tmp_path)[0]["perplexity"] is written(tmp_path)[0]["mfu"] is None


def test_a_resumed_run_appends_after_forgetting_the_steps_it_repeats(tmp_path):
    own = tracker(tmp_path)
    for step in (0, 10, 20, 30):
        own.write("train", step, {"loss": step})
    own.close()
    forget_after(tmp_path, 20)
    own = tracker(tmp_path)
    own.write("train", 30, {"loss": 31})
    own.close()
    assert [(record["step"], record["loss"]) for record in written(tmp_path)] == [(0, 0), (10, 10), (20, 20), (30, 31)]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_by_a_kill_is_dropped(tmp_path, cut):
    own = tracker(tmp_path)
    own.write("train", 10, {"loss": 1.0})
    own.write("train", 20, {"loss": 2.0})
    own.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [record["step"] for record in read_metrics(path)] == [10]
    forget_after(tmp_path, 20)
    own = tracker(tmp_path)
    own.write("train", 20, {"loss": 2.0})
    own.close()
    assert [record["step"] for record in written(tmp_path)] == [10, 20]


def test_a_run_that_starts_again_at_step_0_keeps_no_record_it_writes_again(tmp_path):
    own = tracker(tmp_path)
    own.write("references", 0, {"markov_2": {"loss": 1.3}})
    own.write("train", 10, {"loss": 1.0})
    own.close()
    forget_after(tmp_path, 0)
    assert written(tmp_path) == []


def test_a_run_that_continues_where_a_stage_begins_keeps_no_introduction_that_it_writes_again(tmp_path):
    """Killed after the checkpoint of the boundary and the next stage's introduction: each stands there once."""
    own = tracker(tmp_path)
    for kind in ("references", "masking", "train", "validation", "checkpoint"):
        for step in (5, 10):
            own.write(kind, step, {"loss": 1.0})
    own.close()
    forget_after(tmp_path, 10)
    kept = [(record["kind"], record["step"]) for record in written(tmp_path)]
    assert len([step for _, step in kept if step == 5]) == 5
    assert sorted(kind for kind, step in kept if step == 10) == ["checkpoint", "train", "validation"]


def test_records_that_cannot_be_rewritten_stay_as_they_are(tmp_path, monkeypatch):
    own = tracker(tmp_path)
    for step in (10, 20):
        own.write("train", step, {"loss": 1.0})
    own.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(path, *_):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PretrainError, match=r"metrics.jsonl cannot be written .*No space left.* same command"):
        forget_after(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_last_validation_is_the_newest_that_is_kept(tmp_path):
    assert last_validation(tmp_path) == -1
    own = tracker(tmp_path)
    for step in (10, 20):
        own.write("validation", step, {"loss": 1.0 / step})
        own.write("train", step + 5, {"loss": 2.0})
    own.close()
    assert last_validation(tmp_path) == 20
    forget_after(tmp_path, 15)
    assert last_validation(tmp_path) == 10


def test_forgetting_without_a_file_and_reading_none_is_no_error(tmp_path):
    forget_after(tmp_path, 5)
    assert list(tmp_path.iterdir()) == []
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_no_tracker_but_the_file_is_started_by_default(tmp_path):
    own = tracker(tmp_path)
    own.write("train", 1, {"loss": 1.0})
    own.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert own.ids == {}


def test_tensorboard_receives_every_number_and_no_null(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    own = tracker(tmp_path, tensorboard=True)
    for step in (10, 20):
        own.write("train", step, {"loss": 1.0 / step, "mfu": None, "name": "x"})
    own.write("validation", 20, {"types": {"rRNA": {"loss": 0.5}}})
    own.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "validation/types/rRNA/loss"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
    ]


@pytest.mark.slow
def test_wandb_offline_writes_one_run_under_the_id_that_is_kept(tmp_path, monkeypatch):
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    ids: dict[str, str] = {}
    for start in range(2):  # the second is the resumed run: the checkpoint gives it the same ids
        own = tracker(tmp_path, ids, wandb="offline", wandb_project="rna")
        own.write("train", 10 + start, {"loss": 1.0, "mfu": None})
        own.close()
        assert own.ids is ids
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert files
    assert {file.name for file in files} == {f"run-{ids['wandb']}.wandb"}
    assert any(b"train/loss" in file.read_bytes() for file in files)


# The meter and the console


OBJECTIVE = MLM(MLMConfig())


def step(nucleotides: int) -> Step:
    return Step(0, [], epoch=0.1, sequences=4, tokens=0, nucleotides=nucleotides)


def test_a_record_is_over_all_micro_batches_since_the_last_one():
    meter = Meter(ALONE, OBJECTIVE.COUNTS)
    meter.micro_batch(torch.tensor(30.0, requires_grad=True), {"correct": torch.tensor(5)}, 20, 90, 100, 1e9)
    meter.micro_batch(torch.tensor(10.0), {"correct": torch.tensor(3)}, 12, 60, 100, 3e9)
    meter.step(step(140))
    meter.step(step(160))
    (flops, _), record = meter.cost(), meter.record(1e12, OBJECTIVE.figures)
    seconds = 2 * record["seconds_per_step"]
    assert record["loss"] == pytest.approx(40 / 32)
    assert record["perplexity"] == pytest.approx(2.718281828 ** (40 / 32))
    assert record["accuracy"] == 8 / 32
    assert record["targets"] == 32
    assert record["padding"] == pytest.approx(0.25)
    assert flops == 4e9
    assert record["nucleotides_per_second"] == pytest.approx(300 / seconds)
    assert record["tokens_per_second"] == pytest.approx(150 / seconds)
    assert record["tflops_per_device"] == pytest.approx(4e9 / seconds / 1e12)
    assert record["mfu"] == pytest.approx(4e9 / seconds / 1e12)
    assert record["seconds_per_step"] == pytest.approx(seconds / 2)
    (flops, _), again = meter.cost(), meter.record(None, OBJECTIVE.figures)
    assert (again["loss"], again["targets"], again["mfu"], flops) == (0, 0, None, 0)


def test_time_between_pause_and_resume_is_not_training_time():
    meter = Meter(ALONE, OBJECTIVE.COUNTS)
    since = meter.pause()
    time.sleep(0.2)
    meter.resume(since)
    _, seconds = meter.cost()
    assert meter.record(None, OBJECTIVE.figures)["seconds_per_step"] < 0.15
    assert seconds < 0.1


def test_quantities_and_durations_are_short():
    assert [quantity(n) for n in (0, 999, 1000, 1_250_000, 3.2e10)] == ["0", "999", "1.0k", "1.2M", "32.0G"]
    seconds = (0, 59.6, 3599, 3600, 86_399, 86_400, 2 * 86_400 + 3 * 3600, float("inf"), float("nan"))
    assert [duration(s) for s in seconds] == ["0:00", "1:00", "59:59", "1h00", "23h59", "1d00h", "2d03h", "?", "?"]


def test_a_log_line_leaves_out_mfu_where_it_is_not_known():
    values = dict.fromkeys(("loss", "perplexity", "accuracy", "learning_rate", "nucleotides_per_second"), 1.0)
    values |= {"gradient_norm": float("nan"), "padding": 0.25, "eta_seconds": 61.0}
    assert "MFU" not in describe({**values, "mfu": None})
    assert "MFU 41.5%" in describe({**values, "mfu": 0.415})
    assert describe(values).endswith("pad 25%  ETA 1:01")
