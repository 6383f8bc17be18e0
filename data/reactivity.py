"""Reading a corpus of reactivity profiles: any sample by number, as letters, values, errors and signal-to-noise.

`ReactivityCorpus` is one split of a prepared directory. It is a `data.index.Corpus` with profiles: the same numbering,
clusters, checks of every block and staging; `letters` alone can be read too. What a stage trains on is a `view` of it:

    corpus = ReactivityCorpus.open("corpora/ribonanza", "train")
    stage = corpus.view(SampleFilter.of("clean+dirty"))     # has all that an order and the loader ask of a corpus
    stage.profiles(ids)

Samples that a filter takes are known from two small tables per sample (signal-to-noise, library), so no shard is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.index import Corpus, Ids
from data.manifest import SPLITS, read_manifest
from data.reactivity_config import KIND
from data.reactivity_filter import SampleFilter
from data.reactivity_manifest import LIBRARIES, RATIOS
from data.reactivity_shards import PROFILE_BLOCK
from data.reactivity_view import ReactivityView

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Profile:
    """One sample of L nucleotides and C channels. All arrays but ``letters`` are copies: changing them harms nobody."""

    letters: npt.NDArray[np.uint8]  # [L] ASCII, a read-only view
    values: npt.NDArray[np.float32]  # [L, C], NaN = not measured; not clipped
    errors: npt.NDArray[np.float32]  # [L, C], NaN = unknown
    signal_to_noise: npt.NDArray[np.float32]  # [C], NaN = no profile


class ReactivityCorpus(Corpus):
    """One split. Beyond `Corpus`: ``channels`` names in order; ``signal_to_noise`` float32 [count, channels] and

    ``libraries`` uint8 [count] (numbers into ``type_names``), mapped; ``errors_trusted``: whether there are errors,
    and those of different channels differ as they should (spec RibonanzaNet 3.2).
    """

    block_dtype: np.dtype[Any] = PROFILE_BLOCK
    channels: list[str]
    signal_to_noise: npt.NDArray[np.float32]
    libraries: npt.NDArray[np.uint8]
    errors_trusted: bool

    @classmethod
    def open(
        cls, path: str | Path, split: str = "train", shards: Callable[[str], Path] | None = None
    ) -> ReactivityCorpus:
        """Raises DataError if the directory is no intact corpus of profiles or has no such split.

        ``shards`` gives the path of a shard once it is there (`data.staging`).
        """
        return cls(Path(path), split, shards)

    def __init__(self, path: Path, split: str, shards: Callable[[str], Path] | None = None) -> None:
        manifest = read_manifest(path)
        kind = manifest.get("kind", "sequences")
        if kind != KIND:
            raise DataError(
                f"{path}: is a corpus of {kind}, profiles were expected; prepare one with launch/prepare.py reactivity."
            )
        if split in SPLITS and not manifest["splits"][split]["sequences"]:
            raise DataError(f"{path}: the {split} split is empty; prepare the corpus with split.folds of 2 or more.")
        super().__init__(path, split, shards)
        self.channels = list(manifest["channels"])
        self.errors_trusted = bool(manifest["errors"]["trusted"])
        train = manifest["splits"]["train"]["sequences"]
        own = slice(0, train) if split == "train" else slice(train, None)
        self.signal_to_noise = np.load(path / RATIOS, mmap_mode="r", allow_pickle=False)[own]
        self.libraries = np.load(path / LIBRARIES, mmap_mode="r", allow_pickle=False)[own]
        if self.signal_to_noise.shape != (self.count, len(self.channels)) or len(self.libraries) != self.count:
            raise DataError(f"{path}: {RATIOS} or {LIBRARIES} and the manifest count other samples; prepare it again.")
        self._values = self._blocks["react"].astype(np.int64) // 2
        self._errors = self._blocks["err"].astype(np.int64) // 2

    def profiles(self, ids: Ids) -> list[Profile]:
        """Each sample. Raises DataError for a number outside the split or a block that does not match its checksum."""
        block, local = self._locate(ids)
        at, channels = (self._off[block] + local).tolist(), len(self.channels)
        places = zip(
            np.asarray(ids, dtype=np.int64).tolist(),
            self._shard[block].tolist(),
            at,
            self._tok[block].tolist(),
            self._values[block].tolist(),
            self._errors[block].tolist(),
            strict=True,
        )
        found = []
        for number, shard, i, tok, values, errors in places:
            start, stop = self._words[shard][i], self._words[shard][i + 1]
            letters, halves = self._bytes[shard], self._bytes[shard].view("<f2")
            rows = slice(start * channels, stop * channels)
            found.append(
                Profile(
                    letters[tok + start : tok + stop],
                    halves[values + rows.start : values + rows.stop].astype(np.float32).reshape(-1, channels),
                    halves[errors + rows.start : errors + rows.stop].astype(np.float32).reshape(-1, channels),
                    np.array(self.signal_to_noise[number]),
                )
            )
        return found

    def select(self, chosen: SampleFilter) -> I64:
        """The samples that a filter takes, int64, ascending."""
        takes = chosen.takes(self.signal_to_noise, np.asarray(self.lengths), self.libraries, self.type_names)
        return np.flatnonzero(takes)

    def view(self, chosen: SampleFilter) -> ReactivityView:
        """The samples that a filter takes as a corpus of their own, numbered from 0. Raises DataError if none is."""
        ids = self.select(chosen)
        if not len(ids):
            raise DataError(
                f"{self.path}: the filter of {' and '.join(chosen.classes)} samples takes none of the {self.count} of "
                f"the {self.split} split; choose other classes or limits."
            )
        return ReactivityView(self, ids, chosen.key)

    def require_errors(self) -> None:
        """For a recipe that weights by errors, or draws noise from them. Raises DataError where they are wrong."""
        told = self.manifest["errors"]
        if not told["samples"]:
            raise DataError(f"{self.path}: no sample has an error; use signal-to-noise instead of errors.")
        if not self.errors_trusted:
            raise DataError(
                f"{self.path}: the error columns of different channels are identical in {told['pairs_identical']} of "
                f"{told['pairs_compared']} samples, so they belong to one channel only, a known defect of released "
                "files; use signal-to-noise instead of errors, or get files in which this is mended."
            )
