"""Shards of profiles: blocks as those of sequences, with four more members each.

    000123-00007.channels.npy  S [channels]              their names, in order: a shard tells them without its manifest
    000123-00007.err.npy       f16 [letters, channels]  errors, NaN = unknown
    000123-00007.react.npy     f16 [letters, channels]  values, NaN = not measured
    000123-00007.snr.npy       f32 [n, channels]        signal-to-noise, NaN = no profile

A sample takes the rows [off[i], off[i + 1]) of values and errors, as its letters do in tok. `type` is the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.shards import ShardWriter, block_dtype, npy

MORE = ("react", "err", "snr")
PROFILE_BLOCK = block_dtype(MORE)


class ProfileShardWriter(ShardWriter):
    """Writes one split. `add_profiles` in corpus order, then `close`."""

    more = MORE

    def __init__(self, folder: Path, split: str, shard_bytes: int, channels: Sequence[str]) -> None:
        super().__init__(folder, split, shard_bytes)
        self._channels = npy(np.array([name.encode() for name in channels], dtype="S"))
        self._values: list[npt.NDArray[np.float16]] = []
        self._errors: list[npt.NDArray[np.float16]] = []
        self._ratios = np.empty((0, len(channels)), dtype=np.float32)

    def add_profiles(
        self,
        letters: list[bytes],
        names: list[bytes],
        types: npt.NDArray[np.uint8],
        values: list[npt.NDArray[np.float16]],
        errors: list[npt.NDArray[np.float16]],
        signal_to_noise: npt.NDArray[np.float32],
        starts: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """As `add`, with values and errors [L, channels] of each sequence and signal-to-noise [n, channels]."""
        self._values += values
        self._errors += errors
        self._ratios = np.concatenate([self._ratios, signal_to_noise])
        self.add(letters, names, types, starts)

    def write_block(
        self,
        letters: list[bytes],
        names: list[bytes],
        types: npt.NDArray[np.uint8],
        values: list[npt.NDArray[np.float16]],
        errors: list[npt.NDArray[np.float16]],
        signal_to_noise: npt.NDArray[np.float32],
        starts: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """As `add_profiles`, but these samples are a block, whatever their number: for a copy of another corpus."""
        self._letters, self._names, self._types = letters, names, types
        self._values, self._errors, self._ratios = values, errors, signal_to_noise
        self._clustered |= starts is not None
        self._starts = np.ones(len(letters), dtype=bool) if starts is None else starts
        self._write_block(0, len(letters), np.cumsum([len(sequence) for sequence in letters]))
        self._letters, self._names, self._types = [], [], types[:0]
        self._values, self._errors, self._ratios = [], [], signal_to_noise[:0]
        self._starts = self._starts[:0]

    def end_shard(self) -> None:
        """The next block begins a new shard."""
        self._finish_shard()

    def more_members(self, start: int, stop: int) -> dict[str, bytes]:
        return {
            "channels.npy": self._channels,
            "react.npy": npy(np.concatenate(self._values[start:stop]).astype("<f2")),
            "err.npy": npy(np.concatenate(self._errors[start:stop]).astype("<f2")),
            "snr.npy": npy(self._ratios[start:stop].astype("<f4")),
        }

    def forget(self, stop: int) -> None:
        self._values, self._errors, self._ratios = self._values[stop:], self._errors[stop:], self._ratios[stop:]
