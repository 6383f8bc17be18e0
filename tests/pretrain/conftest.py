"""A small run, and the arguments of a new one and of its continuation, for tests of what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ranks import QUICK, pretrain_well


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
