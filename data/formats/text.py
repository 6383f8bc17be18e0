"""The decompressed bytes of a text file, plain or gzip, as a stream: what all readers of sequence formats start from.

A thread reads and decompresses ahead (zlib releases the GIL), a few chunks at most, so memory is bounded.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from data.errors import DataError

CHUNK_BYTES = 1 << 20
GZIP = b"\x1f\x8b"
_AHEAD = 4  # chunks that the reading thread may be ahead of the parser
_MAGIC = {  # compressed formats other than gzip, refused by name
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_ZIP, _TAR = b"PK\x03\x04", b"ustar"  # archives of files: where a zip begins, and what every tar has at _TAR_AT
_TAR_AT = 257


def read_pieces(
    path: Path, chunk_bytes: int = CHUNK_BYTES, on_raw: Callable[[bytes], object] | None = None
) -> Generator[bytes, None, None]:
    """Pieces of at most about ``chunk_bytes``, none of them empty, without a byte-order mark. Close it when done early.

    ``on_raw`` receives every raw byte string as it is read, from the reading thread: for a hash or a progress bar.
    Raises DataError for a missing, empty or truncated file, for compression other than gzip, and for an archive.
    """
    return _prefetched(_no_archive(path, _text(path, chunk_bytes, on_raw)))


def read_lines(
    path: Path, chunk_bytes: int = CHUNK_BYTES, on_raw: Callable[[bytes], object] | None = None
) -> Iterator[list[bytes]]:
    """The lines of a file in batches, in order, without their ends (`\\n` or `\\r\\n`). Raises as `read_pieces`."""
    rest = b""
    with contextlib.closing(read_pieces(path, chunk_bytes, on_raw)) as pieces:
        for piece in pieces:
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            yield [line.rstrip(b"\r") for line in lines]
    if rest:
        yield [rest.rstrip(b"\r")]


def _no_archive(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces. Raises DataError for a zip, or a tar, compressed or not: what is in one is not read."""
    start = b""
    while len(start) < _TAR_AT + len(_TAR) and (piece := next(pieces, b"")):
        start += piece
    kind = "zip" * start.startswith(_ZIP) or "tar" * start.startswith(_TAR, _TAR_AT)
    if kind:
        raise DataError(f"{path}: is a {kind} archive, which is not read; unpack it and give the files in it.")
    if start:
        yield start
    yield from pieces


def _text(path: Path, chunk_bytes: int, on_raw: Callable[[bytes], object] | None) -> Iterator[bytes]:
    """Decompressed bytes of a file, in pieces of at most about ``chunk_bytes``; no piece is empty."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below, and the error needs its own sentence)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from error
    with file:

        def read() -> bytes:
            raw = file.read(chunk_bytes)
            if on_raw is not None and raw:
                on_raw(raw)
            return raw

        try:
            raw = read()
            while len(raw) < 8 and (more := read()):  # enough to recognise what the file is
                raw += more
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a file.") from error
        if not raw:
            raise DataError(f"{path}: the file is empty (0 bytes); download it again or remove it from the sources.")
        for magic, kind in _MAGIC.items():
            if raw.startswith(magic):
                raise DataError(f"{path}: compressed with {kind}; only plain text and gzip are read, so recompress it.")
        if raw.startswith(GZIP):
            yield from _gunzip(path, raw, read, chunk_bytes)
            return
        if raw.startswith(b"\xef\xbb\xbf"):
            raw = raw[3:] or read()
        while raw:
            yield raw
            raw = read()


def _gunzip(path: Path, raw: bytes, read: Callable[[], bytes], chunk_bytes: int) -> Iterator[bytes]:
    """Decompresses one or more gzip members; zero padding after the last one is allowed, as gzip itself does."""
    stream = zlib.decompressobj(wbits=31)
    try:
        while raw:
            piece = stream.decompress(raw, chunk_bytes)
            if piece:
                yield piece
            if not stream.eof:
                raw = stream.unconsumed_tail or read()
                continue
            raw = stream.unused_data.lstrip(b"\0") or read().lstrip(b"\0")
            if raw:
                stream = zlib.decompressobj(wbits=31)
    except zlib.error as error:
        raise DataError(f"{path}: the gzip data are damaged ({error}); download the file again.") from error
    if not stream.eof:
        raise DataError(f"{path}: the gzip file ends too early, it was cut; download it again.")


def _prefetched(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The same pieces, produced up to `_AHEAD` ahead by a thread that ends with the consumer."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(value: bytes | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for piece in pieces:
                if not put(piece):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, name="text-reader", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
