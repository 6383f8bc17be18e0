"""One chemical mapping profile as every reader gives it, and which channel it belongs to.

A profile is what was measured on one RNA with one reagent: a value per nucleotide, NaN where nothing was measured.
Channels have names; which is which is never told by an order, which differs between files of one data set
(spec RibonanzaNet 3.1, 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
NO_CHANNEL = 255  # of a record that has a sequence and no profile
_WORDS = re.compile(r"[0-9A-Za-z]+")


def _nothing() -> F32:
    return np.empty(0, dtype=np.float32)


@dataclass
class ProfileRecord:
    """One record of a file. ``record`` counts from 1 and, with ``line``, is for messages.

    ``letters`` as they stand in the file, or None where the file names only an id. ``experiment``: the reagent as the
    file spells it, "" for a record without a profile. ``values``, ``errors`` [<= L, or more where a file is padded]
    float32, NaN = not measured. ``signal_to_noise`` NaN where the file does not tell.
    """

    record: int
    line: int
    name: str
    letters: bytes | None
    experiment: str = ""
    dataset: str = ""
    signal_to_noise: float = float("nan")
    reads: float = float("nan")
    values: F32 = field(default_factory=_nothing)
    errors: F32 = field(default_factory=_nothing)
    problem: str = ""  # a reason to drop it that only the reader can know
    past_end: int = 0  # values that the file gives for positions outside the sequence, already left out


def channel_of(experiment: str, channels: Sequence[str], aliases: Mapping[str, str]) -> int:
    """The number of the channel that an experiment belongs to, NO_CHANNEL if none.

    ``aliases`` (experiment -> channel) come first, then the channel of that name, without regard to case. Else it is
    the one channel whose name is a word of the experiment: data sets write `2A3_MaP` and `2A3` (spec RibonanzaNet 3.4).
    """
    known = {channel.lower(): channel for channel in channels}
    known |= {alias.lower(): channel for alias, channel in aliases.items()}
    if experiment.lower() in known:
        return list(channels).index(known[experiment.lower()])
    words = {word.lower() for word in _WORDS.findall(experiment)}
    found = [number for number, channel in enumerate(channels) if channel.lower() in words]
    return found[0] if len(found) == 1 else NO_CHANNEL


def library_of(dataset: str, channels: Sequence[str]) -> str:
    """A dataset's name without its reagent, so that both profiles of a sequence name one library.

    `PK50_Wu_Twist_2A3` and `PK50_Wu_Twist_DMS` become `PK50_Wu_Twist_NULL` (spec RibonanzaNet 4, the strata).
    """
    for channel in channels:
        dataset = dataset.replace(channel, "NULL")
    return dataset
