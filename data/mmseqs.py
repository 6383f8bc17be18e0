"""Running MMseqs2, which clusters and searches sequences: finding the program, one call, its failures as sentences.

The program runs in a process group of its own behind a watch: should this process die, even by kill -9, the group is
ended, so that a build that is started again never meets its predecessor's MMseqs2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError

INSTALL = "install it (Debian and Ubuntu: `apt-get install mmseqs2`; conda: `conda install -c bioconda mmseqs2`)"
_READ = 1 << 24
_TOLD = 3  # last lines of its output in a message
# Standard input is a pipe that only the caller holds open for writing: it ends when the caller does.
_WATCHED = 'exec 3<&0; "$@" 3<&- </dev/null & work=$!; (cat <&3 >/dev/null; kill -9 -$$) 2>/dev/null & wait $work'


def find_program(program: str) -> str:
    """The path of the program; DataError with the install command if there is none."""
    found = shutil.which(program)
    if found is None:
        raise DataError(
            f"MMseqs2 is needed for clusters.method=mmseqs and for exclude, and there is no program {program!r}: "
            f"{INSTALL}, or set mmseqs=PATH."
        )
    return found


def version(program: str) -> str:
    done = subprocess.run([find_program(program), "version"], capture_output=True, text=True)
    return done.stdout.strip()


def run(program: str, arguments: Sequence[str | Path], log: Path) -> None:
    """Runs ``mmseqs ARGUMENTS``, its output going to ``log``. Raises DataError with its last words if it fails."""
    command = [find_program(program), *map(str, arguments)]
    watch, held = os.pipe()
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "sh", *command],
                stdin=watch,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = process.wait()
    finally:
        os.close(watch)
        os.close(held)  # the watch ends, and with it whatever the program left running
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-_TOLD:]
        raise DataError(
            f"`{' '.join(command[:2])}` failed with code {code}; its last words: {' / '.join(last) or 'none'}. "
            "Check free disk space and memory, and clusters.options."
        )


def numbers(path: Path, columns: int) -> Iterator[npt.NDArray[np.float64]]:
    """A table of numbers separated by blanks or tabs, in pieces of whole lines: float64 [lines, columns]."""
    with open(path, "rb") as file:
        rest = b""
        while chunk := file.read(_READ):
            text, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield np.array(text.split(), dtype=np.float64).reshape(-1, columns)
        if rest.strip():
            yield np.array(rest.split(), dtype=np.float64).reshape(-1, columns)
