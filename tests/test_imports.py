"""Who may import whom: packages as docs/design.md lays them, and no library that the licence keeps out."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.ranks import ROOT

PACKAGES = ("data", "models", "pretrain", "launch")


def imported(package: str) -> Iterator[tuple[str, str]]:
    """(file, top-level name) of every import of a package's files, inside functions too."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            yield from ((str(file.relative_to(ROOT)), name.partition(".")[0]) for name in names)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_product_never_imports_multimolecule(package) -> None:
    """It is under AGPL-3.0: tests and benchmarks may. Model cards name it, for whoever loads a release."""
    found = list(imported(package))
    assert found
    assert [file for file, name in found if name == "multimolecule"] == []


@pytest.mark.parametrize(
    ("package", "others"),
    [("data", {"models", "pretrain", "launch"}), ("models", {"data", "pretrain", "launch"}), ("pretrain", {"launch"})],
)
def test_packages_import_downwards(package, others) -> None:
    assert [(file, name) for file, name in imported(package) if name in {*others, "tests", "benchmarks"}] == []
