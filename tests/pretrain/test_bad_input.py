"""Every mistake ends all ranks with one sentence and exit code 2, and leaves what was there as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.index import Corpus
from data.order import Order
from tests.pretrain.bad_input import flip, require_refused
from tests.ranks import ROOT, last, logged_steps

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_directory_that_cannot_be_made(new, tmp_path, ranks) -> None:
    (tmp_path / "file").write_text("in the way")
    require_refused([*new, f"run.directory={tmp_path / 'file'}"], str(tmp_path / "file"), "run.directory", ranks=ranks)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
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
