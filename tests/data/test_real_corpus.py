"""The real corpus and a file of reads through everything, recounted without the code under test."""

from __future__ import annotations

import gzip
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

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


def recount_sources(manifest: dict[str, Any]) -> list[str]:
    """Checks what the manifest says of each source; returns the distinct sequences that stay."""
    first_source: dict[str, int] = {}
    for s, path in enumerate(FILES):
        records = plain_records(path)
        told = manifest["sources"][s]
        assert told["records"] == len(records) == (189_675, 100_000)[s]
        dropped: Counter[str] = Counter()
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
    return list(first_source)


def recount_splits(path: Path, manifest: dict[str, Any], sequences: list[str], cluster: dict[str, int]) -> None:
    """Every sequence is in one split, every cluster on one side and in one piece; ``cluster`` of each sequence."""
    found = {split: [letters for letters, _ in pairs] for split, pairs in splits(path).items()}
    assert Counter(found["train"] + found["validation"]) == Counter(sequences)
    wanted = round(0.05 * len(sequences))
    assert 0.99 * wanted <= len(found["validation"]) <= wanted
    clusters = {split: {cluster[letters] for letters in found[split]} for split in found}
    assert not clusters["train"] & clusters["validation"]
    assert manifest["clusters"]["found"] == len(set(cluster.values()))
    for split, letters in found.items():
        told = manifest["splits"][split]
        assert (told["sequences"], told["nucleotides"]) == (len(letters), sum(map(len, letters)))
        pointers = Corpus.open(path, split).clusters
        assert len(pointers) - 1 == len(clusters[split]) == told["clusters"]
        own = np.array([cluster[one] for one in letters])
        assert np.array_equal(np.flatnonzero(np.diff(own)) + 1, pointers[1:-1])
    assert verify(path).problems == []


@pytest.mark.slow
@needs_mmseqs
@pytest.mark.skipif(not SHARED.exists(), reason="the shared test data are not here")
def test_the_real_corpus_is_clustered_split_and_counted_rightly(tmp_path: Path) -> None:
    options = {"min_length": 15, "max_length": 0, "validation_fraction": 0.05}
    chosen = config(tmp_path / "corpus", *FILES, **options)
    chosen.clusters = ClusterConfig("mmseqs")
    manifest = prepare(chosen)
    sequences = recount_sources(manifest)
    table = np.load(tmp_path / "corpus" / "clustering.npy", allow_pickle=False)
    first = {int(hi) << 64 | int(lo): int(first) for hi, lo, first in table.tolist()}
    cluster = {letters: first[xxhash.xxh3_128_intdigest(letters.encode())] for letters in sequences}
    recount_splits(tmp_path / "corpus", manifest, sequences, cluster)

    # The program itself, on the same sequences under their own names, and its table given to us. Its clusters differ a
    # little from run to run (ties between strands are broken at random), so the two are close and not equal.
    records = [record for path in FILES for record in plain_records(path) if set(record[1]) <= LETTERS]
    letters_of = {f"n{i}": letters for i, (_, letters) in enumerate(records)}
    (tmp_path / "all.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in letters_of.items()))
    command = ["mmseqs", "easy-linclust", "all.fa", "out", "tmp", "--min-seq-id", "0.7", "-c", "0.8"]
    subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    chosen = config(tmp_path / "given", tmp_path / "all.fa", **options)
    chosen.clusters = ClusterConfig("table", table=str(tmp_path / "out_cluster.tsv"))
    given = prepare(chosen)
    representative, cluster = {}, {}
    for line in (tmp_path / "out_cluster.tsv").read_text().splitlines():
        name, member = line.split("\t")
        cluster[letters_of[member]] = representative.setdefault(name, len(representative))
    recount_splits(tmp_path / "given", given, list(cluster), cluster)
    assert 0.99 < given["clusters"]["found"] / manifest["clusters"]["found"] < 1.01
