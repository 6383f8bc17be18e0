"""A launcher that was killed is missed by the processes below it, at whatever moment it went."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT

RANK = """
import sys
sys.path.insert(0, {root!r})
from pretrain.signals import StopRequest, end_when_asked
end_when_asked()
{before}
stop = StopRequest()
{after}
print(stop.requested(), stop.reason, flush=True)
"""
WAIT = "print('ready', flush=True); sys.stdin.readline()"
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.parametrize("moment", ["while it imports", "in training", "never"])
def test_it_is_missed_whenever_it_went(tmp_path: Path, moment: str) -> None:
    rank, launcher = tmp_path / "rank.py", tmp_path / "torchrun"
    early = moment == "while it imports"
    rank.write_text(RANK.format(root=str(ROOT), before=WAIT if early else "", after="" if early else WAIT))
    launcher.write_text(LAUNCH)
    started = subprocess.Popen(
        [sys.executable, str(launcher), str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    if moment != "never":
        started.kill()
        started.wait(60)
    started.stdin.write("go on\n")
    started.stdin.flush()
    expected = "False None" if moment == "never" else "True the launcher is gone"
    assert started.stdout.read().strip() == expected
    started.stdin.close()
    started.wait(60)
