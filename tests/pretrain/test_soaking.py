"""What the soak tests rely on finds histories that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pretrain.soaking import Attempt, require_every_step_once

SAMPLES = {step: [10 * step, 10 * step + 1] for step in range(1, 7)}
Notes = list[tuple[int, int, list[int]]]  # step, rank, samples


def on_two_ranks(first: int, last: int) -> Notes:
    return [(step, rank, [SAMPLES[step][rank]]) for step in range(first, last + 1) for rank in range(2)]


def redone(folder: Path, first: Notes, second: Notes, saved: int = 3) -> int:
    """Two starts of a run of 6 steps; the second begins after ``saved`` steps."""
    attempts = []
    for number, (begins, notes) in enumerate([(0, first), (saved, second)]):
        path = folder / f"{number}.jsonl"
        lines = [{"step": step, "rank": rank, "ranks": 2, "samples": ids} for step, rank, ids in notes]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        attempts.append(Attempt(begins, 2, path))
    return require_every_step_once(attempts, 6, SAMPLES, most_unsaved=2)


def test_unsaved_steps_are_counted(tmp_path) -> None:
    assert redone(tmp_path, on_two_ranks(1, 3), on_two_ranks(4, 6)) == 0
    assert redone(tmp_path, on_two_ranks(1, 5), on_two_ranks(4, 6)) == 2
    assert redone(tmp_path, [*on_two_ranks(1, 3), (4, 1, [41])], on_two_ranks(4, 6)) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(on_two_ranks(1, 3), on_two_ranks(3, 6), id="a saved step again"),
        pytest.param(on_two_ranks(1, 3), on_two_ranks(5, 6), id="a step missed"),
        pytest.param(on_two_ranks(1, 3), on_two_ranks(4, 5), id="the last step missed"),
        pytest.param([*on_two_ranks(1, 3), (3, 0, [30])], on_two_ranks(4, 6), id="twice in one start"),
        pytest.param(on_two_ranks(1, 3)[:-1], on_two_ranks(4, 6), id="saved before a rank was there"),
        pytest.param([*on_two_ranks(1, 2), (3, 0, [30]), (3, 1, [30])], on_two_ranks(4, 6), id="other samples"),
        pytest.param(on_two_ranks(1, 6), on_two_ranks(4, 6), id="too many unsaved"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, first: Notes, second: Notes) -> None:
    with pytest.raises((AssertionError, KeyError)):
        redone(tmp_path, first, second)
