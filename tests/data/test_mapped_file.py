"""A shard that changes after it was read once: what can be told is told, and what is harmless passes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.alignments import AlignmentCorpus
from data.errors import DataError
from data.index import Corpus
from tests.synthetic_alignments import synthetic_alignments

Read = Callable[[], bytes]


@pytest.fixture(scope="module")
def alignments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_alignments(tmp_path_factory.mktemp("alignments"), families=8)


@pytest.fixture(params=["sequences", "alignments"])
def opened(request, synthetic_corpus: Path, alignments: Path, tmp_path: Path) -> tuple[Read, Path]:
    """(reads all of the training split as bytes; it was read once, its first shard)."""
    source = synthetic_corpus if request.param == "sequences" else alignments
    copy = Path(shutil.copytree(source, tmp_path / "corpus"))
    if request.param == "sequences":
        corpus = Corpus.open(copy)
        read = lambda: b"".join(view.tobytes() for view in corpus.letters(list(range(corpus.count))))  # noqa: E731
    else:
        rows = AlignmentCorpus.open(copy)
        read = lambda: b"".join(one.rows(range(one.depth)).tobytes() for one in rows.alignments(range(rows.count)))  # noqa: E731
    assert len(read()) > 1000
    return read, min(copy.rglob("*train*.tar"))


def test_a_shard_that_was_cut_is_told_and_does_not_crash(opened) -> None:
    read, shard = opened
    os.truncate(shard, 512)
    with pytest.raises(DataError, match=rf"{shard}: has 512 bytes, but had \d+ when reading began"):
        read()


def test_a_shard_that_was_written_to_is_checked_again(opened) -> None:
    read, shard = opened
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    with shard.open("r+b") as file:
        file.write(content)
    with pytest.raises(DataError, match=str(shard)):
        read()


@pytest.mark.parametrize("change", ["touched", "written again", "replaced", "removed"])
def test_what_leaves_the_content_as_it_was_is_no_error(opened, change) -> None:
    read, shard = opened
    before, content = read(), shard.read_bytes()
    if change == "touched":
        os.utime(shard, (1, 1))
    elif change == "written again":
        with shard.open("r+b") as file:
            file.write(content)
    elif change == "replaced":
        shard.with_suffix(".new").write_bytes(content[:-512])
        shard.with_suffix(".new").rename(shard)
    else:
        shard.unlink()
    assert read() == before
