"""Parsing in processes of their own: the same bytes as in one, errors as sentences, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import scan
from data.corpus import prepare
from data.errors import DataError
from data.workers import ParserPool
from launch.cli import ROOT
from tests.data.corpora import config, content, random_sequences, write_fasta
from tests.data.test_corpus import messy


@pytest.fixture
def always_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_WORTH_A_PROCESS", 0)


def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, always_processes: None) -> None:
    files = [write_fasta(tmp_path / f"{i}.fa", messy(i) * 3, names=f"f{i}_") for i in range(3)]
    expected = None
    for threads in (1, 2, 5):
        output = tmp_path / f"corpus{threads}"
        prepare(config(output, *files, threads=threads, reverse_complement="merge"), buckets=4, chunk_bytes=3000)
        expected = expected or content(output)
        assert content(output) == expected


def test_an_error_of_a_process_is_raised_here(tmp_path: Path, always_processes: None) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(3000, shortest=16))
    with open(fasta, "ab") as file:
        file.write(b">bad\nAC\0GU\n" + b">ok\nACGUACGUACGUACGUACGU\n" * 50_000)
    with pytest.raises(DataError, match=r"x\.fa, record 3001: the sequence holds NUL bytes"):
        prepare(config(tmp_path / "out" / "corpus", fasta, threads=2), chunk_bytes=2000)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_process_that_is_killed_is_an_error(
    tmp_path: Path, always_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(20_000, shortest=16))
    put, killed = ParserPool.put, []

    def killing(self: ParserPool, *arguments) -> None:
        if not killed:
            killed.append(self._processes[0].pid)
            os.kill(self._processes[0].pid, signal.SIGKILL)
        put(self, *arguments)

    monkeypatch.setattr(ParserPool, "put", killing)
    with pytest.raises(DataError, match="a parsing process was killed"):
        prepare(config(tmp_path / "corpus", fasta, threads=2), chunk_bytes=2000)


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_killing_prepare_ends_its_processes(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "x.fa", random_sequences(20_000, shortest=16))
    slow = (
        "import sys, time\n"
        "from data import scan\n"
        "from data.corpus import prepare\n"
        "from data.prepare_config import load_prepare_config\n"
        "scan._WORTH_A_PROCESS = 0\n"
        "def progress(*_):\n    print(flush=True)\n    time.sleep(0.05)\n"
        "config = load_prepare_config(None, ['threads=2'], name='x', output=sys.argv[2],\n"
        "                             sources=[{'name': 'x', 'path': sys.argv[1]}])\n"
        "prepare(config, progress, chunk_bytes=10_000)\n"
    )
    command = [sys.executable, "-c", slow, str(fasta), str(tmp_path / "corpus")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
