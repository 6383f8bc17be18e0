"""First phase of preparing profiles: every source file -> normalised profiles in hash-range buckets, and a tally.

A profile becomes a fixed-size row and a payload: letters (L bytes), values (L half floats), errors (L half floats).
Which of several profiles of one sequence and channel stays is decided later (`data.reactivity_resolve`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data.buckets import BucketWriter, reading_place
from data.errors import DataError
from data.formats import openvaccine, rdat, reactivity_table
from data.manifest import file_sha256
from data.normalise import DROPPED, KEPT, LetterPolicy, Normaliser
from data.profiles import NO_CHANNEL, ProfileRecord, channel_of, library_of
from data.reactivity_config import ReactivityConfig, ReactivitySource
from data.records import LONGEST, Tally, digests
from data.scan import Progress, SourceTally
from data.sequence_lookup import SequenceLookup
from data.source_files import is_named

ROW = np.dtype(
    [
        ("hi", "<u8"),  # 128-bit hash of the letters
        ("lo", "<u8"),
        ("at", "<u8"),  # when it was read, for messages
        ("digest", "<u8"),  # of the payload: decides between equals, whatever the order of rows
        ("length", "<u4"),  # bytes of the payload
        ("nucleotides", "<u4"),
        ("snr", "<f4"),  # signal-to-noise, NaN = unknown
        ("source", "<u2"),
        ("library", "<u2"),  # number in the order of first appearance
        ("name", "u1"),  # bytes of the name
        ("channel", "u1"),  # NO_CHANNEL: a sequence without a profile
    ]
)
LARGEST = float(np.finfo(np.float16).max)
DROP_REASONS = (
    "empty",
    "no_sequence",  # neither in the file nor in the table of sequences
    "gaps_inside",  # removing them would move the values
    "other_letters",
    "ambiguity",
    "too_short",
    "too_long",
    "dataset",  # left out by drop_datasets
    "no_experiment",
    "other_experiment",  # of no channel
    "other_molecule",  # RDAT: the sequence of the row is not what was probed
    "out_of_range",  # infinite, or beyond half precision
    "duplicate",  # another profile of the sequence and channel has the higher signal-to-noise
    "unpaired",  # unpaired: drop
)
CHANGES = ("values_past_the_end", "negative_errors", "errors_without_value", "errors_too_large", "names_cut")
MOST_LIBRARIES = 255  # the number of a sample's library is one byte
_BATCH = 512
_NAME_BYTES = 255


def read_records(path: Path) -> Iterator[ProfileRecord]:
    """The records of a file of any known format, told by its suffix."""
    if is_named(path, reactivity_table.SUFFIXES):
        return reactivity_table.read_table(path)
    return rdat.read_rdat(path) if is_named(path, rdat.SUFFIXES) else openvaccine.read_openvaccine(path)


def scan(
    config: ReactivityConfig, files: list[list[Path]], spill: Path, buckets: int, progress: Progress
) -> tuple[list[SourceTally], list[str], list[Path]]:
    """Reads all files into ``buckets`` buckets in ``spill``: (tally per source, libraries by number, files by number).

    Raises DataError.
    """
    total = sum(path.stat().st_size for paths in files for path in paths)
    writer = BucketWriter(spill, buckets)
    libraries: dict[str, int] = {}
    tallies: list[SourceTally] = []
    every: list[Path] = []
    done = 0
    for number, (source, paths) in enumerate(zip(config.sources, files, strict=True)):
        lookup = SequenceLookup(Path(source.sequences), spill / f"lookup-{number}") if source.sequences else None
        reader = _SourceReader(config, number, source, lookup, libraries)
        found = SourceTally(source.name, tally=reader.tally)
        for path in paths:
            progress(f"reading {source.name}", done, total)
            for part in reader.read(path, len(every)):
                writer.add(*part)
            size = path.stat().st_size
            found.files.append({"name": path.name, "bytes": size, "sha256": file_sha256(path)})
            every.append(path)
            done += size
        progress(f"reading {source.name}", done, total)
        tallies.append(found)
    writer.flush()
    return tallies, list(libraries), every


class _SourceReader:
    """Applies the rules of a config to the records of one source."""

    def __init__(
        self,
        config: ReactivityConfig,
        number: int,
        source: ReactivitySource,
        lookup: SequenceLookup | None,
        libraries: dict[str, int],
    ) -> None:
        self.config, self.number, self.source, self.lookup, self.libraries = config, number, source, lookup, libraries
        self.normalise = Normaliser(LetterPolicy(config.ambiguity, "keep", config.other_letters))
        self.longest = config.max_length or LONGEST
        self.tally = Tally()
        self._channels: dict[str, int] = {}
        self._kept: dict[str, bool] = {}

    def read(self, path: Path, file: int) -> Iterator[tuple[Any, npt.NDArray[np.void], list[bytes], list[bytes]]]:
        """Keys, rows, payloads and names for `BucketWriter.add`, a few hundred records at a time."""
        records = read_records(path)
        for number in itertools.count():
            batch = list(itertools.islice(records, _BATCH))
            if not batch:
                return
            places = range(number * _BATCH, number * _BATCH + len(batch))
            rows = self._rows(path, file, places, batch)
            if number == 0:  # not before: a table without sequences too is told that first
                self._require_ratios(path)
            yield rows

    def _require_ratios(self, path: Path) -> None:
        """Without signal-to-noise every profile would be noisy, and no value of it be trained on."""
        if self.source.signal_to_noise is not None or not is_named(path, reactivity_table.SUFFIXES):
            return
        columns = reactivity_table.table_columns(path)
        if columns.values and columns.signal_to_noise is None:
            raise DataError(
                f"{path}, line 1: no column signal_to_noise, by which profiles are chosen and trained on; add it, or "
                f"set signal_to_noise of the source {self.source.name} for all of them (10 for pseudo-labels)."
            )

    def _rows(
        self, path: Path, file: int, places: range, batch: list[ProfileRecord]
    ) -> tuple[Any, npt.NDArray[np.void], list[bytes], list[bytes]]:
        self.tally.records += len(batch)
        bodies = [self._body(path, record) for record in batch]
        letters = self.normalise(bodies, str(path), batch[0].record)
        self.tally.changed.update(letters.changes)
        rows = np.zeros(len(batch), dtype=ROW)
        payloads, names, kept = [], [], []
        for i, record in enumerate(batch):
            reason = self._reason(record, bodies[i], len(letters.sequences[i]), int(letters.verdict[i]))
            channel = NO_CHANNEL if reason else self._channel(record)
            payload = b"" if reason else self._payload(record, letters.sequences[i], channel)
            if not reason and payload is None:
                reason = "out_of_range"
            if reason or payload is None:
                self._drop(reason, path, record, reading_place(file, places[i]))
                continue
            name = record.name.encode()
            if len(name) > _NAME_BYTES:
                self.tally.changed["names_cut"] += 1
                name = name[:_NAME_BYTES]
            forced = self.source.signal_to_noise
            ratio = record.signal_to_noise if forced is None else forced
            row = rows[i]
            row["at"], row["digest"] = reading_place(file, places[i]), xxhash.xxh3_64_intdigest(payload)
            row["length"], row["nucleotides"] = len(payload), len(letters.sequences[i])
            row["snr"] = ratio if np.isfinite(ratio) and channel != NO_CHANNEL else np.nan
            row["source"], row["library"] = self.number, self._library(record)
            row["name"], row["channel"] = len(name), channel
            payloads.append(payload)
            names.append(name)
            kept.append(i)
        rows = rows[kept]
        rows["hi"], rows["lo"], _ = digests([letters.sequences[i] for i in kept])
        return rows["hi"].copy(), rows, payloads, names

    def _body(self, path: Path, record: ProfileRecord) -> bytes:
        letters = record.letters
        if letters is None and self.lookup is not None:
            letters = self.lookup(record.name)
            if letters is not None and 0 < len(record.values) < len(letters.strip()):
                raise DataError(
                    f"{path}, line {record.line} ({record.name}): the sequence of this id in {self.source.sequences} "
                    f"has {len(letters.strip())} letters, but the table has only {len(record.values)} reactivity "
                    "columns; columns are missing, or the profiles are those of other sequences."
                )
        if letters is None:
            if self.lookup is None:
                raise DataError(
                    f"{path}: has no column sequence; set `sequences` of the source {self.source.name} to a table "
                    "that has sequence_id and sequence, such as test_sequences.csv."
                )
            record.problem = "no_sequence"
        letters = (letters or b"").strip().rstrip(b"-.")
        if b"\0" in letters:
            raise DataError(f"{path}, record {record.record}: the sequence holds NUL bytes; check the source.")
        return letters

    def _reason(self, record: ProfileRecord, body: bytes, length: int, verdict: int) -> str:
        """Why a record leaves, "" if it stays."""
        if record.problem:
            return record.problem
        if verdict != KEPT:
            return next(reason for reason, code in DROPPED.items() if code == verdict)
        if length != len(body):
            return "gaps_inside"
        if length < self.config.min_length:
            return "too_short"
        if length > self.longest:
            return "too_long"
        if not self._wanted(record.dataset):
            return "dataset"
        return "other_experiment" if record.experiment and self._channel(record) == NO_CHANNEL else ""

    def _wanted(self, dataset: str) -> bool:
        if dataset not in self._kept:
            left_out = dataset.startswith(tuple(self.source.drop_datasets))
            self._kept[dataset] = not left_out or dataset.startswith(tuple(self.source.keep_datasets))
        return self._kept[dataset]

    def _channel(self, record: ProfileRecord) -> int:
        experiment = record.experiment
        if experiment not in self._channels:
            self._channels[experiment] = channel_of(experiment, self.config.channels, self.source.experiments)
        return self._channels[experiment]

    def _library(self, record: ProfileRecord) -> int:
        name = library_of(record.dataset, self.config.channels) if record.dataset else self.source.name
        number = self.libraries.setdefault(name, len(self.libraries))
        if number >= MOST_LIBRARIES:
            raise DataError(
                f"source {self.source.name}: there are more than {MOST_LIBRARIES} different dataset names, too "
                "many to be told apart; make several corpora of the files."
            )
        return number

    def _payload(self, record: ProfileRecord, letters: bytes, channel: int) -> bytes | None:
        """Letters, values and errors; None where a value is infinite or beyond half precision."""
        if channel == NO_CHANNEL:
            return letters
        values, past = fitted(record.values, len(letters))
        if (np.abs(values) > LARGEST).any():  # NaN is not
            return None
        errors, _ = fitted(record.errors, len(letters))
        unmeasured, negative = ~np.isnan(errors) & np.isnan(values), errors < 0
        large = errors > LARGEST
        for kind, count in (
            ("values_past_the_end", past + record.past_end),
            ("errors_without_value", int(np.count_nonzero(unmeasured))),
            ("negative_errors", int(np.count_nonzero(negative))),
            ("errors_too_large", int(np.count_nonzero(large))),
        ):
            self.tally.changed[kind] += count
        errors[unmeasured | negative] = np.nan
        errors[large] = LARGEST
        return letters + half(values).tobytes() + half(errors).tobytes()

    def _drop(self, reason: str, path: Path, record: ProfileRecord, place: int) -> None:
        self.tally.dropped[reason] += 1
        if reason not in self.tally.first_dropped:
            which = f", which has {record.experiment}" if reason == "other_experiment" else ""
            self.tally.first_dropped[reason] = (place, f"{path.name}, line {record.line} ({record.name}){which}")


def half(numbers: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """Half precision, every NaN with the same bits: equal profiles are equal bytes."""
    found = numbers.astype("<f2")
    found[np.isnan(found)] = np.nan
    return found


def fitted(numbers: npt.NDArray[np.float32], length: int) -> tuple[npt.NDArray[np.float32], int]:
    """[length] the numbers of a sequence, NaN where there are fewer; how many beyond its end were left out."""
    found = np.full(length, np.nan, dtype=np.float32)
    found[: len(numbers)] = numbers[:length]
    return found, int(np.count_nonzero(~np.isnan(numbers[length:])))
