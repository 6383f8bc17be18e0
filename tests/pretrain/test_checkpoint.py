"""Checkpoints: plain safetensors and JSON, every number exactly once, complete or absent."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretrain import checkpoint, run_lock, saving
from pretrain.checkpoint import MANIFEST, RECIPE, Checkpoint, Progress, newest, steps_on_disk
from pretrain.distributed import World
from pretrain.engine import Fragment
from pretrain.errors import PretrainError
from pretrain.saving import rotate
from tests.pretrain import faults
from tests.pretrain.checkpoints import save
from tests.ranks import QUICK, last, pretrain

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
SHAPES = {"embedding.weight": (7, 4), "norm.weight": (4,), "scale": ()}
STATE_KINDS = ("exp_avg", "exp_avg_sq")
KINDS = (checkpoint.WEIGHT, *STATE_KINDS)


class FakeEngine:
    """Three small parameters with known contents, cut into ``pieces`` fragments each."""

    kinds = STATE_KINDS

    def __init__(self, stage: int = 0, pieces: int = 1, seed: int = 0):
        self.stage, self.shapes, self.pieces, self.optimizer_steps = stage, SHAPES, pieces, 5
        draws = torch.Generator().manual_seed(seed)
        sizes = {name: int(torch.Size(shape).numel()) for name, shape in SHAPES.items()}
        self.flat = {(k, name): torch.rand(n, generator=draws) for name, n in sizes.items() for k in KINDS}

    def fragments(self) -> Iterator[Fragment]:
        for name in SHAPES:
            weight, *states = (self.flat[kind, name] for kind in KINDS)
            cuts = np.linspace(0, len(weight), self.pieces + 1).astype(int)
            for a, b in itertools.pairwise(cuts.tolist()):
                if a < b:
                    parts = {kind: state[a:b] for kind, state in zip(STATE_KINDS, states, strict=True)}
                    yield Fragment(name, a, weight[a:b], parts)


def save_step(directory: Path, step: int, **engine: int) -> Path:
    return save(directory, FakeEngine(seed=step, **engine), Progress(step, "corpus"), "run: {}\n", ALONE)


def steps(directory: Path) -> list[int]:
    return [step for step, _ in steps_on_disk(directory)]


# ----- format


@pytest.mark.parametrize(("stage", "pieces"), [(0, 1), (2, 1), (2, 3)])
def test_what_is_saved_is_read_back(tmp_path, stage, pieces) -> None:
    engine = FakeEngine(stage, pieces)
    found = Checkpoint(save(tmp_path, engine, Progress(3, "corpus", sequences=12), "run: {}\n", ALONE))
    found.verify()
    assert (found.progress.step, found.progress.sequences, found.progress.optimizer_steps) == (3, 12, 5)
    for name, values in found.weights().items():
        assert values.shape == SHAPES[name]
        assert torch.equal(values.flatten(), engine.flat[checkpoint.WEIGHT, name])


def test_any_part_of_a_tensor_can_be_read(tmp_path) -> None:
    engine = FakeEngine(stage=2, pieces=5)
    found = Checkpoint(save(tmp_path, engine, Progress(3, "corpus"), "", ALONE))
    whole = engine.flat["exp_avg", "embedding.weight"]
    for start in range(len(whole)):
        for n in range(len(whole) - start + 1):
            assert torch.equal(found.read("exp_avg", "embedding.weight", start, n), whole[start : start + n])


def test_asking_for_what_is_not_there_is_an_error(tmp_path) -> None:
    found = Checkpoint(save_step(tmp_path, 1))
    with pytest.raises(PretrainError, match="has no weight of other"):
        found.read("weight", "other", 0, 1)
    with pytest.raises(PretrainError, match="only in part"):
        found.read("weight", "scale", 0, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 50])
def test_at_stage_0_the_ranks_share_the_writing_equally(ranks) -> None:
    engine = FakeEngine(stage=0)
    shares = [list(saving._owned(engine, World(r, ranks, r, ranks, torch.device("cpu")))) for r in range(ranks)]
    written = {(f.name, f.start + i) for share in shares for f in share for i in range(f.master.numel())}
    sizes = [sum(fragment.master.numel() for fragment in share) for share in shares]
    assert len(written) == sum(sizes) == 33
    assert max(sizes) - min(sizes) <= 1


RUNS = [(2, 0, "fp32"), (2, 2, "bf16")]
SLOW_RUNS = [(ranks, stage, "fp32") for ranks in (1, 3) for stage in (0, 1, 2, 3)] + [(2, 1, "bf16"), (2, 3, "bf16")]


@pytest.fixture(scope="module")
def trained(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of 3 steps with `state.safetensors`, its state as DeepSpeed's own functions gathered it."""
    directory, done = tmp_path_factory.mktemp("runs"), set()

    def run(ranks: int, stage: int, precision: str) -> Path:
        path = directory / f"{ranks}-{stage}-{precision}"
        if path not in done:
            done.add(path)
            settings = [f"data.corpus={synthetic_corpus}", f"run.directory={directory}", f"run.name={path.name}"]
            settings += ["budget.steps=3", f"deepspeed.zero_stage={stage}", f"compute.precision={precision}"]
            command = [f"dump_state={directory / path.name}.safetensors", "--", *QUICK, *settings]
            results = pretrain(command, ranks, script=Path(faults.__file__))
            assert {code for code, _, _ in results} == {0}, results
        return path

    return run


def each_run(test):
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_RUNS]
    return pytest.mark.parametrize(("ranks", "stage", "precision"), [*RUNS, *slow])(test)


@pytest.mark.slow
@each_run
def test_the_format_is_plain_json_and_safetensors(trained, ranks, stage, precision) -> None:
    """Read without our code: every place of every tensor stands in the files exactly once."""
    path = last(trained(ranks, stage, precision)).path
    manifest = json.loads((path / "checkpoint.json").read_text())
    names = [f"state-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)]
    assert sorted(file.name for file in path.iterdir()) == sorted(["checkpoint.json", "recipe.yaml", *names])
    assert [file["name"] for file in manifest["files"]] == names
    times = {(k, name): np.zeros(int(np.prod(shape)), int) for name, shape in manifest["shapes"].items() for k in KINDS}
    for file in manifest["files"]:
        assert file["bytes"] == (path / file["name"]).stat().st_size
        assert file["sha256"] == hashlib.sha256((path / file["name"]).read_bytes()).hexdigest()
        for key, values in load_file(path / file["name"]).items():
            kind, name, start = key.split("|")
            assert values.dtype == torch.float32
            times[kind, name][int(start) : int(start) + len(values)] += 1
    assert len(times) > 3
    assert all((counts == 1).all() for counts in times.values())


@each_run
def test_a_checkpoint_holds_the_state_that_deepspeed_has(trained, ranks, stage, precision) -> None:
    run = trained(ranks, stage, precision)
    found, state = last(run), load_file(f"{run}.safetensors")
    assert len(state) == 3 * len(found.shapes)
    for key, values in state.items():
        kind, name = key.split("|")
        assert torch.equal(found.read(kind, name, 0, values.numel()), values.flatten()), key


def test_nothing_in_a_run_directory_is_a_pickle(trained) -> None:
    files = [path for path in trained(2, 2, "bf16").rglob("*") if path.is_file()]
    kinds = {".json", ".jsonl", ".yaml", ".log", ".safetensors", run_lock.NAME}
    assert {path.suffix or path.name for path in files} == kinds
    assert not any(path.read_bytes()[:1] == b"\x80" or zipfile.is_zipfile(path) for path in files)


# ----- completeness


@pytest.mark.parametrize("name", ["state-00000-of-00001.safetensors", RECIPE])
def test_verify_finds_any_changed_byte(tmp_path, name) -> None:
    path = save_step(tmp_path, 1)
    Checkpoint(path).verify()
    data = bytearray((path / name).read_bytes())
    for place in range(0, len(data), max(1, len(data) // 20)):
        data[place] ^= 1
        (path / name).write_bytes(data)
        with pytest.raises(PretrainError, match=f"{name} is damaged"):
            Checkpoint(path).verify()
        data[place] ^= 1


def test_a_file_that_is_missing_or_short_is_noticed_on_opening(tmp_path) -> None:
    path = save_step(tmp_path, 1)
    state = next(path.glob("*.safetensors"))
    os.truncate(state, state.stat().st_size - 1)
    with pytest.raises(PretrainError, match=f"{state.name} has .* bytes"):
        Checkpoint(path)
    for name in (state.name, RECIPE, MANIFEST):
        (path / name).unlink()
        with pytest.raises(PretrainError, match=name):
            Checkpoint(path)


def test_newest_is_the_last_complete_one(tmp_path) -> None:
    assert newest(tmp_path / "nowhere") is None
    assert newest(tmp_path) is None
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / "step-00000009.txt").write_text("not a checkpoint")
    (tmp_path / "step-later").mkdir()
    assert newest(tmp_path) is None
    paths = {step: save_step(tmp_path, step) for step in (2, 10, 9)}
    assert newest(tmp_path).progress.step == 10
    (paths[10] / MANIFEST).unlink()
    assert newest(tmp_path).progress.step == 9
    for step in (2, 9):
        (paths[step] / RECIPE).unlink()
    with pytest.raises(PretrainError, match=r"no checkpoint in .* is complete"):
        newest(tmp_path)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path) -> None:
    (save_step(tmp_path, 4) / MANIFEST).write_text("{")
    save_step(tmp_path, 4)
    newest(tmp_path).verify()


# ----- rotation


def test_rotation_keeps_the_newest_and_the_permanent_ones(tmp_path) -> None:
    kept = {}
    for step in range(1, 11):
        save_step(tmp_path, step)
        rotate(tmp_path, keep=2, permanent_every=4)
        kept[step] = steps(tmp_path)
    assert kept[3] == [3, 2]
    assert kept[6] == [6, 5, 4]
    assert kept[10] == [10, 9, 8, 4]


def test_rotation_removes_what_a_killed_save_left(tmp_path) -> None:
    (tmp_path / ".step-00000003.partial").mkdir()
    (tmp_path / ".step-00000003.partial" / "state-00000-of-00002.safetensors").write_text("torn")
    save_step(tmp_path, 4)
    rotate(tmp_path, keep=1, permanent_every=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_rotation_does_not_count_incomplete_checkpoints(tmp_path) -> None:
    """Else a damaged newer one would push out the only good one."""
    for step in (5, 9):
        save_step(tmp_path, step)
    (tmp_path / "step-00000009" / MANIFEST).unlink()
    save_step(tmp_path, 6)
    rotate(tmp_path, keep=1, permanent_every=None)
    assert steps(tmp_path) == [9, 6]
    assert newest(tmp_path).progress.step == 6


# ----- a kill or a full disk at every single operation of a save

OPERATIONS = [
    (saving, "save_file"),
    (os, "fsync"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "unlink"),
    (shutil, "rmtree"),
    (saving, "file_sha256"),
]


def at_operation(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> SimpleNamespace:
    """Call ``act`` instead of the ``number``-th operation on files from now on."""
    counter = SimpleNamespace(done=0)

    def counted(plain: Callable) -> Callable:
        def operation(*arguments, **options):
            counter.done += 1
            if counter.done - 1 == number:
                act()
            return plain(*arguments, **options)

        return operation

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return counter


def save_and_rotate(directory: Path) -> None:
    save_step(directory, 4)
    rotate(directory, keep=1, permanent_every=None)


def count_operations(tmp_path: Path) -> int:
    save_step(tmp_path / "count", 2)
    with pytest.MonkeyPatch.context() as patch:
        counter = at_operation(patch, -1, lambda: None)
        save_and_rotate(tmp_path / "count")
        return counter.done


def test_a_kill_at_every_operation_of_a_save_leaves_a_complete_checkpoint(tmp_path, monkeypatch) -> None:
    survivors = []
    operations = count_operations(tmp_path)
    for number in range(operations):
        directory = tmp_path / str(number)
        save_step(directory, 2)
        child = os.fork()
        if child == 0:  # dies without cleaning up, as a killed process does
            at_operation(monkeypatch, number, lambda: os._exit(9))
            save_and_rotate(directory)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found = newest(directory)
        found.verify()
        survivors.append(found.progress.step)
        save_and_rotate(directory)
        assert [path.name for path in directory.iterdir()] == ["step-00000004"]
    assert operations > 10
    assert survivors == sorted(survivors)
    assert set(survivors) == {2, 4}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_at_every_operation_of_a_save_is_one_sentence(tmp_path, monkeypatch, code) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    told = []
    for number in range(count_operations(tmp_path)):
        directory = tmp_path / str(number)
        save_step(directory, 2)
        with monkeypatch.context() as patch:
            at_operation(patch, number, fail)
            try:
                save_and_rotate(directory)
            except PretrainError as error:
                told.append(str(error))
        newest(directory).verify()
        assert not list(directory.glob(".step-*")), number
    assert len(told) > 5
    assert all("cannot be written" in text for text in told)
