"""What many tests share: small corpora, made once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch loads OpenMP: spinning threads of many test processes would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real RNA data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the real test data is not here: ../shared/data does not exist")
    return SHARED


@pytest.fixture(scope="session")
def synthetic_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 1,500 synthetic sequences, a tenth of them held out."""
    from data.corpus import prepare
    from data.prepare_config import PrepareConfig, SourceConfig
    from data.synthetic import SyntheticCorpus

    directory = tmp_path_factory.mktemp("synthetic")
    fasta = SyntheticCorpus(7, "demo").write_fasta(directory / "synthetic.fa", 1500)
    config = PrepareConfig(
        name="synthetic",
        output=str(directory / "corpus"),
        sources=[SourceConfig(name="synthetic", path=str(fasta))],
        validation_fraction=0.1,
    )
    prepare(config)
    return directory / "corpus"


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    """Commands run in this process may choose another library for fp32 products (pretrain/products.py)."""
    import torch

    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    yield
    matmul.fp32_precision = before


# Files with few tests that take minutes: first, so that no process works on one alone at the end.
LONGEST = ("test_rnaernie_run.py", "test_rnamsm_runs.py", "test_readme.py", "test_resume.py", "test_matrix.py")
LONGEST += ("test_real_three_stages.py", "test_three_stages.py", "test_ranger_ranks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*LONGEST, item.path.name].index(item.path.name))


REPORTS = {  # property of a test -> title and head of the table that its values are the rows of
    "matrix": ("saved in one cell, continued in another", "| model | saved by | continued by | max dloss | ok |"),
    "soak": ("kills", "| run | figure | |"),
}


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the rows that soak tests recorded; properties also come back from the processes of pytest-xdist."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for name, (title, head) in REPORTS.items():
        rows = [
            row for report in reports if report.when == "call" for key, row in report.user_properties if key == name
        ]
        if rows:
            terminalreporter.section(title)
            terminalreporter.write_line(head)
            terminalreporter.write_line("|---" * (head.count("|") - 1) + "|")
            for row in rows:
                terminalreporter.write_line(str(row))
