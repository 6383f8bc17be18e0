"""What a run says of its checkpoints before it trains."""

from __future__ import annotations

import logging
from collections import namedtuple
from pathlib import Path

import pytest

from pretrain import introduction, recipe
from pretrain.introduction import introduce_checkpoints, unlikely
from pretrain.stages import open_stages
from tests.pretrain.test_checkpoint import ALONE, save_step
from tests.ranks import QUICK

Usage = namedtuple("Usage", "total used free")


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def introduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """(size of one, free bytes of the disk, settings) -> (what is said, what is warned of)."""

    def run(size: float, free: float, *settings: str) -> tuple[str, list[str]]:
        monkeypatch.setattr(introduction.shutil, "disk_usage", lambda path: Usage(0, 0, free))
        monkeypatch.setattr(logging.getLogger("rnafoundry"), "propagate", True)
        caplog.set_level(logging.INFO, "rnafoundry")
        caplog.clear()
        said = Said()
        loaded = recipe.load(QUICK[1], ["data.corpus=none", *settings])
        introduce_checkpoints(said, loaded, ALONE, tmp_path / "checkpoints", size)
        (line,) = said.lines
        assert line.strip() in caplog.messages
        return line, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return run


def test_size_number_and_time(introduce, tmp_path) -> None:
    line, warned = introduce(3e6, 1e12, "checkpoint.every_steps=1000", "checkpoint.keep=4")
    assert "checkpoints of 3 MB, about " in line
    assert " s each as this disk writes, every 1,000 steps and at the end, 4 kept" in line
    assert warned == []
    assert list(tmp_path.iterdir()) == [], "the file that the disk was tried with is still there"


def test_permanent_ones_and_the_clock(introduce) -> None:
    keys = ("checkpoint.every_steps=0", "checkpoint.every_minutes=30", "checkpoint.permanent_every_steps=9")
    line, _ = introduce(2.5e9, 1e12, *keys)
    assert "checkpoints of 2.5 GB" in line
    assert "every 30 minutes and at the end, 3 kept and the permanent ones" in line


def test_the_estimate_grows_with_the_size(introduce, monkeypatch) -> None:
    """A disk that takes a second for whatever it is tried with."""
    clock = iter(range(100))
    monkeypatch.setattr(introduction.time, "perf_counter", lambda: float(next(clock)))
    assert "about 1 s each" in introduce(introduction.TRIED / 2, 1e12)[0]
    assert "about 8 s each" in introduce(introduction.TRIED * 8, 1e12)[0]


@pytest.mark.parametrize(("free", "warns"), [(3999, True), (4001, False)])
def test_a_disk_without_room_is_warned_of(introduce, free, warns) -> None:
    """Three are kept and one is being written."""
    _, warned = introduce(1000, free)
    assert bool(warned) is warns
    assert not warns or "(3 kept, and one being written)" in warned[0]


def test_checkpoints_that_are_there_already_count(introduce, tmp_path) -> None:
    path = save_step(tmp_path / "checkpoints", 1)
    size = sum(file.stat().st_size for file in path.iterdir())
    assert introduce(size, 3 * size + 1)[1] == []
    assert len(introduce(size, 3 * size - 1)[1]) == 1


def test_a_disk_that_cannot_be_tried_is_warned_of(introduce, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(introduction.os, "fsync", full)
    line, warned = introduce(3e6, 1e12)
    assert "about" not in line
    assert "No space left on device" in warned[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ((), None),
        (("batch.sequences=100000",), "batch.sequences=100,000 is more than the "),
        (("schedule.warmup_steps=20",), "schedule.warmup_steps=20 is not below the 20 steps"),
        (("schedule.warmup_steps=19",), None),
    ],
)
def test_settings_of_a_larger_run_are_warned_of(synthetic_corpus, settings, says) -> None:
    loaded = recipe.load(QUICK[1], [f"data.corpus={synthetic_corpus}", *settings])
    (stage,) = open_stages(loaded, ALONE)
    warned = list(unlikely(stage))
    assert len(warned) == (says is not None)
    assert says is None or says in warned[0]
