"""Pinned memory: what is cut from it, how much it takes, and that checkpoints can be written out of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain import pinned
from pretrain.pinned import PinnedMemory


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of each block."""
    blocks: list[int] = []
    plain = torch.empty

    def empty(n: int, **options: object) -> torch.Tensor:
        blocks.append(n)
        return plain(n, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(pinned, "BLOCK", 64)
    return blocks


@pytest.mark.parametrize(("sizes", "blocks"), [((3, 5, 1), [16]), ((40, 20, 40, 3), [64, 64]), ((100, 7), [100, 64])])
def test_tensors_share_blocks_of_no_more_than_they_need(sizes, blocks, taken, tmp_path) -> None:
    memory = PinnedMemory(sum(sizes), pin=False)
    del taken[:]
    for _ in range(2):  # the second time nothing new is taken
        rooms = {str(i): memory.room(str(i), n).fill_(i) for i, n in enumerate(sizes)}
    assert taken == blocks
    save_file(rooms, tmp_path / "state.safetensors")
    found = load_file(tmp_path / "state.safetensors")
    assert {name: values.tolist() for name, values in found.items()} == {
        str(i): [float(i)] * n for i, n in enumerate(sizes)
    }
