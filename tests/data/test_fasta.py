"""The FASTA reader, the normaliser and the header tables."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats.fasta import read_fasta
from data.normalise import DROPPED, KEPT, LetterPolicy, Normaliser
from data.rna_types import TYPES, classify
from tests.data.corpora import SHARED


def records(path: Path, chunk_bytes: int = 1 << 20) -> list[tuple[bytes, bytes]]:
    found = []
    for batch in read_fasta(path, chunk_bytes):
        assert batch.first == len(found) + 1
        found += list(zip(batch.headers, (b"".join(body.split()) for body in batch.bodies), strict=True))
    return found


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("compress", [False, True])
def test_odd_but_valid_files(tmp_path: Path, chunk_bytes: int, compress: bool) -> None:
    text = b"\xef\xbb\xbf\r\n\n>a one\r\nACGU\r\n\r\nAC GU\r\n>b caf\xc3\xa9\nacgt\n>\n>c caf\xe9\n\n>d\nA\n\n\nC"
    path = tmp_path / "odd.fa"
    if compress:
        text = text[3:]
        cut = len(text) // 2
        # Blocked gzip is several members; gzip also allows zeros after the last.
        text = gzip.compress(text[:cut]) + gzip.compress(b"") + gzip.compress(text[cut:]) + bytes(100)
    path.write_bytes(text)
    assert records(path, chunk_bytes) == [
        (b"a one", b"ACGUACGU"),
        ("b café".encode(), b"acgt"),
        (b"", b""),
        ("c café".encode("latin-1"), b""),
        (b"d", b"AC"),
    ]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text("ACGU>\n x", max_size=12), max_size=12),
    chunk_bytes=st.integers(1, 40),
)
def test_chunks_never_change_the_records(tmp_path_factory: pytest.TempPathFactory, lines: list[str], chunk_bytes: int):
    path = tmp_path_factory.mktemp("fasta") / "x.fa"
    text = ">first\n" + "\n".join(lines)
    path.write_text(text)
    expected = []
    for line in text.split("\n"):
        if line.startswith(">"):
            expected.append((line[1:].rstrip().encode(), []))
        else:
            expected[-1][1].append(line)
    assert records(path, chunk_bytes) == [
        (header, "".join("".join(body).split()).encode()) for header, body in expected
    ]


PROTEIN = b">p\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ\n" * 20
BAD_FILES = [
    (b"", "empty (0 bytes)"),
    (b"\n\n  \n", "only blank lines"),
    (b"\nACGU\n>a\nACGU\n", "line 2: expected a FASTA header"),
    (b"@read\nACGU\n+\nIIII\n", "FASTQ"),
    (gzip.compress(b">a\nACGU\n" * 5000)[:-20], "was cut"),
    (gzip.compress(b">a\nACGU\n")[:-4] + b"abcd", "damaged"),
    (gzip.compress(b">a\nACGU\n") + b"garbage", "damaged"),
    (gzip.compress(gzip.compress(b">a\nACGU\n")), "gzip inside gzip"),
    (gzip.compress(b""), "only blank lines"),
    (PROTEIN, "protein"),
    (PROTEIN * 60, "protein"),
    (b"BZh91AY", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b">a\rACGU\r>b\rACGU\r", "carriage returns"),
    (">a\nACGU\n".encode("utf-16"), "iconv -f UTF-16"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_are_sentences(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.fa"
    path.write_bytes(text)
    with pytest.raises(DataError) as error:
        records(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.fa", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            records(path)


def test_a_few_odd_records_are_no_protein_file(tmp_path: Path) -> None:
    path = tmp_path / "pdb.fa"
    path.write_bytes(b">a\nACGUPACGU\n" + b">b\nACGUACGUACGU\n" * 3)
    assert len(records(path)) == 4


def test_an_abandoned_reader_ends_its_thread(tmp_path: Path) -> None:
    path = tmp_path / "long.fa"
    path.write_bytes(b">a\nACGU\n" * 10000)
    reader = read_fasta(path, 64)
    next(reader)
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "text-reader"]


def normalise(bodies: list[bytes], **policy: str):
    return Normaliser(LetterPolicy(**policy))(bodies, "test")


def test_normalised_letters_and_counts() -> None:
    result = normalise([b"acgT\nUU\r\n", b"A-C.G \tn", b"--\n", b"", b"ACX", b"AIR"])
    assert result.sequences == [b"ACGUUU", b"ACGN", b"", b"", b"ACX", b"AIR"]
    assert result.lengths.tolist() == [6, 4, 0, 0, 3, 3]
    empty, other = DROPPED["empty"], DROPPED["other_letters"]
    assert result.verdict.tolist() == [KEPT, KEPT, empty, empty, other, KEPT]
    changes = {kind: n for kind, n in result.changes.items() if n}
    assert changes == {"lower_case_to_upper": 4, "t_to_u": 1, "gaps_removed": 4, "blanks_removed": 2}


def test_letter_policies() -> None:
    bodies = [b"ACRN", b"ACI", b"AC*x", b"ACGU", b"XRI"]
    dropped = normalise(bodies, ambiguity="drop", inosine="drop", other_letters="drop")
    names = {code: reason for reason, code in DROPPED.items()} | {KEPT: "kept"}
    assert [names[v] for v in dropped.verdict.tolist()] == [
        "ambiguity",
        "inosine",
        "other_letters",
        "kept",
        "other_letters",
    ]
    replaced = normalise(bodies, ambiguity="N", inosine="N", other_letters="N")
    assert replaced.sequences == [b"ACNN", b"ACN", b"ACNN", b"ACGU", b"NNN"]
    assert not replaced.verdict.any()
    assert {kind: replaced.changes[kind] for kind in ("ambiguity_to_n", "inosine_to_n", "other_letters_to_n")} == {
        "ambiguity_to_n": 2,  # the N that was there did not change
        "inosine_to_n": 2,
        "other_letters_to_n": 3,
    }


def test_nul_bytes_are_refused() -> None:
    with pytest.raises(DataError, match="NUL"):
        normalise([b"AC\0GU"])


@pytest.mark.parametrize(
    ("header", "accession", "rna_type"),
    [
        ("URS00008314B2 rRNA from 13 species", "URS00008314B2", "rRNA"),
        ("URS00006589D0 hammerhead_ribozyme from 11 species", "URS00006589D0", "hammerhead_ribozyme"),
        ("URS000075BAAE_9606 Homo sapiens RNA, U5A small nuclear 1 (RNU5A-1)", "URS000075BAAE_9606", "snRNA"),
        ("URS0000005270_10090 5.8S ribosomal RNA from Mus musculus (PDB 6SWA)", "URS0000005270_10090", "rRNA"),
        ("URS0000D68E37_658082/1-81", "URS0000D68E37_658082/1-81", "unknown"),
        ("rfam14.2_seed|X01556.1/3-118|RF00001:Gene;rRNA;", "X01556.1/3-118", "rRNA"),
        ("rfam14.2_seed|A/1-9|RF00012:Gene;snRNA;snoRNA;CD-box;", "A/1-9", "snoRNA"),
        ("rfam14.2_seed|A/1-9|RF00012:Gene;", "A/1-9", "unknown"),
        ("rfam3d_seed|A/1-9|RF00174", "A/1-9", "unknown"),
        ("rnacentral_active|URS0000000001|misc_RNA", "URS0000000001", "misc_RNA"),
        ("mirbase_mature|cel-let-7-5p|", "cel-let-7-5p", "miRNA"),
        ("gtrnadb|hsa_Homo_sapiens_tRNA-Ala-AGC-1-1|", "hsa_Homo_sapiens_tRNA-Ala-AGC-1-1", "tRNA"),
        ("other|17|", "other|17", "unknown"),
        ("cel-let-7-5p MIMAT0000001 Caenorhabditis elegans let-7-5p", "cel-let-7-5p", "miRNA"),
        ("cel-let-7 MI0000001 Caenorhabditis elegans let-7 stem-loop", "cel-let-7", "pre_miRNA"),
        ("hsa_Homo_sapiens_tRNA-iMet-CAT-1-1", "hsa_Homo_sapiens_tRNA-iMet-CAT-1-1", "tRNA"),
        ("RF00001_AF095839_1_346-228 5S_rRNA", "RF00001_AF095839_1_346-228", "rRNA"),
        ("RF00028_AJ409371_1_1-403 Intron_gpI", "RF00028_AJ409371_1_1-403", "autocatalytically_spliced_intron"),
        ("ENST1.1 ncrna chromosome:GRCh38:1:1:9:1 gene_biotype:lncRNA transcript_biotype:snRNA", "ENST1.1", "snRNA"),
        ("NR_1.1 Homo sapiens long non-coding RNA", "NR_1.1", "lncRNA"),
        ("L1S105.273315_0 HWI-EAS440_0386:1:25:1401", "L1S105.273315_0", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_headers(header: str, accession: str, rna_type: str) -> None:
    name, type_id = classify(header.encode())
    assert (name.decode(), TYPES[type_id]) == (accession, rna_type)


def test_type_vocabulary_is_fixed() -> None:
    # Ids lie in corpora that exist: names may be added at the end only.
    assert TYPES[:7] == ("unknown", "rRNA", "tRNA", "tmRNA", "miRNA", "pre_miRNA", "snoRNA")
    assert len(set(TYPES)) == len(TYPES) == 40


@pytest.mark.skipif(not SHARED.exists(), reason="the shared test data are not here")
@pytest.mark.parametrize(
    ("name", "count", "nucleotides", "expected"),
    [
        ("rnacentral_active_sample1400.fasta", 1400, 267_279, {"rRNA": 50, "Y_RNA": 50, "unknown": 0}),
        ("mirbase_v22_mature.fa.gz", 48_885, None, {"miRNA": 48_885}),
        ("gtrnadb_mature_like_tRNA.fa.gz", 13_634, None, {"tRNA": 13_634}),
        ("nrc_train_6320_13classes.fasta.gz", 6320, None, {"rRNA": 1000, "snoRNA": 1000, "IRES": 320, "unknown": 0}),
    ],
)
def test_real_files(name: str, count: int, nucleotides: int | None, expected: dict[str, int]) -> None:
    found = records(SHARED / "sequences" / name)
    assert len(found) == count
    if nucleotides is not None:
        assert sum(len(letters) for _, letters in found) == nucleotides
    types = [TYPES[classify(header)[1]] for header, _ in found]
    assert {rna_type: types.count(rna_type) for rna_type in expected} == expected
