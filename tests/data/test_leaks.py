"""Sequences that resemble a benchmark: found on both strands, dropped or reported, and written down."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.errors import DataError
from data.prepare_config import ClusterConfig, ExcludeConfig
from data.verify import verify
from tests.data.clustered import needs_mmseqs, splits
from tests.data.corpora import config, content, random_sequences, write_fasta
from tests.data.test_duplicates import reverse

pytestmark = needs_mmseqs


def mutated(sequence: str, share: float, seed: int) -> str:
    generator = np.random.default_rng(seed)
    letters = list(sequence)
    for place in generator.choice(len(letters), int(len(letters) * share), replace=False):
        letters[place] = generator.choice([letter for letter in "ACGU" if letter != letters[place]])
    return "".join(letters)


BENCHMARK = random_sequences(6, seed=77, shortest=120, longest=200)
OTHERS = random_sequences(200, seed=78, shortest=60, longest=200)
LEAKS = {
    "same": BENCHMARK[0],
    "strand": reverse(BENCHMARK[1]),
    "similar": mutated(BENCHMARK[2], 0.05, 1),
    "similar-strand": reverse(mutated(BENCHMARK[2], 0.06, 2)),
    "inside": OTHERS[0] + BENCHMARK[3] + OTHERS[1],  # the benchmark's is the shorter one
    "piece": BENCHMARK[4][20:90],
}
DISTANT = {"distant": mutated(BENCHMARK[5], 0.3, 3), "half": BENCHMARK[5][:60] + OTHERS[2][:60]}


def inputs(tmp_path: Path, benchmark: list[str] = BENCHMARK) -> tuple[Path, Path]:
    fasta = write_fasta(tmp_path / "corpus.fa", OTHERS, names="other")
    with open(fasta, "a") as file:
        file.writelines(f">{name}\n{sequence}\n" for name, sequence in {**LEAKS, **DISTANT}.items())
    (tmp_path / "benchmark.fa.gz").write_bytes(
        gzip.compress("".join(f">b{i} x\n{s.lower()}\n" for i, s in enumerate(benchmark)).replace("u", "t").encode())
    )
    return fasta, tmp_path / "benchmark.fa.gz"


def listed(path: Path) -> dict[str, dict[str, str]]:
    with open(path / "excluded.tsv") as file:
        return {row["accession"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_what_resembles_is_dropped_counted_and_listed(tmp_path: Path) -> None:
    fasta, benchmark = inputs(tmp_path)
    chosen = config(tmp_path / "corpus", fasta, exclude=[ExcludeConfig(str(benchmark))])
    manifest = prepare(chosen)
    found = {name for pairs in splits(tmp_path / "corpus").values() for _, name in pairs}
    assert found == {f"other{i}" for i in range(200)} | set(DISTANT)
    rows = listed(tmp_path / "corpus")
    assert set(rows) == set(LEAKS)
    assert rows["same"] == {
        "accession": "same",
        "benchmark": "b0",
        "identity": "1.000",
        "coverage": "1.000",
        "action": "drop",
        "fasta": "benchmark.fa.gz",
    }
    assert rows["similar"]["benchmark"] == rows["similar-strand"]["benchmark"] == "b2"
    assert 0.9 < float(rows["similar"]["identity"]) < 1
    assert (rows["strand"]["benchmark"], rows["inside"]["benchmark"], rows["piece"]["benchmark"]) == ("b1", "b3", "b4")
    (entry,) = manifest["exclude"]
    assert (entry["sequences"], entry["benchmark_sequences"], entry["benchmark_sequences_resembled"]) == (6, 6, 5)
    assert entry["fasta"]["name"] == "benchmark.fa.gz"
    assert manifest["sources"][0]["dropped"]["excluded"] == 6
    assert verify(tmp_path / "corpus").problems == []


def test_report_keeps_the_sequences_and_lists_them(tmp_path: Path) -> None:
    fasta, benchmark = inputs(tmp_path)
    entries = [ExcludeConfig(str(benchmark), action="report"), ExcludeConfig(str(benchmark), identity=0.99)]
    chosen = config(tmp_path / "corpus", fasta, exclude=entries[:1])
    manifest = prepare(chosen)
    assert sum(split["sequences"] for split in manifest["splits"].values()) == 208
    assert set(listed(tmp_path / "corpus")) == set(LEAKS)
    assert manifest["sources"][0]["dropped"]["excluded"] == 0
    assert verify(tmp_path / "corpus").problems == []
    both = prepare(config(tmp_path / "both", fasta, exclude=entries))
    assert [entry["sequences"] for entry in both["exclude"]] == [6, 4]
    assert both["sources"][0]["dropped"]["excluded"] == 4  # similar ones are reported, equal ones dropped
    assert verify(tmp_path / "both").problems == []


def test_coverage_counts_the_shorter_sequence(tmp_path: Path) -> None:
    fasta, benchmark = inputs(tmp_path)
    prepare(config(tmp_path / "corpus", fasta, exclude=[ExcludeConfig(str(benchmark), coverage=0.3)]))
    assert set(listed(tmp_path / "corpus")) == {*LEAKS, "half"}


def test_very_short_sequences_are_found_by_identity(tmp_path: Path) -> None:
    short = ["ACGUACGGUUACG", "GGGAAACCCUUUA"]
    fasta = write_fasta(tmp_path / "x.fa", [*short, reverse(short[0])[:-1], *OTHERS[:50]])
    (tmp_path / "b.fa").write_text(f">a\n{reverse(short[0])}\n>b\n{short[1]}\n")
    chosen = config(tmp_path / "corpus", fasta, min_length=10, exclude=[ExcludeConfig(str(tmp_path / "b.fa"), 1, 1)])
    for strands in ("keep", "merge"):
        chosen.reverse_complement, chosen.output = strands, str(tmp_path / strands)
        prepare(chosen)
        assert {"s0", "s1"} <= set(listed(tmp_path / strands)) <= {"s0", "s1", "s2"}


def test_exclusion_does_not_change_the_clusters_and_keeps_the_rest_whole(tmp_path: Path) -> None:
    fasta, benchmark = inputs(tmp_path)
    doubled = write_fasta(tmp_path / "again.fa", [LEAKS["same"], *OTHERS[:5]], names="again")
    chosen = config(tmp_path / "plain", fasta, doubled, validation_fraction=0.1)
    chosen.clusters = ClusterConfig("mmseqs")
    plain = prepare(chosen)
    chosen.output, chosen.exclude = str(tmp_path / "excluded"), [ExcludeConfig(str(benchmark))]
    excluded = prepare(chosen)
    assert content(tmp_path / "plain")["clustering.npy"] == content(tmp_path / "excluded")["clustering.npy"]
    assert excluded["clusters"]["found"] == plain["clusters"]["found"]
    assert [source["dropped"]["duplicate"] for source in excluded["sources"]] == [0, 6]
    assert sum(split["duplicates"] for split in excluded["splits"].values()) == 5  # one belonged to a dropped sequence
    assert verify(tmp_path / "excluded").problems == []


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "empty"), (b"ACGU\n", "FASTA header"), (b"@r\nA\n+\nI\n", "FASTQ")]
)
def test_bad_benchmarks_are_sentences(tmp_path: Path, text: bytes, message: str) -> None:
    fasta, _ = inputs(tmp_path)
    (tmp_path / "bad.fa").write_bytes(text)
    with pytest.raises(DataError, match=message) as error:
        prepare(config(tmp_path / "corpus", fasta, exclude=[ExcludeConfig(str(tmp_path / "bad.fa"))]))
    assert "bad.fa" in str(error.value)
