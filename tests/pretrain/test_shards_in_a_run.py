"""Shards that change under a running training: it ends with a sentence that names the shard, or does not notice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pretrain import faults, five_models
from tests.ranks import finish, last, logged_steps, pretrain_well, records, refused, start, wait_for

FAULTS = Path(faults.__file__)


def cut(shard: Path) -> None:
    os.truncate(shard, 512)


def overwrite(shard: Path) -> None:
    """In place, as `cp` does."""
    content = bytearray(shard.read_bytes())
    for place in range(512, len(content), 64):
        content[place] ^= 1
    with shard.open("r+b") as file:
        file.write(content)


def copy_again(shard: Path) -> None:
    """The same content; what is read meanwhile may be torn, but not what is read afterwards."""
    content = shard.read_bytes()
    with shard.open("r+b") as file:
        file.write(content)


def replace(shard: Path) -> None:
    """As preparing the corpus anew does: what is mapped stays."""
    shutil.copy(shard, shard.with_suffix(".new"))
    overwrite(shard.with_suffix(".new"))
    shard.with_suffix(".new").rename(shard)


def remove(shard: Path) -> None:
    shard.unlink()


@pytest.fixture(scope="module")
def corpora(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return five_models.corpora(tmp_path_factory.mktemp("corpora"), synthetic_corpus)


@pytest.fixture
def training(corpora, tmp_path) -> Callable[[str], tuple[list, list[str], list[Path]]]:
    """(ranks in the midst of training, the command, the shards of its corpus)."""

    def begin(model: str) -> tuple[list, list[str], list[Path]]:
        kind, _ = five_models.SETTINGS[model]
        copy = Path(shutil.copytree(corpora[kind], tmp_path / "corpus"))
        arguments = five_models.settings(model, {**corpora, kind: copy})
        arguments += [f"run.directory={tmp_path}", "run.name=run", "budget.steps=60", "checkpoint.every_steps=2"]
        ranks = start(["slow_steps=0.05", "--", *arguments], 2, script=FAULTS)
        wait_for(lambda: logged_steps(tmp_path / "run") >= 4, timeout=120)
        return ranks, arguments, sorted(copy.rglob("*.tar"))

    return begin


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("rinalmo", cut),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("rnamsm", cut), ("ribonanzanet", overwrite)]),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in [("rinalmo", overwrite), ("rnamsm", overwrite), ("ribonanzanet", cut)]
        ),
    ],
)
def test_a_shard_that_changes_ends_the_run_with_a_sentence(training, tmp_path, model, change) -> None:
    ranks, _, shards = training(model)
    for shard in shards:
        change(shard)
    told = refused(finish(ranks))
    assert any(str(shard) in told for shard in shards)
    run = tmp_path / "run"
    last(run).verify()
    assert last(run).progress.step >= 4
    assert f"ended: {told.removeprefix('error: ')}" in "".join(log.read_text() for log in run.glob("logs/*.log"))


@pytest.mark.soak
@pytest.mark.parametrize("change", [replace, remove, copy_again])
@pytest.mark.parametrize("model", ["rinalmo", "rnamsm"])
def test_a_shard_whose_content_stays_reachable_does_not(training, tmp_path, corpora, model, change) -> None:
    ranks, arguments, shards = training(model)
    for shard in shards:
        change(shard)
    results = finish(ranks)
    assert [code for code, _, _ in results] == [0, 0], results
    kind, _ = five_models.SETTINGS[model]
    pretrain_well([*arguments, f"data.corpus={corpora[kind]}", "run.name=plain"], 2)
    plain, changed = (records(tmp_path / name) for name in ("plain", "run"))
    assert [record["loss"] for record in changed] == [record["loss"] for record in plain]
