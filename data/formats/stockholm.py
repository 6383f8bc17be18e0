"""Stockholm files, as Rfam and Infernal write them: any number of alignments one after the other, as a stream.

    # STOCKHOLM 1.0
    #=GF AC   RF00001
    X01556.1/3-118           --CUUGAC-GA
    #=GC SS_cons             ..(((...))).
    //

An interleaved alignment is cut into blocks, all of which list the same rows in the same order; its rows are joined by
their place in the block. So a name that occurs twice in one block is two rows, as in some of Rfam's files, where a
reader keyed by name would join them into one of the wrong length. A block ends with a blank line, or where a row
follows a `#=GC` line. Per-row annotation (`#=GR`, `#=GS`) is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from data.errors import DataError
from data.formats.raw_alignment import RawAlignment, decoded
from data.formats.text import read_lines

HEADER = b"# STOCKHOLM"
_END = b"//"


def read_stockholm(path: Path, on_raw: Callable[[bytes], object] | None = None) -> Iterator[RawAlignment]:
    """The alignments of a file, plain or gzip. Raises DataError for what is not Stockholm, or was cut."""
    open_one: _Alignment | None = None
    count = number = 0
    for lines in read_lines(path, on_raw=on_raw):
        for line in lines:
            number += 1
            if open_one is None:
                if line.startswith(HEADER):
                    count += 1
                    open_one = _Alignment(path, count, number)
                elif line.strip():
                    raise DataError(
                        f"{path}, line {number}: expected '# STOCKHOLM 1.0' but found {decoded(line[:40])!r}; "
                        "check the format of the file."
                    )
            elif line.startswith(_END):
                yield open_one.finish()
                open_one = None
            elif line.startswith(HEADER):
                raise DataError(
                    f"{open_one.raw.where}, from line {open_one.line} on: the next alignment begins in line {number}, "
                    "but no // ended this one, so it was cut; download the file again."
                )
            else:
                open_one.add(line, number)
    if open_one is not None:
        raise DataError(
            f"{open_one.raw.where}, from line {open_one.line} on: the file ends without the // that ends an "
            "alignment, so it was cut; download it again."
        )
    if not count:
        raise DataError(f"{path}: the file holds no alignment, only blank lines; remove it from the sources.")


class _Alignment:
    """One alignment while its lines come in."""

    def __init__(self, path: Path, number: int, line: int) -> None:
        self.raw, self.line = RawAlignment(path, number, anchored=False), line
        self._blocks: list[tuple[list[bytes], list[bytes]]] = []  # names and parts of rows
        self._marks: dict[bytes, list[bytes]] = {}
        self._block_over = True

    def add(self, line: bytes, number: int) -> None:
        words = line.split()
        if not words:
            self._block_over = True
        elif words[0] == b"#=GF" and len(words) > 2:
            self.raw.features.setdefault(decoded(words[1]), b" ".join(words[2:]))
        elif words[0] == b"#=GC" and len(words) > 2:
            self._marks.setdefault(words[1], []).append(b"".join(words[2:]))
            self._block_over |= bool(self._blocks)
        elif not words[0].startswith(b"#"):
            if len(words) < 2:
                raise DataError(
                    f"{self.raw.path}, line {number}: expected a row name and its letters but found "
                    f"{decoded(line[:40])!r}; the file is damaged or not Stockholm."
                )
            if self._block_over:
                self._blocks.append(([], []))
                self._block_over = False
            names, parts = self._blocks[-1]
            names.append(words[0])
            parts.append(words[1] if len(words) == 2 else b"".join(words[1:]))

    def finish(self) -> RawAlignment:
        """Rows joined over the blocks, or one after the other where blocks are mere paragraphs."""
        if not self._blocks:
            raise DataError(f"{self.raw.where}, from line {self.line} on: holds no row; remove it or mend the file.")
        first = self._blocks[0][0]
        if all(names == first for names, _ in self._blocks):
            self.raw.names = first
            self.raw.rows = [b"".join(parts) for parts in zip(*(parts for _, parts in self._blocks), strict=True)]
        else:
            self._refuse_partial_blocks()
            for names, parts in self._blocks:
                self.raw.names += names
                self.raw.rows += parts
        self.raw.marks = {decoded(name): b"".join(parts) for name, parts in self._marks.items()}
        return self.raw

    def _refuse_partial_blocks(self) -> None:
        seen: dict[bytes, int] = {}
        for block, (names, _) in enumerate(self._blocks, 1):
            for name in names:
                if seen.setdefault(name, block) != block:
                    raise DataError(
                        f"{self.raw.where}: row {decoded(name)} is in blocks {seen[name]} and {block}, but the blocks "
                        "do not list the same rows; the interleaved alignment is damaged."
                    )
