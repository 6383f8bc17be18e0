"""RibonanzaNet's procedure by our commands alone, with kills: what its tests on made-up and on real profiles share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.pretrain import faults
from tests.ranks import ROOT, pretrain, pretrain_well

FAULTS = Path(faults.__file__)
EVALUATE, PREPARE = (ROOT / "launch" / name for name in ("evaluate.py", "prepare.py"))
# Predicts a block, says so, and waits to be killed.
HANGING = """
import sys, time
from pathlib import Path
from data.reactivity_filter import SampleFilter
from pretrain.evaluate import write_predictions
def progress(*_):
    print(flush=True)
    time.sleep(600)
*runs, corpus, to = map(Path, sys.argv[1:])
write_predictions(runs, corpus, to, chosen=SampleFilter.of("noisy"), progress=progress)
"""


def command(script: Path, *arguments: object) -> str:
    """What the command printed."""
    ((code, out, err),) = pretrain([str(argument) for argument in arguments], script=script)
    assert code == 0, err
    return out


def written(recipe: dict[str, Any], name: str, folder: Path, steps: tuple[int, int], pseudo: Path) -> Path:
    """``recipe`` with the stages of a shipped one, shortened to ``steps``, and pseudo-labels from ``pseudo``."""
    shipped, measured = OmegaConf.load(ROOT / "configs" / f"{name}.yaml"), recipe["data"]["corpus"]
    content = {**recipe, "budget": {}, "stages": OmegaConf.to_container(shipped.stages)}
    content["objective"] = {**recipe["objective"], "samples": OmegaConf.to_container(shipped.objective.samples)}
    for stage, count in zip(content["stages"].values(), steps, strict=True):
        stage["budget"] = {"steps": count}
        stage.pop("validation", None)
        if "decay_epochs" in stage.get("schedule", {}):
            stage["schedule"] = {"name": "cosine", "decay_steps": count + max(count // 10, 1)}
        if "data" in stage:
            stage["data"] = {"corpus": str(pseudo), "validation": measured}
    path = folder / f"{name}.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


def killed(config: Path, name: str, kills: list[int]) -> Path:
    """A run on two ranks that is killed while the steps ``kills`` are saved, and continued each time."""
    arguments = ["--config", str(config), f"run.name={name}"]
    for step in kills:
        results = pretrain([f"kill_in_save=0:{step}:before-rename", "--", *arguments], ranks=2, script=FAULTS)
        assert any(code for code, _, _ in results), results
    pretrain_well(arguments, ranks=2)
    return Path(OmegaConf.load(config).run.directory) / name


def whole(config: Path, name: str) -> Path:
    """The same run without a kill."""
    pretrain_well(["--config", str(config), f"run.name={name}"], ranks=2)
    return Path(OmegaConf.load(config).run.directory) / name


def kill_predicting(runs: list[Path], corpus: Path, to: Path) -> None:
    """Begin to predict, and die by SIGKILL after the first block; only what a restart clears away is left."""
    line = [sys.executable, "-c", HANGING, *map(str, [*runs, corpus, to])]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    assert not to.exists()
    assert (to.parent / f".{to.name}.partial").exists()


def figures(line: str) -> dict[str, float]:
    """`name: loss 0.2  loss_2A3 0.3 ...` as launch/evaluate.py prints it."""
    words = line.partition(": ")[2].split()
    return {key: float(value.replace(",", "")) for key, value in zip(words[::2], words[1::2], strict=True)}
