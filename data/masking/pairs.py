"""The partners of nucleotides within the window of a sequence that is read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data import dot_bracket
from data.errors import DataError


def partners(structure: bytes, start: int, length: int) -> npt.NDArray[np.int64]:
    """[length] the partner of each nucleotide from ``start`` on, counted from there; -1 for none in the window.

    ``structure`` is the dot-bracket of the whole sequence. Raises DataError if its brackets do not match.
    """
    try:
        whole = dot_bracket.partners(structure.decode("latin-1"))
    except ValueError as error:
        raise DataError(
            f"a structure of the corpus cannot be read ({error}); correct its source and prepare it again."
        ) from error
    if len(whole) < start + length:
        raise DataError(
            f"a structure of the corpus has {len(whole)} characters, but its sequence has at least {start + length} "
            "nucleotides; correct its source and prepare it again."
        )
    cut = whole[start : start + length] - start
    return np.where((cut >= 0) & (cut < length), cut, -1)
