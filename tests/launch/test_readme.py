"""The README's commands run, in order, as a newcomer would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    assert (tmp_path / "runs/my-run/checkpoints/step-00000024/checkpoint.json").is_file()
    assert (tmp_path / "runs/my-run/report.html").is_file()
    for run in ("my-msa", "my-profiles"):
        assert (tmp_path / f"runs/{run}/metrics.jsonl").is_file()
    pytest.importorskip("multimolecule")
    (snippet,) = blocks("python")
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_path_in_the_readme_exists() -> None:
    for path in re.findall(r"`((?:docs|benchmarks|configs|launch)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    for recipe in re.findall(r"`(\w+\.yaml)`", README):
        assert (ROOT / "configs" / recipe).exists() or recipe == "recipe.yaml", recipe
