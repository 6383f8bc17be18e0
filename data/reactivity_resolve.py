"""Second phase: of all profiles of a sequence, one per channel; sequences in the order of their hashes.

The rule (spec RibonanzaNet 7): the profile with the highest signal-to-noise stays. Among equals it is that of the
source that the config lists first, and then the one whose content has the smaller hash, so that the order of rows in a
file, or of files, decides nothing. Channels are paired by sequence, and an id that stands with two sequences in one
source is refused; two ids of one sequence are one sample, under the name that sorts first in the first source.

What results lies in ``folder``: `sequences/` buckets of `data.buckets.ROW` (so that clustering can be done by
`data.clusters`), and per sequence, in hash order, a row of `table` and its profiles in `profiles`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.buckets import ROW as SEQUENCE_ROW
from data.buckets import Bucket, Buckets, BucketWriter, first_of_equals
from data.errors import DataError
from data.profiles import NO_CHANNEL
from data.reactivity_config import ReactivityConfig
from data.records import Tally
from data.row_spill import RowSpill
from data.scan import Progress

_NAMED = np.dtype([("id", "<u8"), ("hi", "<u8"), ("at", "<u8")])
_PLACE_BITS = 40  # as `data.buckets.reading_place`
_TOGETHER = 2048  # sequences whose payloads are fetched together


def table_dtype(channels: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("nucleotides", "<u4"),
            ("source", "<u2"),
            ("library", "<u2"),
            ("snr", "<f4", (channels,)),
            ("start", "<u8"),  # of its profiles: values f16 [L, channels], then errors f16 [L, channels]
        ]
    )


@dataclass
class ErrorCheck:
    """Whether the channels of one sequence have errors of their own (spec RibonanzaNet 3.2)."""

    samples: int = 0  # with an error in any channel
    compared: int = 0  # pairs of channels of one sequence, both with errors
    identical: int = 0

    @property
    def trusted(self) -> bool:
        return bool(self.samples) and 2 * self.identical <= self.compared

    def look(self, errors: npt.NDArray[np.float16]) -> None:
        """[L, channels] errors of one sequence, NaN = none."""
        known = ~np.isnan(errors) & (errors != 0)
        self.samples += bool(known.any())
        for a in range(errors.shape[1]):
            for b in range(a + 1, errors.shape[1]):
                both = known[:, a] & known[:, b]
                if both.any():
                    self.compared += 1
                    self.identical += bool((errors[both, a] == errors[both, b]).all())

    def as_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "pairs_compared": self.compared,
            "pairs_identical": self.identical,
            "trusted": self.trusted,
        }


@dataclass
class Resolved:
    """Distinct sequences: their buckets, how many, and what was seen of the errors."""

    folder: Path
    buckets: Buckets
    count: int
    channels: int
    errors: ErrorCheck = field(default_factory=ErrorCheck)

    def table(self) -> npt.NDArray[np.void]:
        return np.memmap(self.folder / "table", dtype=table_dtype(self.channels), mode="r", shape=(self.count,))

    def profiles(self) -> npt.NDArray[np.float16]:
        """All values and errors end to end, mapped."""
        return np.memmap(self.folder / "profiles", dtype="<f2", mode="r")


def resolve(
    config: ReactivityConfig,
    spilled: Buckets,
    tallies: list[Tally],
    files: list[Path],
    folder: Path,
    progress: Progress,
) -> Resolved:
    """Writes ``folder`` and counts what is dropped here in ``tallies``. Raises DataError for an id of two sequences."""
    (folder / "sequences").mkdir(parents=True)
    writer = BucketWriter(folder / "sequences", spilled.count)
    found = Resolved(folder, Buckets(folder / "sequences", spilled.count, 1), 0, len(config.channels))
    names = RowSpill(folder / "names", _NAMED, sum(tally.records for tally in tallies))
    with open(folder / "table", "wb", buffering=1 << 20) as table, open(folder / "profiles", "wb") as profiles:
        start = 0
        for number in range(spilled.count):
            bucket = _Sorted(spilled.read(number))
            names_of_rows = names_rows(bucket)
            names.add(names_of_rows["id"], names_of_rows)
            for piece, payloads in bucket.sequences():
                sample = _sample(config, bucket, piece, payloads, tallies)
                if sample is None:
                    continue
                sequence, letters, name, row, numbers = sample
                found.errors.look(numbers[len(letters) :])
                row["start"] = start
                start += numbers.size
                table.write(row.tobytes())
                profiles.write(numbers.tobytes())
                writer.add(sequence["hi"], sequence, [letters], [name])
                found.count += 1
            progress("pairing profiles", number + 1, spilled.count)
        if not start:
            profiles.write(bytes(2))  # an empty file cannot be mapped
    writer.flush()
    _refuse_ids_of_two_sequences(names, files)
    return found


class _Sorted:
    """The rows of a bucket by sequence, channel, and inside a channel the one that stays first."""

    def __init__(self, bucket: Bucket) -> None:
        rows = bucket.rows
        self.bucket = bucket
        worse = -np.nan_to_num(rows["snr"], nan=-np.inf).astype(np.float64)
        order = np.lexsort((rows["digest"], rows["source"], worse, rows["channel"], rows["lo"], rows["hi"]))
        self.order, self.rows = order, rows[order]
        self.names = bucket.names(order)
        self._first = first_of_equals(self.rows["hi"], self.rows["lo"])
        channel = self.rows["channel"]
        self.best = self._first | np.concatenate([[True], channel[1:] != channel[:-1]])[: len(channel)]

    def sequences(self) -> Iterator[tuple[slice, dict[int, bytes]]]:
        """The rows of each sequence, and the payload of the best row of each of its channels, by row."""
        starts = np.append(np.flatnonzero(self._first), len(self.rows))
        for first in range(0, len(starts) - 1, _TOGETHER):
            bounds = starts[first : first + _TOGETHER + 1].tolist()
            best = bounds[0] + np.flatnonzero(self.best[bounds[0] : bounds[-1]])
            payloads = dict(zip(best.tolist(), self.bucket.letters(self.order[best]), strict=True))
            for start, stop in itertools.pairwise(bounds):
                yield slice(start, stop), payloads


def _sample(
    config: ReactivityConfig, bucket: _Sorted, piece: slice, payloads: dict[int, bytes], tallies: list[Tally]
) -> tuple[npt.NDArray[np.void], bytes, bytes, npt.NDArray[np.void], npt.NDArray[np.float16]] | None:
    """(row for buckets [1], letters, name, row of the table [1], values then errors [2 L, channels]); None: dropped."""
    rows = bucket.rows[piece]
    channels = rows["channel"]
    kept = np.flatnonzero(bucket.best[piece])
    measured = [i for i in kept.tolist() if channels[i] != NO_CHANNEL]
    if len(measured) < len(kept) and measured:
        kept = np.array(measured)  # a record without a profile adds nothing to one that has some
    if config.unpaired == "drop" and len(measured) < len(config.channels):
        for i in kept.tolist():
            tallies[int(rows["source"][i])].dropped["unpaired"] += 1
        _count_duplicates(rows, kept, tallies)
        return None
    _count_duplicates(rows, kept, tallies)
    length = int(rows["nucleotides"][0])
    numbers = np.full((2 * length, len(config.channels)), np.nan, dtype="<f2")
    row = np.zeros(1, dtype=table_dtype(len(config.channels)))
    row["snr"] = np.nan
    letters = b""
    for i in kept.tolist():
        payload = payloads[piece.start + i]
        letters = payload[:length]
        if channels[i] != NO_CHANNEL:
            numbers[:, channels[i]] = np.frombuffer(payload, dtype="<f2", offset=length)
            row["snr"][0, channels[i]] = rows["snr"][i]
    first = int(kept[0])  # of the first channel measured: its library is the sample's (spec RibonanzaNet 4)
    source, name = min(zip(rows["source"].tolist(), bucket.names[piece], strict=True))
    row["nucleotides"], row["library"], row["source"] = length, rows["library"][first], rows["source"][first]
    sequence = np.zeros(1, dtype=SEQUENCE_ROW)
    for key in ("hi", "lo", "at"):
        sequence[key] = rows[key][first]
    sequence["length"], sequence["source"], sequence["name"] = length, source, len(name)
    return sequence, letters, name, row, numbers


def _count_duplicates(rows: npt.NDArray[np.void], kept: npt.NDArray[np.int64], tallies: list[Tally]) -> None:
    others = np.ones(len(rows), dtype=bool)
    others[kept] = False
    for source in rows["source"][others].tolist():
        tallies[source].dropped["duplicate"] += 1


def names_rows(bucket: _Sorted) -> npt.NDArray[np.void]:
    """Which id stands with which sequence: one row per record, the id being unique to its source."""
    found = np.empty(len(bucket.rows), dtype=_NAMED)
    pairs = zip(bucket.rows["source"].tolist(), bucket.names, strict=True)
    found["id"] = [xxhash.xxh3_64_intdigest(name, seed=source) for source, name in pairs]
    found["hi"], found["at"] = bucket.rows["hi"], bucket.rows["at"]
    return found


def _refuse_ids_of_two_sequences(names: RowSpill, files: list[Path]) -> None:
    for rows in names.parts():
        rows = rows[np.lexsort((rows["at"], rows["hi"], rows["id"]))]
        other = np.flatnonzero((rows["id"][1:] == rows["id"][:-1]) & (rows["hi"][1:] != rows["hi"][:-1]))
        if other.size:
            places = sorted(int(at) for at in rows["at"][other[0] : other[0] + 2])
            told = [f"{files[at >> _PLACE_BITS]}, record {(at & ((1 << _PLACE_BITS) - 1)) + 1}" for at in places]
            raise DataError(f"{told[0]} and {told[1]}: the same id stands with two different sequences; correct one.")
