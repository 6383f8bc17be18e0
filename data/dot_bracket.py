"""Secondary structure as text, in Stockholm's and in everyone's notation: which columns pair, and how it is cut down.

`()`, `<>`, `[]` and `{}` are pairs, and so are a capital letter and its small one (pseudoknots); every other character
is unpaired. Each kind nests by itself, which reads both Rfam's WUSS, where brackets of several kinds enclose each
other, and plain dot-bracket, where they cross.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_OPEN = "(<[{ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CLOSE = ")>]}abcdefghijklmnopqrstuvwxyz"
_OPENER = dict(zip(_CLOSE, _OPEN, strict=True))


def partners(structure: str) -> npt.NDArray[np.int64]:
    """int64 [columns]: the column that each one pairs with, or -1. Raises ValueError for an unbalanced bracket."""
    found = np.full(len(structure), -1, dtype=np.int64)
    waiting: dict[str, list[int]] = {opener: [] for opener in _OPEN}
    for column, character in enumerate(structure):
        if character in waiting:
            waiting[character].append(column)
        elif character in _OPENER:
            if not waiting[_OPENER[character]]:
                raise ValueError(f"{character!r} in column {column + 1} closes nothing")
            opened = waiting[_OPENER[character]].pop()
            found[opened], found[column] = column, opened
    for character, columns in waiting.items():
        if columns:
            raise ValueError(f"{character!r} in column {columns[-1] + 1} is never closed")
    return found


def restricted(structure: str, kept: npt.NDArray[np.integer]) -> str:
    """The structure over the columns ``kept`` (ascending): pairs that lost a column are unpaired, and all that is
    unpaired is `.`. Raises ValueError as `partners` does.
    """
    partner = partners(structure)
    stays = np.zeros(len(structure) + 1, dtype=bool)  # the last one stands for no partner, -1
    stays[kept] = True
    return "".join(structure[column] if stays[partner[column]] else "." for column in kept.tolist())
