"""Parsing in several processes: pieces of FASTA text go out, buckets fill up on disk, tallies come back.

A worker is `python -m data.parse_worker` behind two pipes. It holds nothing of ours but its standard input, so it ends
when this process does, however this one is killed; and it needs no fork of a threaded process and no import of the
caller's main module, which the standard pools do. Which worker gets which piece changes no byte of the corpus.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from data.buckets import BucketWriter, order_keys
from data.errors import DataError
from data.formats.fasta import FastaText
from data.records import FilterRules, Origin, RecordFilter, Tally

HEADER = struct.Struct("<II")  # bytes of the description (JSON), bytes of the text
_F_SETPIPE_SZ = 1031  # Linux: a pipe that holds a whole piece, so that neither side waits for the other
_AHEAD = 2  # pieces a worker has beyond the one it is busy with


@dataclasses.dataclass(frozen=True)
class ParseJob:
    """What a parser needs to know: the rules, and where and under which seed its buckets are. seed None: hash order."""

    rules: FilterRules
    folder: str
    buckets: int
    seed: int | None


class Parser:
    """Parses in this process: one worker's work, and what a worker process runs."""

    workers = 1

    def __init__(self, job: ParseJob, who: int = 0) -> None:
        self._filter = RecordFilter(job.rules)
        self._writer = BucketWriter(Path(job.folder), job.buckets, who)
        self._seed = job.seed
        self.tallies: dict[int, Tally] = {}  # by source

    def put(self, piece: FastaText, origin: Origin) -> None:
        rows, letters, names, tally = self._filter(piece, origin)
        keys = rows["hi"].copy() if self._seed is None else order_keys(rows["hi"], self._seed)
        self._writer.add(keys, rows, letters, names)
        self.tallies.setdefault(origin.source, Tally()).add(tally)

    def finish(self) -> dict[int, Tally]:
        """Writes what is left and returns the tally of each source."""
        self._writer.flush()
        return self.tallies

    def abandon(self) -> None:
        """Nothing to end."""


class ParserPool:
    """The same in ``workers`` processes. `put` waits while all are busy; an error of one is raised by the next call."""

    def __init__(self, job: ParseJob, workers: int) -> None:
        self.workers = workers
        self._waiting: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(workers)
        self._errors: list[BaseException] = []
        self._tallies: list[dict[int, Tally]] = [{} for _ in range(workers)]
        root = str(Path(__file__).resolve().parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        description = json.dumps(dataclasses.asdict(job))
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "data.parse_worker", description, str(who)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for who in range(workers)
        ]
        self._threads = [threading.Thread(target=self._serve, args=(who,), daemon=True) for who in range(workers)]
        for thread in self._threads:
            thread.start()

    def put(self, piece: FastaText, origin: Origin) -> None:
        described = json.dumps({"first": piece.first, "records": piece.records, **dataclasses.asdict(origin)})
        self._offer((described.encode(), piece.text))

    def finish(self) -> dict[int, Tally]:
        """Waits for all pieces to be parsed and written; the tally of each source."""
        for _ in self._threads:
            self._offer(None)
        for thread in self._threads:
            thread.join()
        self._raise()
        merged: dict[int, Tally] = {}
        for tallies in self._tallies:
            for source, tally in tallies.items():
                merged.setdefault(source, Tally()).add(tally)
        return merged

    def abandon(self) -> None:
        """Ends the processes. After `finish` there are none."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        with contextlib.suppress(queue.Full):
            for _ in self._threads:
                self._waiting.put_nowait(None)
        for thread in self._threads:
            thread.join(10)
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()

    def _offer(self, piece: tuple[bytes, bytes] | None) -> None:
        while True:
            self._raise()
            with contextlib.suppress(queue.Full):
                self._waiting.put(piece, timeout=0.1)
                return

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _serve(self, who: int) -> None:
        """One thread per process: hands it pieces and reads its answers, a few pieces behind."""
        process = self._processes[who]
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdin.fileno(), _F_SETPIPE_SZ, 1 << 20)
        unanswered = 0
        try:
            while (piece := self._waiting.get()) is not None:
                process.stdin.write(HEADER.pack(len(piece[0]), len(piece[1])))
                process.stdin.write(piece[0])
                process.stdin.write(piece[1])
                process.stdin.flush()
                unanswered += 1
                if unanswered > _AHEAD:
                    self._answer(process.stdout)
                    unanswered -= 1
            process.stdin.close()
            for _ in range(unanswered):
                self._answer(process.stdout)
            last = self._answer(process.stdout)
            self._tallies[who] = {int(source): Tally.from_json(tally) for source, tally in last["tallies"].items()}
            process.wait()
        except (OSError, ValueError, EOFError) as error:
            told = error if isinstance(error, DataError) else self._death(process, error)
            self._errors.append(told)

    @staticmethod
    def _answer(stream: IO[bytes]) -> dict[str, Any]:
        line = stream.readline()
        if not line:
            raise EOFError("a parsing process ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise DataError(answer["error"])
        return answer

    @staticmethod
    def _death(process: subprocess.Popen[bytes], error: Exception) -> Exception:
        """A worker that died: what it said last, if it said anything; otherwise how it ended."""
        assert process.stdout is not None
        try:
            ParserPool._answer(process.stdout)
        except DataError as told:
            return told
        except (OSError, ValueError, EOFError):
            pass
        code = process.wait()
        if code == -9:
            return DataError("a parsing process was killed, probably for want of memory; lower `threads`.")
        return RuntimeError(f"a parsing process ended with code {code} ({error}); its traceback is above")
