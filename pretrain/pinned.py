"""Memory of the host that is pinned, so that a GPU copies to it at full speed, cut from large blocks.

torch pins a power of two of bytes for every tensor: the tensors of a state one by one would take up to twice their
size, and each a call that lasts longer than its copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**26  # numbers of four bytes; a power of two too


class PinnedMemory:
    """fp32 tensors by name, ``expected`` numbers in all. ``pin`` is False in tests alone."""

    def __init__(self, expected: int, pin: bool = True) -> None:
        self._block, self._pin = min(BLOCK, 1 << max(expected - 1, 0).bit_length()), pin
        self._named: dict[str, Tensor] = {}
        self._free = torch.empty(0)

    def room(self, name: str, n: int) -> Tensor:
        """[n], the same memory for a name each time; it holds what was last written there."""
        if name not in self._named:
            if n > len(self._free):
                self._free = torch.empty(max(self._block, n), dtype=torch.float32, pin_memory=self._pin)
            self._named[name], self._free = self._free[:n], self._free[n:]
        return self._named[name]
