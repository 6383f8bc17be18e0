"""Splits by Rfam family, listed families, and where a family is read from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.corpus import prepare
from data.errors import DataError
from data.prepare_config import ClusterConfig
from data.rna_types import TYPES, classify, rfam_family
from data.verify import verify
from tests.data.clustered import families_of, splits, write_families, write_table
from tests.data.corpora import SHARED, config
from tests.data.test_fasta import records


@pytest.mark.parametrize(
    ("header", "family"),
    [
        ("rfam14.2_seed|X01556.1/3-118|RF00001:Gene;rRNA;", 1),
        ("rfam3d_seed|A/1-9|RF00174", 174),
        ("RF00028_AJ409371_1_1-403 Intron_gpI", 28),
        ("RF00001;5S_rRNA;X01556.1/3-118", 1),
        ("URS0000000001 rRNA RF00177 from 3 species", 177),
        ("URS00RF00001 rRNA", 0),
        ("RF000011_x", 0),
        ("PRF00001:x", 0),
    ],
)
def test_families_in_headers(header: str, family: int) -> None:
    assert rfam_family(header.encode()) == family


FAMILIES = families_of(30, 5, seed=8)


def family_of(name: str) -> str:
    return name[:7]


def corpus_of_families(tmp_path: Path, **options):
    fasta = write_families(tmp_path / "f.fa", FAMILIES, "RF{family:05d}_{member}")
    chosen = config(tmp_path / "corpus", fasta, **{"validation_fraction": 0.1, "split_by": "family", **options})
    return chosen, fasta


def test_no_family_is_on_both_sides(tmp_path: Path) -> None:
    chosen, _ = corpus_of_families(tmp_path)
    manifest = prepare(chosen)
    found = {split: {family_of(name) for _, name in pairs} for split, pairs in splits(tmp_path / "corpus").items()}
    assert found["train"] & found["validation"] <= {"RF00000"}
    # Family 0 is no accession of Rfam, so its five members are units of their own.
    assert manifest["split"]["units"] == 29 + 5
    assert manifest["splits"]["validation"]["sequences"] in (14, 15)
    assert verify(tmp_path / "corpus").intact


def test_listed_families_take_their_clusters_and_those_clusters_families_along(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("# held out\nRF00003  # and why\n\nRF00007\n")
    chosen, fasta = corpus_of_families(tmp_path, held_out=str(tmp_path / "held.txt"))
    manifest = prepare(chosen)
    assert {family_of(name) for _, name in splits(tmp_path / "corpus")["validation"]} == {"RF00003", "RF00007"}
    assert manifest["split"]["held_out"] == {"families": ["RF00003", "RF00007"], "taken_along": []}

    lines = write_table(tmp_path / "t.tsv", FAMILIES).read_text()
    for f in range(30):
        for m in range(5):
            lines = lines.replace(f"f{f}m{m}\n", f"RF{f:05d}_{m}\n")
    lines = lines.replace("f12m0\tRF00012_4\n", "f7m0\tRF00012_4\n")  # a member of 12 in the cluster of 7
    (tmp_path / "t.tsv").write_text(lines)
    chosen.clusters = ClusterConfig("table", table=str(tmp_path / "t.tsv"))
    chosen.output = str(tmp_path / "clustered")
    manifest = prepare(chosen)
    held_out = Counter(family_of(name) for _, name in splits(tmp_path / "clustered")["validation"])
    assert held_out == {"RF00003": 5, "RF00007": 5, "RF00012": 5}
    assert manifest["split"]["held_out"]["taken_along"] == ["RF00012"]
    assert fasta.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RF1\n", "line 1: 'RF1' is no Rfam family"),
        ("\nRF09999\n", "line 2: no sequence of the corpus is of family RF09999"),
        ("# nothing\n", "lists no family"),
    ],
)
def test_bad_lists_are_sentences(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "held.txt").write_text(text)
    chosen, _ = corpus_of_families(tmp_path, held_out=str(tmp_path / "held.txt"))
    with pytest.raises(DataError, match=message):
        prepare(chosen)


def test_a_file_named_after_its_family(tmp_path: Path) -> None:
    for f in range(1, 20):
        write_families(tmp_path / "rfam" / f"RF{f:05d}.fa", [FAMILIES[f]], f"x{f}-{{member}}")
    prepare(config(tmp_path / "corpus", tmp_path / "rfam", split_by="family", validation_fraction=0.2))
    found = [{name.split("-")[0] for _, name in pairs} for pairs in splits(tmp_path / "corpus").values()]
    assert not found[0] & found[1]
    assert len(found[1]) == 3


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared test data are not here")
def test_rfam_types_and_families_of_the_real_corpus() -> None:
    """Every Rfam record says its family, and the type that Rfam's own words for it mean."""
    types, families = Counter(), Counter()
    for header, _ in records(SHARED / "corpus" / "real_ncrna_distinct.fasta.gz"):
        if not header.startswith(b"rfam"):
            continue
        words = header.decode().split("|")[2]
        families[rfam_family(header) > 0] += 1
        kind = TYPES[classify(header)[1]]
        types[kind] += 1
        for word, expected in (
            (";tRNA;", "tRNA"),
            (";miRNA;", "miRNA"),
            (";riboswitch;", "riboswitch"),
            (";IRES;", "IRES"),
            (";CRISPR;", "CRISPR_RNA"),
            (";snoRNA;", "snoRNA"),
            (";sRNA;", "sRNA"),
        ):
            if words.endswith(word):
                assert kind == expected, header
        if words.endswith((";CD-box;", ";HACA-box;")):
            assert kind == "snoRNA", header
    assert families == {True: 65_591 + 1_632}
    assert types["unknown"] < 0.25 * sum(types.values())
