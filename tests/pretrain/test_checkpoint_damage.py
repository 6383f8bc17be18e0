"""Damaged checkpoints are never loaded unseen: a run continues the newest good one, or ends with a sentence."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import initialise
from pretrain.checkpoint import MANIFEST, RECIPE, Checkpoint, Progress, steps_on_disk
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.resuming import DAMAGED, newest_good
from pretrain.saving import rotate
from tests.pretrain.bad_input import Bomb
from tests.pretrain.checkpoints import save
from tests.pretrain.test_checkpoint import ALONE, FakeEngine
from tests.ranks import QUICK, last, losses, pretrain, pretrain_well, refused, same_bits

FLIPS = 500


def save_step(directory: Path, step: int) -> Path:
    return save(
        directory, FakeEngine(seed=step, stage=2, pieces=3), Progress(step, "corpus"), "run:\n  seed: 1\n", ALONE
    )


def flip(path: Path, place: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(bytes(data))


def load(path: Path) -> dict[str, torch.Tensor]:
    """As a resuming run does: open, verify, read."""
    found = Checkpoint(path)
    found.verify()
    return found.weights()


def test_500_random_flips_are_all_noticed(tmp_path) -> None:
    """A third of them in each kind of file; always one sentence that names the checkpoint, never another exception."""
    path = save_step(tmp_path, 3)
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    assert set(whole) == {MANIFEST, RECIPE, "state-00000-of-00001.safetensors"}
    draws, told = random.Random(20), 0
    for _ in range(FLIPS):
        name = draws.choice(sorted(whole))
        flip(path / name, draws.randrange(len(whole[name])), draws.randrange(1, 256))
        with pytest.raises(PretrainError, match="step-00000003"):
            load(path)
        told += 1
        (path / name).write_bytes(whole[name])
    assert told == FLIPS
    load(path)


def test_every_byte_of_the_manifest_counts(tmp_path) -> None:
    path = save_step(tmp_path, 3)
    whole = (path / MANIFEST).read_bytes()
    for place in range(len(whole)):
        flip(path / MANIFEST, place)
        with pytest.raises(PretrainError):
            Checkpoint(path)
        (path / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 2}',
        b'{"format": 2, "sha256": NaN}',
        b'{"format": NaN}',
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_a_manifest_that_is_something_else_is_one_sentence(tmp_path, content) -> None:
    path = save_step(tmp_path, 3)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(PretrainError, match=MANIFEST):
        Checkpoint(path)


def test_a_changed_number_with_the_old_hash_is_refused(tmp_path) -> None:
    path = save_step(tmp_path, 3)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["progress"]["step"] = 2
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    with pytest.raises(PretrainError, match="does not match its own hash"):
        Checkpoint(path)


# ----- which one a run continues


@pytest.mark.parametrize("name", [MANIFEST, RECIPE, "state-00000-of-00001.safetensors"])
def test_the_newest_good_one_is_found_and_newer_ones_are_set_aside(tmp_path, caplog, name) -> None:
    for step in (2, 4, 6):
        save_step(tmp_path, step)
    for step in (4, 6):
        flip(tmp_path / f"step-{step:08d}" / name, 60 if name != RECIPE else 3)
    with caplog.at_level("WARNING", "rnafoundry"):
        assert newest_good(tmp_path, ALONE).progress.step == 2
    assert sum("passing over a checkpoint" in line for line in caplog.messages) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002",
        f"step-00000004{DAMAGED}",
        f"step-00000006{DAMAGED}",
    ]


def test_a_good_checkpoint_is_not_rotated_away_for_a_damaged_newer_one(tmp_path) -> None:
    for step in (2, 6):
        save_step(tmp_path, step)
    flip(tmp_path / "step-00000006" / RECIPE, 3)
    newest_good(tmp_path, ALONE)
    save_step(tmp_path, 4)  # a signal came
    rotate(tmp_path, keep=1, permanent_every=None)
    assert [step for step, _ in steps_on_disk(tmp_path)] == [4]
    save_step(tmp_path, 6)
    assert newest_good(tmp_path, ALONE).progress.step == 6


def test_setting_aside_twice_keeps_the_later_one(tmp_path) -> None:
    for seed in (1, 2):
        save_step(tmp_path, 2)
        path = save_step(tmp_path, 6)
        (path / RECIPE).write_text(f"run: {{seed: {seed}}}\n")
        newest_good(tmp_path, ALONE)
    assert (tmp_path / f"step-00000006{DAMAGED}" / RECIPE).read_text() == "run: {seed: 2}\n"


def test_when_all_are_damaged_nothing_starts_from_zero_and_nothing_is_renamed(tmp_path) -> None:
    assert newest_good(tmp_path, ALONE) is None
    assert newest_good(tmp_path / "nowhere", ALONE) is None
    for step in (2, 4):
        flip(save_step(tmp_path, step) / RECIPE, 3)
    with pytest.raises(PretrainError, match=r"no checkpoint in .* is complete and undamaged .*step-00000004"):
        newest_good(tmp_path, ALONE)
    assert [step for step, _ in steps_on_disk(tmp_path)] == [4, 2]


def test_two_ranks_hash_each_file_once(tmp_path, monkeypatch) -> None:
    from pretrain import checkpoint

    path = save_step(tmp_path, 2)
    hashed: list[str] = []
    plain = checkpoint.file_sha256
    monkeypatch.setattr(checkpoint, "file_sha256", lambda file: (hashed.append(file.name), plain(file))[1])
    monkeypatch.setattr(World, "together", lambda self, work: work())
    for rank in range(2):
        Checkpoint(path).verify(World(rank, 2, rank, 2, torch.device("cpu")))
    assert sorted(hashed) == sorted([RECIPE, "state-00000-of-00001.safetensors"])


# ----- real runs


@pytest.fixture(scope="module")
def trained(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[list, Path]]:
    """ranks -> (arguments, a run of 6 steps with checkpoints at 2, 4 and 6)."""
    directory = tmp_path_factory.mktemp("trained")
    done: dict[int, tuple[list, Path]] = {}

    def train(ranks: int) -> tuple[list, Path]:
        if ranks not in done:
            arguments = [*QUICK, f"data.corpus={synthetic_corpus}", f"run.name=run{ranks}", "checkpoint.every_steps=2"]
            done[ranks] = ([*arguments, "budget.steps=6", "deepspeed.zero_stage=2"], directory / f"run{ranks}")
            pretrain_well([*done[ranks][0], f"run.directory={directory}"], ranks)
        return done[ranks]

    return train


@pytest.mark.parametrize(
    ("ranks", "file"),
    [(1, MANIFEST), (2, "state-00001-of-00002.safetensors"), (2, RECIPE), (1, "state-00000-of-00001.safetensors")],
)
@pytest.mark.slow
def test_a_run_passes_over_a_damaged_checkpoint_and_ends_with_the_same_bits(trained, tmp_path, ranks, file) -> None:
    arguments, whole = trained(ranks)
    run = Path(shutil.copytree(whole, tmp_path / whole.name))
    path = run / "checkpoints" / "step-00000006"
    flip(path / file, (path / file).stat().st_size // 2)
    results = pretrain([*arguments, f"run.directory={tmp_path}"], ranks)
    assert [code for code, _, _ in results] == [0] * ranks, results
    assert "at step 4" in results[0][1]
    warnings = [line for _, _, err in results for line in err.splitlines() if "passing over a checkpoint" in line]
    assert len(warnings) == 1
    assert file in warnings[0]
    assert losses(run) == losses(whole)
    assert same_bits(last(run), last(whole))
    assert (run / "checkpoints" / f"step-00000006{DAMAGED}").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_without_a_good_checkpoint_is_refused(trained, tmp_path, ranks) -> None:
    arguments, whole = trained(ranks)
    run = Path(shutil.copytree(whole, tmp_path / whole.name))
    for step, path in steps_on_disk(run / "checkpoints"):
        flip(path / f"state-{step % ranks:05d}-of-{ranks:05d}.safetensors", -20)
    told = refused(pretrain([*arguments, f"run.directory={tmp_path}"], ranks))
    assert "no checkpoint in" in told
    assert "complete and undamaged" in told


@pytest.mark.slow
def test_a_checkpoint_that_only_one_rank_finds_damaged_is_passed_over_by_both(trained, tmp_path) -> None:
    """The second rank cannot read its share, as on a node with a bad disk."""
    arguments, whole = trained(2)
    run = Path(shutil.copytree(whole, tmp_path / whole.name))
    share = run / "checkpoints" / "step-00000006" / "state-00000-of-00002.safetensors"  # hashed by rank 1
    flip(share, 100)
    results = pretrain([*arguments, f"run.directory={tmp_path}"], 2)
    assert [code for code, _, _ in results] == [0, 0], results
    for rank in range(2):
        assert "passing over a checkpoint" in (run / "logs" / f"rank-{rank:05d}.log").read_text()
    assert same_bits(last(run), last(whole))


# ----- foreign pickles


def torch_archive(path: Path, bomb: Bomb) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": bomb}, path)


def plain_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps({"weight": np.zeros(2, dtype=np.float32), "extra": bomb}, protocol=2))


def zipped_pickle(path: Path, bomb: Bomb) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pdparams", "npy", "npz", "safetensors"])
@pytest.mark.parametrize("write", [torch_archive, plain_pickle, zipped_pickle])
@pytest.mark.parametrize("folder", [False, True])
def test_a_foreign_pickle_is_never_executed(tmp_path, suffix, write, folder) -> None:
    touched = tmp_path / "executed"
    place = tmp_path / "foreign"
    place.mkdir()
    path = place / f"pytorch_model.{suffix}"
    write(path, Bomb(touched))
    for model_type in ("rinalmo", "rnabert", "ernie", "ribonanzanet") if folder else (None,):
        if model_type:
            (place / "config.json").write_text(json.dumps({"model_type": model_type}))
        with pytest.raises(ValueError, match=r"foreign|weights") as raised:
            initialise.read_weights(place if folder else path, heads=2)
        assert type(raised.value).__name__ in ("ModelError", "PretrainError")
        assert not touched.exists()


def test_the_bomb_goes_off_where_it_is_not_restrained(tmp_path) -> None:
    """Else the test above would show nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "zero_pp_rank_0_mp_rank_00_optim_states.pt", MANIFEST])
def test_a_pickle_in_a_checkpoint_directory_is_not_executed(tmp_path, name) -> None:
    path = save_step(tmp_path, 2)
    plain_pickle(path / name, Bomb(tmp_path / "executed"))
    if name == MANIFEST:
        with pytest.raises(PretrainError, match=MANIFEST):
            Checkpoint(path)
    else:
        load(path)
    assert not (tmp_path / "executed").exists()
