"""The samples of a corpus that a filter takes, seen as a corpus: what a training stage is given.

Samples are numbered through in the order of the corpus, and blocks and clusters are those of the corpus less what was
left out. So `data.order` builds the order of a view as it builds any other: step s is a pure function of (view, seed,
step), found at once, and nothing is stored. The fingerprint is that of corpus and filter, so a run refuses to resume
with another filter. Memory: 12 bytes per sample.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data.errors import DataError

if TYPE_CHECKING:
    from data.index import Ids
    from data.reactivity import Profile, ReactivityCorpus

I64 = npt.NDArray[np.int64]


class ReactivityView:
    """Has the attributes of `data.index.Corpus` and `data.reactivity.ReactivityCorpus` that training uses."""

    def __init__(self, corpus: ReactivityCorpus, ids: I64, key: str) -> None:
        """``ids`` of the corpus, ascending, at least one; ``key`` identifies the filter."""
        self.corpus = corpus
        self._ids = ids
        self.path: Path = corpus.path
        self.manifest: dict[str, Any] = corpus.manifest
        self.split = corpus.split
        self.channels = corpus.channels
        self.type_names = corpus.type_names
        self.errors_trusted = corpus.errors_trusted
        self.count = len(ids)
        self.fingerprint = hashlib.sha256(f"{corpus.fingerprint} {key}".encode()).hexdigest()
        self.lengths: npt.NDArray[np.uint32] = np.asarray(corpus.lengths)[ids]
        ends = np.cumsum(corpus.block_counts)
        counts = np.bincount(np.searchsorted(ends, ids, side="right"), minlength=len(ends))
        self.block_counts: I64 = counts[counts > 0].astype(np.int64)
        self.clusters: I64 | None = None
        if corpus.clusters is not None:
            cluster = np.searchsorted(corpus.clusters, ids, side="right")
            starts = np.flatnonzero(np.concatenate([[True], cluster[1:] != cluster[:-1]]))
            self.clusters = np.append(starts, self.count)

    @property
    def signal_to_noise(self) -> npt.NDArray[np.float32]:
        """[count, channels]"""
        return self.corpus.signal_to_noise[self._ids]

    @property
    def libraries(self) -> npt.NDArray[np.uint8]:
        """[count] numbers into ``type_names``"""
        return self.corpus.libraries[self._ids]

    def corpus_ids(self, ids: Ids) -> I64:
        """The numbers of samples of the view in the whole corpus: what staging goes by."""
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
            bad = wanted[(wanted < 0) | (wanted >= self.count)][0]
            raise DataError(f"{self.path}: sample {bad} is not among the {self.count} that the filter takes.")
        return self._ids[wanted]

    def letters(self, ids: Ids) -> list[npt.NDArray[np.uint8]]:
        return self.corpus.letters(self.corpus_ids(ids))

    def profiles(self, ids: Ids) -> list[Profile]:
        return self.corpus.profiles(self.corpus_ids(ids))

    def types(self, ids: Ids) -> npt.NDArray[np.uint8]:
        return self.corpus.types(self.corpus_ids(ids))

    def accessions(self, ids: Ids) -> list[str]:
        return self.corpus.accessions(self.corpus_ids(ids))

    def require_errors(self) -> None:
        self.corpus.require_errors()

    def close(self) -> None:
        self.corpus.close()
