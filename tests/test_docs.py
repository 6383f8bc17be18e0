"""What the documents name is there: files, tests, keys of recipes, options of commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.keys import page

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "configs").rglob("*.yaml"))
SECTIONS = (
    "run|data|batch|budget|optimizer|schedule|spikes|compute|deepspeed|validation|checkpoint|tracking|model|objective"
)
KEYS = set(re.findall(r"^\| `([\w.]+)`", page(), flags=re.MULTILINE))
NO_KEYS = {"checkpoint.json", "deepspeed.launcher.launch", "deepspeed.launcher.launc"}  # a file, a module, a pattern
KEYS |= {key.rpartition(".")[0] for key in KEYS} | {"model.name", "model.size"}
FILES = {path.name for path in ROOT.rglob("*.py")}
COMMANDS = "".join(
    path.read_text() for path in [*(ROOT / "launch").rglob("*.py"), *(ROOT / "tests").glob("*.py")] if path.is_file()
)


def each(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=each)
def test_files_exist(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(
        r"(?<![\w/.])((?:launch|configs|docs|data|models|pretrain|tests|benchmarks)/[\w./]+\.\w+)", text
    ):
        if path.endswith((".py", ".md", ".yaml", ".sbatch", ".sh", ".example")):
            assert (ROOT / path).exists() or (ROOT / "configs" / path).exists(), path
    for name in re.findall(r"`\**(test_\w+\.py)`", text):
        assert name in FILES, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=each)
def test_keys_exist(document: Path) -> None:
    for key in re.findall(rf"(?<![\w.\-/])((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/]|\.py)", document.read_text()):
        assert key in KEYS | NO_KEYS, key


@pytest.mark.parametrize("document", DOCUMENTS, ids=each)
def test_options_of_our_commands_exist(document: Path) -> None:
    for line in document.read_text().splitlines():
        for command, rest in re.findall(r"(?:launch/)(\w+)\.py((?: [^|`#]*)?)", line):
            if command == "torchrun":
                continue
            for option in re.findall(r"(?<=\s)(--[a-z][a-z_\-]+)", rest):
                assert f'"{option}"' in COMMANDS, (command, option)
