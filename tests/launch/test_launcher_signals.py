"""SIGTERM, SIGINT and SIGUSR1 to a launcher or to one rank below it: all ranks save one step and end by themselves."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.signals import RESUBMIT
from tests.pretrain.killing import (
    CHILD,
    DEEPSPEED,
    LAUNCHER,
    ONE_RANK,
    OUR_TORCHRUN,
    TORCHRUN,
    Started,
)
from tests.ranks import last, logged_steps, losses, pretrain_well, same_bits, wait_for, with_dropout

pytestmark = pytest.mark.soak

STEPS = 60
TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
# Exit codes of the command that was started. The launchers decide most of them: DeepSpeed's command ends with 0 when
# its launch.py dies of a signal, and plain torchrun has only 0 and 1 (docs/clusters.md).
CASES = [
    (DEEPSPEED, LAUNCHER, TERM, -TERM),
    (DEEPSPEED, LAUNCHER, INT, -INT),
    (DEEPSPEED, LAUNCHER, USR1, -USR1),
    (DEEPSPEED, CHILD, TERM, 1),
    (DEEPSPEED, CHILD, INT, 1),
    (DEEPSPEED, CHILD, USR1, 0),
    (DEEPSPEED, ONE_RANK, TERM, RESUBMIT),
    (DEEPSPEED, ONE_RANK, INT, RESUBMIT),
    (DEEPSPEED, ONE_RANK, USR1, RESUBMIT),
    (TORCHRUN, LAUNCHER, TERM, 1),
    (TORCHRUN, LAUNCHER, INT, 1),
    (TORCHRUN, LAUNCHER, USR1, -USR1),
    (TORCHRUN, ONE_RANK, USR1, 1),
    (OUR_TORCHRUN, LAUNCHER, TERM, RESUBMIT),
    (OUR_TORCHRUN, LAUNCHER, INT, 1),
    (OUR_TORCHRUN, LAUNCHER, USR1, RESUBMIT),
    (OUR_TORCHRUN, ONE_RANK, USR1, RESUBMIT),
]


@pytest.fixture(scope="module")
def base(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(arguments but run.name, run.directory): nothing is saved before the end unless a signal asks for it."""
    directory = tmp_path_factory.mktemp("runs")
    return with_dropout(synthetic_corpus, directory, STEPS), directory


@pytest.fixture(scope="module")
def whole(base) -> Path:
    pretrain_well([*base[0], "run.name=whole"], 2)
    return base[1] / "whole"


@pytest.fixture
def launched(base, tmp_path) -> Callable[..., tuple[Started, list[str], Path]]:
    """Starts a run whose steps take a tenth of a second."""

    def launch(how: str, name: str) -> tuple[Started, list[str], Path]:
        arguments = [*base[0], f"run.name={name}"]
        slow = ["slow_steps=0.1", "--", *arguments]
        return Started(how, name, slow, 2, tmp_path / "output.txt"), arguments, base[1] / name

    return launch


@pytest.mark.parametrize(("how", "victim", "number", "code"), CASES)
def test_a_signal_anywhere_stops_all_ranks_at_one_step_and_loses_nothing(
    launched, whole, how, victim, number, code
) -> None:
    name = f"{how}-{victim}-{number.name}".replace(" ", "-").replace("'", "")
    started, arguments, run = launched(how, name)
    wait_for(lambda: logged_steps(run) >= 3 or not started.processes(), timeout=180)
    assert started.kill(victim, 0.9, number) == ("1" if victim == ONE_RANK else victim), started.told()
    assert started.wait(180) == [code], started.told()
    stopped = last(run).progress.step
    assert 3 <= stopped == len(losses(run)) < STEPS
    told = (run / "logs" / "rank-00000.log").read_text().splitlines()[-1]
    assert f"stopped at step {stopped} (" in told
    assert "saved, the same command continues" in told
    pretrain_well(arguments, 2)
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))


@pytest.mark.parametrize(("how", "victim"), [(DEEPSPEED, LAUNCHER), (DEEPSPEED, CHILD), (TORCHRUN, LAUNCHER)])
def test_a_launcher_that_is_killed_while_its_ranks_start_leaves_none_behind(launched, how, victim) -> None:
    """Importing takes seconds, in which the ranks do not look; they must know that they had a launcher."""
    started, _, run = launched(how, f"early-{how}-{victim}".replace(" ", "-").replace("'", ""))
    wait_for(lambda: "1" in started.processes().values(), timeout=180)
    time.sleep(0.5)
    started.kill(victim, 0)
    started.wait(180)
    assert len(losses(run)) <= 1, "the ranks went on by themselves"


def test_the_pattern_that_the_manual_gives_finds_the_ranks_of_one_run_and_no_launcher(launched) -> None:
    """`pkill -USR1 -f PATTERN`, here with pgrep."""
    manual = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    pattern = re.search(r"pkill -USR1 -f '([^']*my-run[^']*)'", manual)
    assert pattern
    started, _, run = launched(DEEPSPEED, "my-run-2")
    wait_for(lambda: logged_steps(run) >= 1 or not started.processes(), timeout=180)
    ranks = {str(pid) for pid, what in started.processes().items() if what.isdigit()}
    assert len(ranks) == 2, started.told()
    here = pattern[1].replace("launch/pretrain.py", "tests/pretrain/faults.py")
    found = subprocess.run(["pgrep", "-f", here.replace("my-run", "my-run-2")], capture_output=True, text=True)
    assert set(found.stdout.split()) == ranks
    assert subprocess.run(["pgrep", "-f", here]).returncode == 1, "it finds another run, too"
    started.kill(ONE_RANK, 0, USR1)
    assert started.wait(180) == [RESUBMIT], started.told()
