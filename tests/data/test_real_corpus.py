"""The real corpus and a file of reads through everything, recounted without the code under test."""

from __future__ import annotations

import gzip
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.index import Corpus
from data.prepare_config import ClusterConfig
from data.verify import verify
from tests.data.clustered import needs_mmseqs, splits
from tests.data.corpora import SHARED, config

FILES = (SHARED / "corpus/real_ncrna_distinct.fasta.gz", SHARED / "sequences/amplicon16s_100k_reads.fasta.gz")
LETTERS = set("ACGURYKMSWBDHVNI")


def plain_records(path: Path) -> list[tuple[str, str]]:
    with gzip.open(path, "rt", encoding="latin-1") as file:
        records = ("\n" + file.read()).split("\n>")[1:]
    found = []
    for record in records:
        header, *lines = record.split("\n")
        found.append((header, "".join(lines).upper().replace("T", "U").replace("-", "").replace(".", "")))
    return found


@pytest.mark.slow
@needs_mmseqs
@pytest.mark.skipif(not SHARED.exists(), reason="the shared test data are not here")
def test_the_real_corpus_is_clustered_split_and_counted_rightly(tmp_path: Path) -> None:
    chosen = config(tmp_path / "corpus", *FILES, min_length=15, max_length=0, validation_fraction=0.05)
    chosen.clusters = ClusterConfig("mmseqs")
    manifest = prepare(chosen)

    # Recount the sources.
    first_source: dict[str, int] = {}
    for s, path in enumerate(FILES):
        records = plain_records(path)
        told = manifest["sources"][s]
        assert told["records"] == len(records) == (189_675, 100_000)[s]
        dropped = Counter()
        for _, letters in records:
            if not set(letters) <= LETTERS:
                dropped["other_letters"] += 1
            elif len(letters) < 15:
                dropped["too_short"] += 1
            elif letters in first_source:
                dropped["duplicate"] += 1
            else:
                first_source[letters] = s
        assert {reason: count for reason, count in told["dropped"].items() if count} == dict(dropped)
        kept = [letters for letters, source in first_source.items() if source == s]
        assert sum(told["sequences"].values()) == len(kept)
        assert told["nucleotides"] == sum(map(len, kept))

    # Every sequence is in exactly one split.
    found = {split: [letters for letters, _ in pairs] for split, pairs in splits(tmp_path / "corpus").items()}
    assert Counter(found["train"] + found["validation"]) == Counter(list(first_source))
    for split, letters in found.items():
        assert manifest["splits"][split]["sequences"] == len(letters)
        assert manifest["splits"][split]["nucleotides"] == sum(map(len, letters))
    share = len(found["validation"]) / len(first_source)
    assert 0.049 < share <= 0.05

    # Cluster the same sequences with the program itself, in the corpus's canonical order: sorted by their hash.
    import xxhash

    ordered = sorted(first_source, key=lambda letters: xxhash.xxh3_128_digest(letters.encode()))
    (tmp_path / "all.fa").write_text("".join(f">{i}\n{letters}\n" for i, letters in enumerate(ordered)))
    command = ["mmseqs", "easy-linclust", "all.fa", "out", "tmp", "--min-seq-id", "0.7", "-c", "0.8"]
    subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    representative = {}
    for line in (tmp_path / "out_cluster.tsv").read_text().splitlines():
        a, b = line.split("\t")
        representative[ordered[int(b)]] = a
    clusters = {split: {representative[letters] for letters in found[split]} for split in found}
    assert not clusters["train"] & clusters["validation"]
    assert manifest["clusters"]["found"] == len(set(representative.values()))
    for split in found:
        pointers = Corpus.open(tmp_path / "corpus", split).clusters
        assert len(pointers) - 1 == len(clusters[split]) == manifest["splits"][split]["clusters"]
        own = np.array([int(representative[letters]) for letters in found[split]])
        assert np.array_equal(np.flatnonzero(np.diff(own)) + 1, pointers[1:-1])
    assert verify(tmp_path / "corpus").problems == []
