"""What the micro-batches of all objectives share."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

B = TypeVar("B", bound=Any)


class Movable:
    """A dataclass of tensors and other things."""

    def to(self: B, device: torch.device) -> B:
        """The same with its tensors on ``device``; a GPU computes on while they are copied."""
        if device.type == "cpu":
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: x.pin_memory().to(device, non_blocking=True) for name, x in given.items() if torch.is_tensor(x)}
        return replace(self, **moved)
