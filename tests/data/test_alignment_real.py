"""Real alignments through everything, recounted by readers that share no code with ours.

What is compared with the plain readers is what stands in the shards, taken out of them by `tarfile` and numpy alone.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.alignment_corpus import prepare_alignments
from data.alignments import AlignmentCorpus
from data.manifest import SPLITS
from data.verify_alignments import verify_alignments
from tests.data.alignments import Family, config, plain_a3m, plain_clean, plain_id, plain_stockholm

WHOLE: dict[str, Any] = {"max_rows": 0, "min_depth": 1, "validation_fraction": 0}  # nothing may be left out
GAPS = set(".-_~")


def unpacked(archive: Path, folder: Path) -> list[Path]:
    """The alignments of an archive, all in one folder, as a source is."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    found = [path for path in folder.rglob("*") if path.suffix in (".sto", ".stk", ".a3m")]
    return sorted(path.rename(folder / path.name) for path in found)


def plainly(paths: list[Path]) -> dict[str, Family]:
    """Every alignment of the files by its id."""
    found: dict[str, Family] = {}
    for path in paths:
        families = [plain_a3m(path)] if path.suffix == ".a3m" else plain_stockholm(path)
        for number, family in enumerate(families, 1):
            name = plain_id(family, path, number)
            assert name not in found
            found[name] = family
    return found


def written(corpus: Path) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """Every alignment in the shards of a corpus: its JSON member and its letters."""
    members: dict[str, bytes] = {}
    for shard in sorted(corpus.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    names = [name.removesuffix(".json") for name in members if name.endswith(".json")]
    assert len(members) == 2 * len(names)
    return {
        name: (json.loads(members[f"{name}.json"]), np.load(io.BytesIO(members[f"{name}.msa.npy"]))) for name in names
    }


def recount(families: dict[str, Family], corpus: Path, cleaned: dict[str, list[str]]) -> tuple[int, int]:
    """Compares every alignment, its query row and the multiset of its rows; (alignments, rows) that are there."""
    found, total = written(corpus), 0
    assert found.keys() == families.keys()
    for name, (described, letters) in found.items():
        expected = cleaned[name]
        assert letters.shape == (len(expected), len(expected[0])) == (described["depth"], described["columns"])
        assert letters[0].tobytes().decode() == expected[0]
        assert Counter(row.tobytes().decode() for row in letters) == Counter(expected)
        structure = described["structure"]
        assert (structure is None) == ("SS_cons" not in families[name].marks)
        assert structure is None or len(structure) == letters.shape[1]
        total += len(letters)
    return len(found), total


def prepared(tmp_path: Path, paths: list[Path], **options: Any) -> tuple[dict[str, Any], dict[str, Family]]:
    """(what the manifest says of the source, the families by the plain reader), once the shards were recounted."""
    families = plainly(paths)
    cleaned = {name: plain_clean(family, options.get("query", "first") != "none") for name, family in families.items()}
    source = paths[0] if len(paths) == 1 else paths[0].parent
    manifest = prepare_alignments(config(tmp_path / "corpus", source, **WHOLE, **options))
    (told,) = manifest["sources"]
    given = sum(len(family.rows) for family in families.values())
    assert (told["alignments_read"], told["rows_read"]) == (len(families), given)
    assert not any(told["dropped"].values())
    left = given - told["changed"]["rows_without_letters_removed"]
    assert recount(families, tmp_path / "corpus", cleaned) == (len(families), left)
    assert manifest["splits"]["train"]["rows"] == left
    assert verify_alignments(tmp_path / "corpus").intact
    return told, families


@pytest.fixture(scope="module")
def rfam(shared_data: Path) -> dict[str, Family]:
    return plainly([shared_data / "alignments/Rfam14.2.seed.gz"])


@pytest.fixture(scope="module")
def cleaned(rfam: dict[str, Family]) -> dict[str, list[str]]:
    return {name: plain_clean(family, query=True) for name, family in rfam.items()}


@pytest.mark.slow
def test_whole_rfam_seed(shared_data: Path, tmp_path: Path, rfam: dict, cleaned: dict) -> None:
    """3,026 families with 72,262 rows, one of which has letters only where the query has gaps."""
    seed = shared_data / "alignments/Rfam14.2.seed.gz"
    manifest = prepare_alignments(config(tmp_path / "corpus", seed, **WHOLE))
    (told,) = manifest["sources"]
    assert (told["alignments_read"], told["rows_read"]) == (3026, 72_262)
    assert all(len(family.rows) == int(family.features["SQ"]) for family in rfam.values())
    assert not any(told["dropped"].values())
    assert told["changed"]["rows_without_letters_removed"] == 1
    assert recount(rfam, tmp_path / "corpus", cleaned) == (3026, 72_261)
    assert manifest["splits"]["train"]["columns"] == sum(len(rows[0]) for rows in cleaned.values())
    without_reference = {name for name, family in rfam.items() if "RF" not in family.marks}
    assert without_reference == {"RF00210", "RF01879"}


@pytest.mark.slow
def test_rfam_without_known_structures(shared_data: Path, tmp_path: Path, rfam: dict, cleaned: dict) -> None:
    """A corpus as it is trained on: families of known structure left out, clans never in both splits."""
    seed = shared_data / "alignments/Rfam14.2.seed.gz"
    with tarfile.open(shared_data / "alignments/rfam_3d_seed_alignments.tar.gz") as tar:
        known = {Path(name).stem for name in tar.getnames() if name.endswith(".sto")}
    assert len(known) == 129
    (tmp_path / "known.txt").write_text("\n".join(sorted(known)))
    options = {"exclude": str(tmp_path / "known.txt"), "split_by": "clan", "validation_fraction": 0.05}
    manifest = prepare_alignments(config(tmp_path / "corpus", seed, **options))
    left_out = known & set(rfam)
    assert manifest["sources"][0]["dropped"]["excluded"] == len(left_out) > 100
    clans: dict[str, set[str]] = {}
    seen: set[str] = set()
    letters = 0
    for split in SPLITS:
        corpus = AlignmentCorpus.open(tmp_path / "corpus", split)
        names = corpus.accessions(np.arange(corpus.count))
        assert not seen & set(names)
        seen |= set(names)
        clans[split] = {rfam[name].features.get("CL", name) for name in names}
        for one in corpus.alignments(np.arange(corpus.count)):
            expected = cleaned[one.family]
            assert one.rows([0])[0].tobytes().decode() == expected[0]
            rows = one.rows(np.arange(one.depth))
            assert sorted(map(bytes, rows)) == sorted(row.encode() for row in expected)
            assert "-" not in expected[0]
            assert one.structure is not None
            letters += rows.size
    assert not clans["train"] & clans["validation"]
    assert seen == set(rfam) - left_out
    assert sum(manifest["letters"].values()) == letters
    assert manifest["splits"]["validation"]["alignments"] == round(0.05 * len(seen))
    assert verify_alignments(tmp_path / "corpus").problems == []


@pytest.mark.slow
@pytest.mark.parametrize("query", ["first", "none"])
def test_rfam_3d(shared_data: Path, tmp_path: Path, query: str) -> None:
    """129 families, 13,328 rows: in ten of them a row name occurs twice, which are two rows all the same."""
    files = unpacked(shared_data / "alignments/rfam_3d_seed_alignments.tar.gz", tmp_path / "raw")
    told, families = prepared(tmp_path, files, query=query)
    assert (told["alignments_read"], told["rows_read"]) == (129, 13_328)
    repeated = {name for name, family in families.items() if len({n for n, _ in family.rows}) < len(family.rows)}
    assert len(repeated) == 10
    assert sum(len({name for name, _ in family.rows}) for family in families.values()) == 13_293
    texts = ["".join(row for _, row in family.rows) for family in families.values()]
    assert GAPS & set("".join(texts)) == {".", "-"}
    assert told["changed"]["t_to_u"] > 0
    assert told["changed"]["inserted_letters_removed"] > 0


def test_infernal_dialects(shared_data: Path, tmp_path: Path) -> None:
    """13 alignments, 3,358 rows: nine files interleaved, one with three alignments, two without an RF line."""
    files = unpacked(shared_data / "alignments/infernal_sto.tar.gz", tmp_path / "raw")
    told, families = prepared(tmp_path, files)
    assert (told["alignments_read"], told["rows_read"]) == (13, 3358)
    assert sum("RF" not in family.marks for family in families.values()) == 2


def test_viennarna_seeds(shared_data: Path, tmp_path: Path) -> None:
    told, families = prepared(tmp_path, [shared_data / "alignments/viennarna_rfam_seed_selected.stk.gz"])
    assert (told["alignments_read"], told["rows_read"]) == (4, 1081)
    assert [len(family.rows) for family in families.values()] == [712, 61, 100, 208]


@pytest.mark.slow
def test_rhofold_a3m(shared_data: Path, tmp_path: Path) -> None:
    """16 chains, 23,734 rows spelled with T."""
    told, families = prepared(tmp_path, unpacked(shared_data / "alignments/rhofold_a3m.tar.gz", tmp_path / "raw"))
    assert (told["alignments_read"], told["rows_read"]) == (16, 23_734)
    assert max(len(family.rows) for family in families.values()) == 5335
    letters = Counter("".join(row for family in families.values() for _, row in family.rows))
    assert set(letters) == set("ACGT-")
    assert told["changed"]["t_to_u"] == letters["T"]


def test_trrosetta_a3m(shared_data: Path, tmp_path: Path) -> None:
    """One alignment of 19 rows and 49 columns that mixes T and U."""
    told, families = prepared(tmp_path, [shared_data / "alignments/trrosettarna2_example.a3m"])
    assert (told["alignments_read"], told["rows_read"]) == (1, 19)
    (letters,) = (letters for _, letters in written(tmp_path / "corpus").values())
    assert letters.shape == (19, 49)
    assert told["changed"]["t_to_u"] == 80
    text = "".join(row for family in families.values() for _, row in family.rows)
    assert (text.count("T"), text.count("U")) == (80, 6)
