"""Killed 50 times at random, and restarted on other ranks and stages, a run ends as if nothing had happened.

Kills are SIGKILL to a rank, to a launcher or to everything: during a start, in training, in a save. What a run trained
on is written down beside it, independently of its own log. `make soak` prints the figures. SOAK_SEED=n in the
environment repeats the choices of an earlier run; the instants themselves cannot be repeated.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.contact import LOST_CONTACT
from tests.pretrain.killing import CHILD, DEEPSPEED, DIRECT, FAULTS, ONE_RANK, WAYS, Started
from tests.pretrain.soaking import (
    Attempt,
    Disk,
    figures,
    newest_step,
    partial_saves,
    require_bounded,
    require_every_step_once,
    watched,
)
from tests.ranks import DROPOUT, QUICK, finish, last, logged_steps, losses, records, same_bits, start

pytestmark = pytest.mark.soak

STEPS, EVERY, KEEP = 240, 5, 2
MOST_UNSAVED = 2 * EVERY  # a save is complete at the latest when the next one begins
LAST_KILL = STEPS - 20
PATIENCE = 600  # seconds, for machines that are shared
STARTING, TRAINING, SAVING = "starting", "training", "saving"
Kind = tuple[str, str, str]  # launcher, victim, moment
KINDS: list[Kind] = [
    (*way, moment)
    for way in WAYS
    for moment in (STARTING, TRAINING, SAVING)
    # One rank alone that dies before the others have met it makes them wait for the time-out: see test_contact.py.
    if (*way, moment) != (DIRECT, ONE_RANK, STARTING)
]
Layout = Callable[[], tuple[int, int]]  # ranks and ZeRO stage of the next start


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"SOAK_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def command(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path]]:
    """(arguments, run directory) of a run."""
    directory = tmp_path_factory.mktemp("soak")
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={directory}", f"budget.steps={STEPS}"]
    base += [f"checkpoint.every_steps={EVERY}", f"checkpoint.keep={KEEP}", "compute.timeout_minutes=3"]

    def make(name: str, *settings: str) -> tuple[list[str], Path]:
        return [*base, f"run.name={name}", *settings], directory / name

    return make


def begin(arguments: list[str], run: Path, ranks: int, stage: int, moment: str = "") -> tuple[Attempt, list[str]]:
    """The next start of a run, and its command; steps wait a little so that kills come between them."""
    number = sum(1 for _ in run.parent.glob(f"{run.name}-*.txt"))
    notes = run.parent / f"{run.name}-{number:03d}.jsonl"
    notes.with_suffix(".txt").touch()
    attempt = Attempt(newest_step(run), ranks, notes, moment)
    return attempt, [f"note_samples={notes}", "slow_steps=0.01", "--", *arguments, f"deepspeed.zero_stage={stage}"]


def complete(arguments: list[str], run: Path, ranks: int, stage: int) -> Attempt:
    """Run to the end."""
    attempt, line = begin(arguments, run, ranks, stage)
    results = finish(start(line, ranks, script=FAULTS), timeout=PATIENCE)
    assert [code for code, _, _ in results] == [0] * ranks, results
    return attempt


def kill_once(
    arguments: list[str], run: Path, kind: Kind, layout: tuple[int, int], ahead: int, chance: random.Random
) -> Attempt:
    """Start the run, kill it ``ahead`` steps later, wait until nothing of it is left."""
    (how, victim, moment), (ranks, stage) = kind, layout
    left, limit = partial_saves(run), time.monotonic() + PATIENCE
    attempt, line = begin(arguments, run, ranks, stage, moment)
    here = f"{kind}, {ranks} ranks at stage {stage}, from step {attempt.begins}"
    started = Started(how, run.name, line, ranks, attempt.notes.with_suffix(".txt"))

    def until(condition: Callable[[], object]) -> None:
        for turn in itertools.count():
            if condition():
                return
            if turn % 100 == 0:
                assert started.processes(), f"ended before it was killed: {here}\n{started.told()}"
                assert time.monotonic() < limit, f"waited in vain: {here}\n{started.told()}"
            time.sleep(0.003)

    if moment == STARTING:
        time.sleep(chance.uniform(0, 1.5 if how == DIRECT else 8))
    else:
        until(attempt.notes.exists)  # from here on the log is this start's
        until(lambda: logged_steps(run) >= attempt.begins + ahead)
        if moment == SAVING:
            until(lambda: partial_saves(run) - left)
        time.sleep(chance.uniform(0, 0.02))
    killed, since = started.kill(victim, chance.random()), time.monotonic()
    assert killed, f"ended before it was killed: {here}\n{started.told()}"
    codes = started.wait(PATIENCE)
    attempt.seconds_to_end = time.monotonic() - since
    attempt.in_save = bool(partial_saves(run) - left)
    print(f"{here}: killed {killed}, exit codes {codes}, now at step {newest_step(run)}")
    assert 0 not in codes or (how, victim) == (DEEPSPEED, CHILD), here  # its command then ends with 0
    if (how, victim) == (DIRECT, ONE_RANK):
        assert sorted({*codes} - {-9}) == ([LOST_CONTACT] if ranks > 1 else []), (codes, started.told())
    return attempt


def soak(
    arguments: list[str], run: Path, kinds: list[Kind], layout: Layout, chance: random.Random
) -> tuple[list[Attempt], Disk, float]:
    """Kill a run in these ways, then let it end; and the seconds that all took."""
    attempts, begun = list[Attempt](), time.monotonic()
    with watched(run) as disk:
        for number, kind in enumerate(kinds):
            to_go = LAST_KILL - newest_step(run)
            share = to_go // (len(kinds) - number)
            ahead = min(chance.randint(0, max(0, 2 * share - EVERY)), to_go)
            attempts.append(kill_once(arguments, run, kind, layout(), ahead, chance))
        attempts.append(complete(arguments, run, *layout()))
    return attempts, disk, time.monotonic() - begun


def require_whole_history(run: Path, disk: Disk) -> None:
    """Every step stands in the run's own log once, was applied once, and no more is on disk than it should."""
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert last(run).progress.optimizer_steps == last(run).progress.step == STEPS
    require_bounded(run, disk, KEEP)


def test_50_kills_and_restarts_on_other_ranks_and_stages(command, chance, record_property) -> None:
    """The losses are as far from an uninterrupted run's as those of another uninterrupted run on other ranks are."""
    arguments, whole = command("whole")
    begun = time.monotonic()
    reference = complete(arguments, whole, 1, 0)
    alone = time.monotonic() - begun
    arguments, twin = command("twin")
    complete(arguments, twin, 3, 2)

    kinds = [*KINDS, *chance.choices(KINDS, k=50 - len(KINDS))]
    chance.shuffle(kinds)
    arguments, run = command("killed")
    attempts, disk, seconds = soak(arguments, run, kinds, lambda: (chance.randint(1, 3), chance.randint(0, 3)), chance)
    redone = require_every_step_once(attempts, STEPS, reference.samples(), MOST_UNSAVED)
    require_whole_history(run, disk)
    curve, other, expected = (np.array(losses(each)) for each in (run, twin, whole))
    furthest, rounding = np.abs(curve - expected).max(), np.abs(other - expected).max()
    table = figures(attempts, STEPS, redone, seconds, alone, disk)
    table["largest difference in loss; of an uninterrupted run on 3 ranks"] = f"{furthest:.1e}; {rounding:.1e}"
    for figure, value in table.items():
        record_property("soak", f"| ranks and stages at random | {figure} | {value} |")
    assert rounding < 1e-4
    assert furthest <= 10 * rounding + 1e-6


def test_killed_in_every_way_a_run_with_dropout_ends_with_the_same_bits(command, chance, record_property) -> None:
    """On the same ranks and stage."""
    ranks, stage = 2, 2
    arguments, whole = command("whole-dropout", *DROPOUT)
    begun = time.monotonic()
    reference = complete(arguments, whole, ranks, stage)
    alone = time.monotonic() - begun

    arguments, run = command("killed-dropout", *DROPOUT)
    kinds = chance.sample(KINDS, len(KINDS))
    attempts, disk, seconds = soak(arguments, run, kinds, lambda: (ranks, stage), chance)
    redone = require_every_step_once(attempts, STEPS, reference.samples(), MOST_UNSAVED)
    require_whole_history(run, disk)
    for figure, value in figures(attempts, STEPS, redone, seconds, alone, disk).items():
        record_property("soak", f"| {ranks} ranks, stage {stage}, dropout | {figure} | {value} |")
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))
