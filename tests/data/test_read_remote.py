"""A small remote file, such as the manifest of a corpus at a url."""

from __future__ import annotations

import logging

import pytest

from data.errors import DataError
from data.transfer import Patience, read_bytes


def test_every_try_in_vain_is_told_before_the_last_one_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two minutes of waiting in silence look like a run that hangs."""
    monkeypatch.setattr(logging.getLogger("rnafoundry"), "propagate", True)
    patience = Patience(tries=3, first_wait=0.001, longest_wait=0.002)
    with pytest.raises(DataError, match="3 tries failed"):
        read_bytes("http://user:secret@127.0.0.1:9/manifest.json", patience)  # the port that throws away
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert all("127.0.0.1:9/manifest.json" in line and "trying again in" in line for line in told)
    assert not any("secret" in line for line in told)
