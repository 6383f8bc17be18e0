"""Training sequences that resemble a benchmark: found by MMseqs2 and by hash, dropped or reported, and written down.

A sequence resembles a benchmark's when an alignment on either strand has at least the given identity and covers at
least the given fraction of the shorter of the two: a benchmark tRNA inside a long transcript counts, and so does a
piece of a benchmark rRNA. Identical sequences (and reverse complements) are found by their hash, as MMseqs2 does not
see those below 18 nucleotides. Every sequence of the corpus is a query against the benchmark and not the other way
round: MMseqs2 limits the hits per query, and one benchmark sequence may resemble a million others.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import mmseqs
from data.formats.fasta import read_texts
from data.hash_order import HashOrder
from data.manifest import file_sha256
from data.normalise import LetterPolicy, complement
from data.prepare_config import ExcludeConfig, PrepareConfig
from data.records import FilterRules, Origin, RecordFilter, digests

HIT = np.dtype([("number", "<u4"), ("benchmark", "<u4"), ("identity", "<f4"), ("coverage", "<f4"), ("entry", "<u2")])
# K-mers of 11: half of MMseqs2's usual 15 for nucleotides would need, to see similar sequences of 80 % identity, and an
# index of megabytes instead of gigabytes. Identity and coverage decide, so the E-value is left wide open.
_SEARCH = ("--search-type", "3", "--strand", "2", "-k", "11", "-e", "1000", "--max-seqs", "1000")
_SPAN = 18  # of a spaced k-mer of 11: MMseqs2 fails where no sequence is as long
_COLUMNS = "query,target,fident,qcov,tcov"
_RULES = FilterRules(LetterPolicy(ambiguity="keep", inosine="keep", other_letters="N"), min_length=1, max_length=0)


@dataclass(frozen=True)
class Leaks:
    """``hits`` HIT [n], at most one per sequence and entry, by sequence; ``names``: benchmark accessions per entry.

    ``told``: what the manifest says of each entry.
    """

    hits: npt.NDArray[np.void]
    names: list[list[bytes]]
    told: list[dict[str, Any]]

    def line(self, hit: np.void, accession: bytes, config: PrepareConfig) -> bytes:
        """One line of excluded.tsv."""
        entry = config.exclude[hit["entry"]]
        fields = (
            accession,
            self.names[hit["entry"]][hit["benchmark"]],
            b"%.3f" % hit["identity"],
            b"%.3f" % hit["coverage"],
            entry.action.encode(),
            Path(entry.fasta).name.encode(),
        )
        return b"\t".join(fields) + b"\n"


TABLE_HEADER = b"accession\tbenchmark\tidentity\tcoverage\taction\tfasta\n"


def find_leaks(config: PrepareConfig, sequences: HashOrder) -> Leaks:
    """Searches every entry of ``config.exclude``. Raises DataError."""
    found, names, told = [np.empty(0, dtype=HIT)], [], []
    for number, entry in enumerate(config.exclude):
        letters, accessions = _read_benchmark(Path(entry.fasta))
        hits = _best(
            np.concatenate([_identical(sequences, letters, config), _similar(config, entry, sequences, letters)])
        )
        hits["entry"] = number
        found.append(hits)
        names.append(accessions)
        told.append(
            {
                "fasta": {"name": Path(entry.fasta).name, "sha256": file_sha256(Path(entry.fasta))},
                "identity": entry.identity,
                "coverage": entry.coverage,
                "action": entry.action,
                "benchmark_sequences": len(letters),
                "benchmark_sequences_resembled": len(np.unique(hits["benchmark"])),
                "sequences": len(hits),
            }
        )
    hits = np.concatenate(found)
    return Leaks(hits[np.lexsort((hits["entry"], hits["number"]))], names, told)


def _read_benchmark(path: Path) -> tuple[list[bytes], list[bytes]]:
    """(normalised letters, accessions) of a benchmark FASTA."""
    keep = RecordFilter(_RULES)
    letters, names = [], []
    for piece in read_texts(path):
        _, more, more_names, _ = keep(piece, Origin(0, str(path), 0))
        letters += more
        names += more_names
    return letters, names


def _identical(sequences: HashOrder, letters: list[bytes], config: PrepareConfig) -> npt.NDArray[np.void]:
    """Sequences that are equal to a benchmark's, or to its reverse complement."""
    hi, lo = sequences.hi, sequences.lo
    merged = config.reverse_complement == "merge"
    found = []
    for spelled in (letters,) if merged else (letters, [complement(one)[::-1] for one in letters]):
        their_hi, their_lo, _ = digests(spelled, merged)
        for shift in (0, 1):  # two sequences in 2**64 may share half a hash
            near = np.minimum(np.searchsorted(hi, their_hi) + shift, max(sequences.count - 1, 0))
            same = np.flatnonzero((hi[near] == their_hi) & (lo[near] == their_lo))
            rows = np.ones(len(same), dtype=HIT)
            rows["number"], rows["benchmark"] = near[same], same
            found.append(rows)
    return np.concatenate(found)


def _similar(
    config: PrepareConfig, entry: ExcludeConfig, sequences: HashOrder, letters: list[bytes]
) -> npt.NDArray[np.void]:
    folder = Path(tempfile.mkdtemp(prefix="search-", dir=sequences.folder))
    target = folder / "benchmark.fa"
    target.write_bytes(b"".join([b">%d\n%b\n" % (i, one) for i, one in enumerate(letters) if len(one) >= _SPAN]))
    if not target.stat().st_size:
        return np.empty(0, dtype=HIT)
    arguments: list[str | Path] = [sequences.fasta, target, folder / "hits", folder / "tmp", *_SEARCH]
    arguments += ["--min-seq-id", f"{entry.identity:g}", "--format-output", _COLUMNS]
    mmseqs.run(config.mmseqs, ["easy-search", *arguments, "--threads", str(config.thread_count)], folder / "log")
    found = [np.empty(0, dtype=HIT)]
    for table in mmseqs.numbers(folder / "hits", 5):
        coverage = table[:, 3:5].max(axis=1)
        table, coverage = table[coverage >= entry.coverage], coverage[coverage >= entry.coverage]
        rows = np.zeros(len(table), dtype=HIT)
        rows["number"], rows["benchmark"], rows["identity"] = table[:, 0], table[:, 1], table[:, 2]
        rows["coverage"] = coverage
        found.append(_best(rows))
    shutil.rmtree(folder, ignore_errors=True)
    return np.concatenate(found)


def _best(hits: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The best hit of each sequence: by identity, then coverage, then the benchmark's order."""
    hits = hits[np.lexsort((hits["benchmark"], -hits["coverage"], -hits["identity"], hits["number"]))]
    first = np.ones(len(hits), dtype=bool)
    first[1:] = hits["number"][1:] != hits["number"][:-1]
    return hits[first]
