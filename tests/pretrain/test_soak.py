"""Killed 50 times at random, and restarted on other ranks and stages, a run ends as if nothing had happened.

Kills are SIGKILL to a rank, to the launcher or to everything: at a start, in training, in a save. What a run trained on
is written down beside it (`note_samples`), independently of its own log. `make soak` prints the figures.
SOAK_SEED=n in the environment repeats the choices of an earlier run; the moments themselves are not repeatable.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint import newest, steps_on_disk
from pretrain.contact import LOST_CONTACT
from tests.pretrain.killing import DIRECT, FAULTS, ONE_RANK, WAYS, Started
from tests.ranks import DROPOUT, QUICK, finish, last, logged_steps, losses, records, same_bits, start

pytestmark = pytest.mark.soak

STEPS, EVERY, KEEP = 400, 5, 2
PATIENCE = 300  # seconds, for machines that are shared
STARTING, TRAINING, SAVING = "starting", "training", "saving"
# A single rank that dies before the others have met it makes them wait for the time-out: see test_contact.py.
KINDS = [
    (*way, moment)
    for way in WAYS
    for moment in (STARTING, TRAINING, SAVING)
    if (*way, moment) != (DIRECT, ONE_RANK, STARTING)
]
MIXED, FIXED = 50, len(KINDS)


@dataclass
class Attempt:
    """One start of the run: from which step, on how many ranks, and what it did until it was killed."""

    begins: int
    ranks: int
    notes: Path
    moment: str = ""
    in_save: bool = False  # a save was left unfinished
    seconds_to_end: float = 0.0  # from the kill until no process was left

    def trained(self) -> dict[int, dict[int, list[int]]]:
        """step -> rank -> samples; asserts that no rank did a step twice or left one out."""
        found: dict[int, dict[int, list[int]]] = {}
        for line in self.notes.read_text().splitlines() if self.notes.exists() else []:
            note = json.loads(line)
            assert note["ranks"] == self.ranks
            assert note["rank"] not in found.setdefault(note["step"], {}), f"step {note['step']} twice in one start"
            found[note["step"]][note["rank"]] = note["samples"]
        assert sorted(found) == list(range(self.begins + 1, self.begins + 1 + len(found)))
        return found


@dataclass
class Disk:
    """The most that was seen of the checkpoints of a run."""

    bytes: int = 0
    checkpoints: int = 0
    partial: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self, directory: Path) -> None:
        size, names = 0, []
        try:
            for path in directory.iterdir():
                names.append(path.name)
                size += sum(file.stat().st_size for file in path.iterdir())
        except OSError:  # it is being renamed or removed
            return
        self.bytes = max(self.bytes, size)
        self.checkpoints = max(self.checkpoints, sum(name.startswith("step-") for name in names))
        self.partial = max(self.partial, sum(name.startswith(".step-") for name in names))


@contextmanager
def watched(directory: Path) -> Iterator[Disk]:
    disk = Disk()

    def watch() -> None:
        while not disk.stop.wait(0.01):
            disk.look(directory)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield disk
    finally:
        disk.stop.set()
        thread.join()


@pytest.fixture(scope="module")
def command(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path]]:
    """(arguments but the faults, run directory) of a run."""
    directory = tmp_path_factory.mktemp("soak")
    base = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={directory}", f"budget.steps={STEPS}"]
    base += [f"checkpoint.every_steps={EVERY}", f"checkpoint.keep={KEEP}", "compute.timeout_minutes=3"]

    def make(name: str, *settings: str) -> tuple[list[str], Path]:
        return [*base, f"run.name={name}", *settings], directory / name

    return make


def with_faults(notes: Path, arguments: list[str], ranks: int, stage: int) -> list[str]:
    slow = f"slow_steps={0.02}"
    return [f"note_samples={notes}", slow, "--", *arguments, f"deepspeed.zero_stage={stage}"]


def complete(arguments: list[str], run: Path, ranks: int, stage: int) -> tuple[Attempt, float]:
    """Run to the end; and the seconds that it took."""
    attempt, begun = Attempt(newest_step(run), ranks, next_notes(run)), time.monotonic()
    results = finish(start(with_faults(attempt.notes, arguments, ranks, stage), ranks, script=FAULTS), timeout=PATIENCE)
    assert [code for code, _, _ in results] == [0] * ranks, results
    return attempt, time.monotonic() - begun


def newest_step(run: Path) -> int:
    found = newest(run / "checkpoints")
    return found.progress.step if found else 0


def next_notes(run: Path) -> Path:
    return run.parent / f"{run.name}-{sum(1 for _ in run.parent.glob(f'{run.name}-*.jsonl')):03d}.jsonl"


def partial_saves(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob(".step-*.partial"))


def kill_once(
    arguments: list[str],
    run: Path,
    kind: tuple[str, str, str],
    ranks: int,
    stage: int,
    ahead: int,
    chance: random.Random,
) -> Attempt:
    """Start the run, kill it ``ahead`` steps later, wait until nothing of it is left."""
    how, victim, moment = kind
    attempt = Attempt(newest_step(run), ranks, next_notes(run), moment)
    here = f"{kind}, {ranks} ranks at stage {stage}, from step {attempt.begins}"
    left, limit = set(partial_saves(run)), time.monotonic() + PATIENCE
    started = Started(
        how, run.name, with_faults(attempt.notes, arguments, ranks, stage), ranks, attempt.notes.with_suffix(".txt")
    )

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
        until(lambda: attempt.notes.exists() and attempt.notes.stat().st_size > 0)
        until(lambda: logged_steps(run) >= attempt.begins + ahead)
        if moment == SAVING:
            until(lambda: set(partial_saves(run)) - left)
        time.sleep(chance.uniform(0, 0.02))
    killed, begun = started.kill(victim, chance.random()), time.monotonic()
    assert killed, f"ended before it was killed: {here}\n{started.told()}"
    codes = started.wait(PATIENCE)
    attempt.seconds_to_end = time.monotonic() - begun
    attempt.in_save = bool(set(partial_saves(run)) - left)
    print(f"{here}: killed {killed}, exit codes {codes}, now at step {newest_step(run)}")
    assert 0 not in codes
    if how == DIRECT and victim == ONE_RANK:
        assert sorted({*codes} - {-9}) == ([LOST_CONTACT] if ranks > 1 else []), (codes, started.told())
    return attempt


def soak(
    command,
    name: str,
    kinds: list[tuple[str, str, str]],
    chance: random.Random,
    layout: Callable[[], tuple[int, int]],
    *settings: str,
) -> tuple[Path, list[Attempt], Disk, float]:
    """Kill a run in these ways, each start on the ranks and stage that ``layout`` gives, then let it end."""
    arguments, run = command(name, *settings)
    attempts, begun = [], time.monotonic()
    with watched(run / "checkpoints") as disk:
        for number, kind in enumerate(kinds):
            share = (STEPS - 20 - newest_step(run)) / (len(kinds) - number)
            ahead = chance.randint(0, max(0, int(2 * share) - EVERY))
            attempts.append(
                kill_once(arguments, run, kind, *layout(), min(ahead, STEPS - 20 - newest_step(run)), chance)
            )
        attempts.append(complete(arguments, run, *layout())[0])
    return run, attempts, disk, time.monotonic() - begun


def require_every_step_once(attempts: list[Attempt], samples: dict[int, list[int]]) -> int:
    """What survives of all starts is every step once, on the samples of the uninterrupted run. Returns steps redone."""
    expected, lost = 1, 0
    ends = [later.begins for later in attempts[1:]] + [STEPS]
    for attempt, end in zip(attempts, ends, strict=True):
        assert end >= attempt.begins, "a saved step was lost"
        trained = attempt.trained()
        for step in range(attempt.begins + 1, end + 1):
            assert step == expected
            assert sorted(trained[step]) == list(range(attempt.ranks)), (
                f"step {step} was saved before all ranks had done it"
            )
            assert sorted(itertools.chain(*trained[step].values())) == samples[step]
            expected += 1
        undone = [step for step in trained if step > end]
        assert len(undone) <= 2 * EVERY, f"{len(undone)} steps were done and not saved"
        lost += len(undone)
    assert expected == STEPS + 1
    return lost


def uninterrupted(
    command, name: str, ranks: int, stage: int, *settings: str
) -> tuple[Path, dict[int, list[int]], float]:
    """(run directory, step -> its samples, seconds)."""
    arguments, run = command(name, *settings)
    attempt, seconds = complete(arguments, run, ranks, stage)
    return (
        run,
        {step: sorted(itertools.chain(*by_rank.values())) for step, by_rank in attempt.trained().items()},
        seconds,
    )


def require_bounded(run: Path, disk: Disk) -> None:
    (_, path), *_ = steps_on_disk(run / "checkpoints")
    one = sum(file.stat().st_size for file in path.iterdir())
    assert disk.bytes > one, "the disk was not watched"
    assert disk.bytes <= (KEEP + 2) * one * 1.02  # files of three ranks have three headers
    assert len(steps_on_disk(run / "checkpoints")) == KEEP
    assert not partial_saves(run)
    rest = sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and "checkpoints" not in file.parts)
    assert rest < 5_000_000


def tell(
    record_property, name: str, attempts: list[Attempt], lost: int, seconds: float, alone: float, disk: Disk
) -> None:
    kills = attempts[:-1]
    moments = Counter(attempt.moment for attempt in kills)
    ends = [attempt.seconds_to_end for attempt in kills]
    rows = [
        ("kills survived", f"{len(kills)}: " + ", ".join(f"{n} {moment}" for moment, n in moments.items())),
        ("of them with a save left unfinished", sum(attempt.in_save for attempt in kills)),
        ("steps of the run, steps done again (all of them unsaved)", f"{STEPS}, {lost}"),
        ("from a kill until no process was left, median and longest", f"{np.median(ends):.1f} s, {max(ends):.1f} s"),
        ("time with all restarts, and uninterrupted", f"{seconds:.0f} s, {alone:.0f} s"),
        (
            "most on disk: MB, checkpoints, unfinished ones",
            f"{disk.bytes / 1e6:.2f}, {disk.checkpoints}, {disk.partial}",
        ),
    ]
    for figure, value in rows:
        record_property("soak", f"| {name} | {figure} | {value} |")


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"SOAK_SEED={seed}")
    return random.Random(seed)


def test_50_kills_and_restarts_on_other_ranks_and_stages(command, chance, record_property) -> None:
    """As far from the uninterrupted run as another uninterrupted run on other ranks is, and not further."""
    whole, samples, alone = uninterrupted(command, "whole", 1, 0)
    twin, _, _ = uninterrupted(command, "twin", 3, 2)
    kinds = KINDS + chance.choices(KINDS, k=MIXED - len(KINDS))
    chance.shuffle(kinds)
    layout = lambda: (chance.randint(1, 3), chance.randint(0, 3))  # noqa: E731
    run, attempts, disk, seconds = soak(command, "killed", kinds, chance, layout)
    lost = require_every_step_once(attempts, samples)
    tell(record_property, "ranks and stages at random", attempts, lost, seconds, alone, disk)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert last(run).progress.optimizer_steps == last(run).progress.step == STEPS
    one, other, reference = (np.array(losses(each)) for each in (run, twin, whole))
    furthest, rounding = np.abs(one - reference).max(), np.abs(other - reference).max()
    record_property(
        "soak", f"| | largest difference in loss; of an uninterrupted run on 3 ranks | {furthest:.1e}; {rounding:.1e} |"
    )
    assert furthest <= 10 * rounding + 1e-6
    assert rounding < 1e-3
    require_bounded(run, disk)


def test_killed_in_every_way_with_dropout_a_run_on_the_same_ranks_ends_with_the_same_bits(
    command, chance, record_property
) -> None:
    settings = [*DROPOUT, "validation.every_steps=0"]
    whole, samples, alone = uninterrupted(command, "whole-dropout", 2, 2, *settings)
    kinds = chance.sample(KINDS, FIXED)
    run, attempts, disk, seconds = soak(command, "killed-dropout", kinds, chance, lambda: (2, 2), *settings)
    lost = require_every_step_once(attempts, samples)
    tell(record_property, "2 ranks, stage 2, dropout", attempts, lost, seconds, alone, disk)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))
    require_bounded(run, disk)
