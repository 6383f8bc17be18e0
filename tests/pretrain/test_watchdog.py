"""A rank that hangs is found, named with its last step and its stack, and ends the run instead of waiting for ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pretrain.watchdog import LOST, MEETING, READING, Beat, Watchdog, blame, read_beats
from tests.pretrain import faults
from tests.ranks import QUICK, finish, logged_steps, pretrain_well, records, start, wait_for

FAULTS = Path(faults.__file__)
PATIENCE = "compute.timeout_minutes=0.1"


def beats(*doing: str, steps: tuple[int, ...] = (7, 7, 7), alive: tuple[float, ...] = (0, 0, 0)) -> list[Beat]:
    return [Beat(i, f"node{i}", steps[i], what, 1000.0 + i, 2000.0 - alive[i]) for i, what in enumerate(doing)]


def test_the_rank_that_does_not_wait_is_to_blame() -> None:
    text = blame(beats(MEETING, READING, MEETING), 3, 2000.0, 60.0)
    assert text.startswith("no progress for 1 minutes: rank 1 on node1 is at step 7, reading data for 999 s")
    assert "2 of 3 ranks wait" in text


def test_where_none_waits_the_one_furthest_behind_is() -> None:
    text = blame(beats("computing", "computing", "computing", steps=(7, 7, 6)), 3, 2000.0, 60.0)
    assert "rank 2 on node2 is at step 6" in text


def test_a_process_that_does_not_run_and_one_that_never_came_are_named() -> None:
    frozen = blame(beats(MEETING, MEETING, MEETING, alive=(0, 0, 100)), 3, 2000.0, 60.0)
    assert "rank 2 on node2 does not answer, its process was last seen 100 s ago at step 7" in frozen
    assert "rank 2 of 3 has no heartbeat" in blame(beats(MEETING, MEETING), 3, 2000.0, 60.0)


def test_a_rank_that_goes_on_is_left_alone_and_one_that_stands_is_ended(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    codes: list[int] = []
    watchdog = Watchdog(tmp_path, 0, 1, patience=0.4, end=codes.append).start()
    for step in range(10):
        watchdog.doing(READING, step)
        time.sleep(0.1)
    assert codes == []
    wait_for(lambda: codes, timeout=5)
    assert codes == [LOST]
    (beat,) = read_beats(tmp_path, 1)
    assert (beat.step, beat.doing) == (9, READING)
    assert "test_watchdog" in (tmp_path / "logs" / "rank-00000.stack").read_text()
    watchdog.close()


@pytest.fixture
def command(synthetic_corpus: Path, tmp_path: Path) -> tuple[list[str], Path]:
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=run"]
    return [*base, "checkpoint.every_steps=2"], tmp_path / "run"


@pytest.mark.slow
def test_a_rank_that_hangs_in_reading_is_named_and_the_same_command_goes_on(command) -> None:
    arguments, run = command
    results = finish(start(["hang=1:5", "--", *arguments, PATIENCE], ranks=2, script=FAULTS), timeout=60)
    assert [code for code, _, _ in results] == [LOST, LOST], results
    told = [line for _, _, err in results for line in err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "rank 1" in told[0]
    assert "at step 5, reading data" in told[0]
    assert "faults.py" in (run / "logs" / "rank-00001.stack").read_text()
    pretrain_well(arguments, ranks=2)
    assert len(records(run)) == 20


@pytest.mark.slow
def test_a_rank_whose_process_is_stopped_is_named(command) -> None:
    arguments, run = command
    slow = ["slow_steps=0.3", "--", *arguments, PATIENCE]
    ranks = start(slow, ranks=2, script=FAULTS)
    wait_for(lambda: logged_steps(run) >= 3)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    try:
        assert ranks[0].wait(60) == LOST
        _, err = ranks[0].communicate(5)
        assert "rank 1" in err
        assert "does not answer" in err
    finally:
        os.kill(ranks[1].pid, signal.SIGCONT)
        finish(ranks)
