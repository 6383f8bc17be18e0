"""Every mistake ends all ranks with one sentence and exit code 2, and leaves what was there as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.index import Corpus
from data.order import Order
from pretrain.checkpoint import MANIFEST, steps_on_disk
from tests.pretrain import faults
from tests.ranks import QUICK, ROOT, last, logged_steps, losses, pretrain, pretrain_well, refused, same_bits

FAULTS = Path(faults.__file__)


@pytest.fixture(scope="module")
def trained(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    directory = tmp_path_factory.mktemp("trained")
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={directory}", "run.name=run", "budget.steps=6"]
    settings += ["schedule.decay_steps=4"]
    pretrain_well([*QUICK, *settings, "checkpoint.every_steps=2"])
    return directory / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def new(synthetic_corpus: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that does not exist yet: in ``tmp_path``, called `new`."""
    return [*QUICK, f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=new"]


@pytest.fixture
def again(synthetic_corpus: Path, run: Path) -> list[str]:
    """Arguments that continue ``run`` to 8 steps."""
    settings = [f"data.corpus={synthetic_corpus}", f"run.directory={run.parent}", "run.name=run", "budget.steps=8"]
    settings += ["schedule.decay_steps=4"]
    return [*QUICK, *settings, "checkpoint.every_steps=2"]


def content(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def flip(path: Path, place: int) -> None:
    """Flip one bit of one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def step_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def state_file(run: Path, step: int) -> Path:
    (path,) = step_path(run, step).glob("*.safetensors")
    return path


def require_refused(arguments: list[str], *says: str, ranks: int = 1, env: dict[str, str] | None = None) -> str:
    told = refused(pretrain(arguments, ranks, env=env))
    for text in says:
        assert text in told
    return told


# ----- the recipe


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("batch.sequence=4", ("batch.sequence", "batch.sequences")),
        ("model.depth=4", ("model.depth",)),
        ("budget.steps=many", ("budget.steps", "many")),
        ("compute.compile=perhaps", ("compute.compile",)),
        ("optimizer.betas=[0.9]", ("optimizer.betas",)),
        ("model.name=gpt", ("model.name", "gpt", "rinalmo")),
        ("deepspeed.zero_stage=4", ("deepspeed.zero_stage", "4")),
        ("compute.precision=bf16", ("deepspeed.zero_stage=0", "stage 1 or 2")),
        ("model.vocab=7", ("model.vocab", "7")),
        ("budget.epochs=1", ("budget.steps", "budget.epochs")),
        ("run.name=a/b", ("run.name",)),
    ],
)
def test_a_wrong_setting(new, tmp_path, setting, says) -> None:
    require_refused([*new, setting], *says)
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_wrong_setting_is_told_by_one_of_two_ranks(new) -> None:
    require_refused([*new, "batch.sequence=4"], "batch.sequences", ranks=2)


@pytest.mark.parametrize("damage", ["cut", "unclosed", "list", "missing", "binary"])
def test_a_damaged_recipe_file(new, tmp_path, damage) -> None:
    whole = (ROOT / "tests" / "tiny.yaml").read_text()
    path = tmp_path / "damaged.yaml"
    texts = {
        "cut": whole[: whole.index("objective:") + len("objective")],
        "unclosed": whole + 'init_from: "runs',
        "list": "- a\n- b\n",
        "binary": "\0\1\2",
    }
    if damage in texts:
        path.write_text(texts[damage])
    require_refused(["--config", str(path), *new[2:]], "damaged.yaml")


# ----- the corpus and the machine


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_missing_corpus(new, tmp_path, ranks) -> None:
    require_refused([*new, f"data.corpus={tmp_path / 'nowhere'}"], "nowhere", ranks=ranks)


def test_more_ranks_than_sequences_in_a_batch(new) -> None:
    require_refused([*new, "batch.sequences=1"], "2 ranks", "batch.sequences=1", ranks=2)


def first_touched(corpus: Corpus, seed: int, sequences: int) -> dict[int, int]:
    """Block -> the first step that reads it."""
    order, ends = Order(corpus.block_counts, seed, sequences), np.cumsum(corpus.block_counts)
    touched: dict[int, int] = {}
    for step in range(20):
        for block in np.searchsorted(ends, order.step(step)[1], side="right").tolist():
            touched.setdefault(block, step)
    return touched


def damage_block(corpus: Path, split: str, block: int) -> Path:
    """Flip a byte of one block; returns the shard that holds it."""
    opened = Corpus.open(corpus, split)
    row = opened._blocks[block]
    shard = corpus / opened._shards[int(row["shard"])]
    flip(shard, int(row["tok"]) + 5)
    return shard


@pytest.fixture
def corpus_copy(synthetic_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_corpus, tmp_path / "corpus"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_flipped_byte_in_a_shard_ends_the_training_that_meets_it(corpus_copy, tmp_path, new, ranks) -> None:
    opened = Corpus.open(corpus_copy)
    touched = [first_touched(opened, seed, sequences=2) for seed in range(99)]
    seed = next(seed for seed, steps in enumerate(touched) if max(steps.values()) >= 3)
    block, step = max(touched[seed].items(), key=lambda pair: pair[1])
    shard = damage_block(corpus_copy, "train", block)
    settings = [f"data.corpus={corpus_copy}", f"run.seed={seed}", "batch.sequences=2", "checkpoint.every_steps=1"]
    require_refused([*new, *settings], str(shard), f"block {block}", ranks=ranks)
    assert logged_steps(tmp_path / "new") == step
    last(tmp_path / "new").verify()
    assert last(tmp_path / "new").progress.step == step


def test_damage_that_all_ranks_meet_in_one_step_is_told_once(corpus_copy, new) -> None:
    blocks = range(len(Corpus.open(corpus_copy).block_counts))
    shards = [damage_block(corpus_copy, "train", block) for block in blocks]
    require_refused([*new, f"data.corpus={corpus_copy}"], shards[0].name, ranks=2)


@pytest.mark.parametrize("baselines", ["true", "false"])
def test_a_flipped_byte_in_a_validation_shard(corpus_copy, new, baselines) -> None:
    shard = damage_block(corpus_copy, "validation", 0)
    settings = [f"data.corpus={corpus_copy}", "validation.sequences=16", f"validation.baselines={baselines}"]
    require_refused([*new, *settings, "validation.every_steps=2"], str(shard), ranks=2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_directory_that_cannot_be_made(new, tmp_path, ranks) -> None:
    (tmp_path / "file").write_text("in the way")
    require_refused([*new, f"run.directory={tmp_path / 'file'}"], str(tmp_path / "file"), "run.directory", ranks=ranks)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("place", ["logs/rank-00001.log", "recipe.yaml.tmp", "checkpoints"])
def test_a_run_directory_that_cannot_be_written(new, tmp_path, place) -> None:
    if place == "checkpoints":
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / place).write_text("in the way")
    else:
        (tmp_path / "new" / place).mkdir(parents=True)
    require_refused(new, str(tmp_path / "new"), ranks=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_run_directory_that_is_read_only(new, tmp_path) -> None:
    (tmp_path / "new").mkdir(mode=0o500)
    require_refused(new, str(tmp_path / "new"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint_usable(again, run, trained, ranks) -> None:
    before = content(run / "checkpoints")
    results = pretrain(["no_file_above=50000", "--", *again], ranks, script=FAULTS)
    told = refused(results)
    assert "cannot be written" in told
    assert "earlier checkpoints are untouched" in told
    assert content(run / "checkpoints") == before
    pretrain_well([*again], ranks)
    assert len(losses(run)) == 8


# ----- continuing


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.seed=2", ("run.seed=1", "2")),
        ("batch.sequences=16", ("batch.sequences=8", "16")),
        ("model.layers=3", ("model.layers=2", "3")),
        ("run.resume=never", ("run.resume",)),
    ],
)
def test_a_run_is_not_continued_as_another(again, run, setting, says) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, setting], str(run), *says)
    assert content(run / "checkpoints") == before


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data.corpus import prepare
    from data.prepare_config import PrepareConfig, SourceConfig
    from data.synthetic import SyntheticCorpus

    directory = tmp_path_factory.mktemp("other")
    fasta = SyntheticCorpus(8, "demo").write_fasta(directory / "other.fa", 200)
    source = SourceConfig(name="other", path=str(fasta))
    prepare(PrepareConfig(name="other", output=str(directory / "c"), sources=[source], validation_fraction=0.1))
    return directory / "c"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_not_continued_on_another_corpus(again, run, other_corpus, ranks) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, f"data.corpus={other_corpus}"], Corpus.open(other_corpus).fingerprint[:16], ranks=ranks)
    assert content(run / "checkpoints") == before


def test_a_run_is_continued_on_another_corpus_when_that_is_asked_for(again, run, other_corpus) -> None:
    pretrain_well([*again, f"data.corpus={other_corpus}", "data.allow_changed=true"])
    assert last(run).progress.fingerprint == Corpus.open(other_corpus).fingerprint


@pytest.mark.parametrize("missing", [MANIFEST, "recipe.yaml", "*.safetensors"])
def test_a_named_checkpoint_with_a_missing_file(new, run, missing) -> None:
    (path,) = step_path(run, 6).glob(missing)
    path.unlink()
    require_refused([*new, f"run.resume={step_path(run, 6)}"], str(step_path(run, 6)), path.name, ranks=2)


def test_a_named_checkpoint_that_does_not_exist(new, run) -> None:
    require_refused([*new, f"run.resume={run / 'checkpoints' / 'step-7'}"], "step-7")


@pytest.mark.parametrize("missing", [MANIFEST, "recipe.yaml", "*.safetensors"])
def test_the_newest_checkpoint_is_passed_over_when_a_file_is_missing(again, run, trained, missing) -> None:
    (path,) = step_path(run, 6).glob(missing)
    path.unlink()
    ((code, out, err),) = pretrain(again)
    assert code == 0, err
    assert err.count("warning: passing over a checkpoint:") == 1
    assert "at step 4" in out
    assert losses(run)[:6] == losses(trained)
    assert same_bits(_checkpoint(run, 6), _checkpoint(trained, 6))


def _checkpoint(run: Path, step: int):
    from pretrain.checkpoint import Checkpoint

    return Checkpoint(step_path(run, step))


def test_when_every_checkpoint_lacks_a_file_nothing_starts_from_zero(again, run) -> None:
    for step in (2, 4, 6):
        state_file(run, step).unlink()
    require_refused(again, str(run / "checkpoints"), "no checkpoint", ranks=2)
    assert len(steps_on_disk(run / "checkpoints")) == 3


@pytest.mark.parametrize("where", ["header", "weights", "recipe.yaml", MANIFEST])
def test_a_flipped_byte_in_a_named_checkpoint(again, run, where) -> None:
    path = step_path(run, 6) / where if where in ("recipe.yaml", MANIFEST) else state_file(run, 6)
    flip(path, 40 if where == "header" else path.stat().st_size // 2)
    before = content(run / "checkpoints")
    require_refused([*again, f"run.resume={step_path(run, 6)}"], str(path), ranks=2)
    assert content(run / "checkpoints") == before


@pytest.mark.parametrize("damage", ["cut", "empty", "another kind", "another format", "a key less"])
def test_a_damaged_manifest_of_a_checkpoint(new, run, damage) -> None:
    path = step_path(run, 6) / MANIFEST
    whole = path.read_text()
    less = {key: value for key, value in json.loads(whole).items() if key != "shapes"}
    texts = {
        "cut": whole[: len(whole) // 2],
        "empty": "",
        "another kind": "[1, 2]",
        "another format": whole.replace('"format": 2', '"format": 99'),
        "a key less": json.dumps(less),
    }
    path.write_text(texts[damage])
    require_refused([*new, f"run.resume={step_path(run, 6)}"], str(path))


def test_an_older_checkpoint_is_not_continued_over_newer_ones(again, run) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, f"run.resume={step_path(run, 2)}"], "step-00000006", "run.resume=auto")
    assert content(run / "checkpoints") == before


# ----- init_from


def require_no_run(arguments: list[str], tmp_path: Path, *says: str, ranks: int = 1) -> None:
    require_refused(arguments, *says, ranks=ranks, env={"HF_HUB_OFFLINE": "1"})
    assert not (tmp_path / "new" / "checkpoints").exists()
    assert logged_steps(tmp_path / "new") == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_initial_weights_of_another_architecture(new, tmp_path, ranks) -> None:
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(30, 32)}, bert / "model.safetensors")
    require_no_run([*new, f"init_from={bert}"], tmp_path, "bert", ranks=ranks)


def test_initial_weights_of_another_size(new, run, tmp_path) -> None:
    require_no_run([*new, f"init_from={run}", "model.layers=3"], tmp_path, "model.layers", "3")


def test_initial_weights_that_do_not_exist(new, tmp_path) -> None:
    require_no_run([*new, f"init_from={tmp_path / 'nothing'}"], tmp_path, "nothing")


def test_initial_weights_of_a_run_without_checkpoint(new, tmp_path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    require_no_run([*new, f"init_from={tmp_path / 'empty'}"], tmp_path, "empty")


def test_initial_weights_with_a_flipped_byte(new, run, tmp_path) -> None:
    path = state_file(run, 6)
    flip(path, path.stat().st_size // 2)
    require_no_run([*new, f"init_from={run}"], tmp_path, str(path))


class Bomb:
    def __init__(self, touches: Path):
        self.touches = touches

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, (f"touch {self.touches}",)


@pytest.mark.parametrize("saved", ["torch", "pickle", "directory"])
def test_code_in_initial_weights_is_not_executed(new, tmp_path, saved) -> None:
    touched, path = tmp_path / "executed", tmp_path / "weights.pt"
    if saved == "torch":
        torch.save({"model": Bomb(touched)}, path)
    elif saved == "pickle":
        path.write_bytes(pickle.dumps(Bomb(touched)))
    else:
        path = tmp_path / "release"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "rinalmo"}))
        (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(touched)))
    require_no_run([*new, f"init_from={path}"], tmp_path, str(path))
    assert not touched.exists()


# ----- DeepSpeed


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("deepspeed.config.optimizer.type=Adam", ("deepspeed.config.optimizer",)),
        pytest.param("deepspeed.config.gradient_clipping=1", ("optimizer.gradient_clipping",), marks=pytest.mark.slow),
        pytest.param("deepspeed.config.zero_optimization.stage=1", ("deepspeed.zero_stage",), marks=pytest.mark.slow),
        pytest.param(
            "deepspeed.config.zero_optimization.reduce_bucket_size=much",
            ("reduce_bucket_size",),
            marks=pytest.mark.slow,
        ),
        ("deepspeed.config.zero_optimization.bucket=4", ("bucket",)),
        pytest.param("deepspeed.config.zero_optimization=2", ("deepspeed.zero_stage",), marks=pytest.mark.slow),
        ("deepspeed.config.amp.enabled=true", ("AMP",)),
        pytest.param(
            "deepspeed.config.communication_data_type=fp99", ("communication_data_type", "fp99"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_deepspeed_key_that_cannot_be(new, setting, says) -> None:
    require_refused([*new, "deepspeed.zero_stage=2", setting], *says, ranks=2)
