"""What tests of mistakes share: damage, and what must be true of every refusal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.ranks import logged_steps, pretrain, refused


class Bomb:
    """Whoever unpickles one touches a file."""

    def __init__(self, touches: Path):
        self.touches = touches

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, (f"touch {self.touches}",)


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


def require_no_run(arguments: list[str], tmp_path: Path, *says: str, ranks: int = 1) -> None:
    require_refused(arguments, *says, ranks=ranks, env={"HF_HUB_OFFLINE": "1"})
    assert not (tmp_path / "new" / "checkpoints").exists()
    assert logged_steps(tmp_path / "new") == 0
