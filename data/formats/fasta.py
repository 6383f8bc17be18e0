"""FASTA, plain or gzip, as a stream of record batches: bytes in, bytes out, bounded memory.

Work is done on chunks of about 1 MiB that end at a record boundary, never line by line. Windows line ends, blank
lines, a byte-order mark, blocked gzip and records of any number of lines are fine; headers are bytes of any encoding.

It does not look at letters, except to refuse a protein file: that is `data.normalise`.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.formats.text import CHUNK_BYTES, GZIP, read_pieces

_PROTEIN_SAMPLE = 1000  # records looked at before a file is believed to hold nucleotides
_PROTEIN_ONLY = b"EFLPQJOZ"  # letters of amino acids that are neither nucleotides, nor IUPAC codes, nor inosine
_NOT_PROTEIN_ONLY = bytes(c for c in range(256) if c not in _PROTEIN_ONLY + _PROTEIN_ONLY.lower())


@dataclass(frozen=True)
class FastaRecords:
    """Consecutive records of one file. ``first`` counts from 1; a header lacks its ``>``; a body is the raw lines."""

    first: int
    headers: list[bytes]
    bodies: list[bytes]


@dataclass(frozen=True)
class FastaText:
    """Whole consecutive records of one file as they stand there, from a ``>`` on. ``first`` counts from 1."""

    first: int
    records: int
    text: bytes

    def parse(self) -> FastaRecords:
        text, starts = self.text, record_starts(self.text).tolist()
        stops = [*(start - 1 for start in starts[1:]), len(text)]
        ends = [text.find(b"\n", start) for start in starts]
        if ends[-1] < 0:  # a last header without a line end
            ends[-1] = len(text)
        headers = [text[start + 1 : end].rstrip() for start, end in zip(starts, ends, strict=True)]
        return FastaRecords(self.first, headers, [text[end + 1 : stop] for end, stop in zip(ends, stops, strict=True)])


def record_starts(text: bytes) -> npt.NDArray[np.int64]:
    """Where the records of a text start: its beginning, and every ``>`` after a line end."""
    codes = np.frombuffer(text, dtype=np.uint8)
    marks = np.flatnonzero(codes == ord(">"))  # rare, so looking at the byte before each is cheap
    return np.concatenate([[0], marks[(marks > 0) & (codes[marks - 1] == ord("\n"))]])


def read_texts(
    path: str | Path, chunk_bytes: int = CHUNK_BYTES, on_raw: Callable[[bytes], object] | None = None
) -> Generator[FastaText, None, None]:
    """A FASTA or FASTA.gz file in order, in pieces of about ``chunk_bytes`` that hold whole records, not yet parsed.

    ``on_raw`` receives every raw byte string as it is read, from the reading thread: for a hash or a progress bar.
    Raises DataError for a missing, empty, truncated or doubly compressed file, for text before the first ``>``, and
    for FASTQ or protein records.
    """
    path = Path(path)
    number = 1
    sampled = _ProteinSample(path)
    # closing: the thread ends when this generator does, and not when the last reference to a traceback is gone
    with contextlib.closing(read_pieces(path, chunk_bytes, on_raw)) as pieces:
        for text in _record_aligned(path, pieces):
            piece = FastaText(number, len(record_starts(text)), text)
            if number == 1 and b"\r" in text.split(b"\n", 1)[0].rstrip():
                raise DataError(f"{path}: line ends are lone carriage returns; convert them with `tr '\\r' '\\n'`.")
            sampled.look(piece)
            yield piece
            number += piece.records
    sampled.judge()


def read_fasta(
    path: str | Path, chunk_bytes: int = CHUNK_BYTES, on_raw: Callable[[bytes], object] | None = None
) -> Iterator[FastaRecords]:
    """The records of a FASTA or FASTA.gz file in order, in batches: `read_texts`, parsed."""
    with contextlib.closing(read_texts(path, chunk_bytes, on_raw)) as texts:
        for text in texts:
            yield text.parse()


class _ProteinSample:
    """Refuses a file most of whose first records hold letters that only amino acids have."""

    def __init__(self, path: Path) -> None:
        self.path, self.records, self.protein, self.letters, self.protein_letters = path, 0, 0, 0, 0

    def look(self, piece: FastaText) -> None:
        if self.records >= _PROTEIN_SAMPLE:
            return
        for body in piece.parse().bodies[: _PROTEIN_SAMPLE - self.records]:
            found = len(body.translate(None, _NOT_PROTEIN_ONLY))
            self.records += bool(body.strip())
            self.protein += found > 0
            self.protein_letters += found
            self.letters += len(body)
        if self.records >= _PROTEIN_SAMPLE:
            self.judge()

    def judge(self) -> None:
        # Proteins hold about 29 % of these letters; nucleotide files with a stray P or X stay far below 5 %.
        if 2 * self.protein > self.records and 20 * self.protein_letters > self.letters:
            raise DataError(
                f"{self.path}: {self.protein} of the first {self.records} records hold letters of amino acids "
                f"({_PROTEIN_ONLY.decode()}), so this looks like a protein FASTA; give nucleotide sequences."
            )


def _record_aligned(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Joins pieces into texts that start with ``>`` and hold whole records."""
    pending: list[bytes] = []
    started = False
    blank_lines = 0
    for piece in pieces:
        if not started:
            if not piece.strip():
                blank_lines += piece.count(b"\n")
                continue
            stripped = piece.lstrip()
            blank_lines += piece[: len(piece) - len(stripped)].count(b"\n")
            piece = stripped
            _check_start(path, piece, blank_lines + 1)
            started = True
        boundary = bool(pending) and pending[-1].endswith(b"\n") and piece.startswith(b">")
        cut = piece.rfind(b"\n>") + 1
        if cut or boundary:
            pending.append(piece[:cut])
            yield b"".join(pending)
            pending = [piece[cut:]]
        else:
            pending.append(piece)
    if not started:
        raise DataError(f"{path}: the file holds no FASTA record, only blank lines; remove it from the sources.")
    yield b"".join(pending)


def _check_start(path: Path, text: bytes, line: int) -> None:
    """The first text of a file: a ``>``, or a sentence about what it is instead."""
    first = text.split(b"\n", 1)[0].strip()
    if text.startswith(GZIP):
        raise DataError(f"{path}: gzip inside gzip; unpack it once with `gunzip` and try again.")
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16 text; convert it with `iconv -f UTF-16 -t UTF-8`.")
    if text.startswith(b"@"):
        raise DataError(f"{path}, line {line}: starts with '@', so this looks like FASTQ; convert it to FASTA first.")
    if not text.startswith(b">"):
        raise DataError(
            f"{path}, line {line}: expected a FASTA header starting with '>' but found "
            f"{first[:40].decode('ascii', 'replace')!r}; remove the text before the first record or check the format."
        )
