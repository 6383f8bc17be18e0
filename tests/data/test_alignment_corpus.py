"""Corpora of alignments: what is in the shards, what is read of them, splits, filters, and equal bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data.alignment_config import AlignmentSource, load_alignment_config
from data.alignment_corpus import prepare_alignments
from data.alignment_scan import shuffled
from data.alignment_shards import PAGE
from data.alignments import AlignmentCorpus
from data.errors import DataError
from data.index import Corpus
from data.manifest import SPLITS, read_manifest
from data.mixture import Mixture
from data.order import Order
from data.staging import Staged
from data.verify import verify
from data.verify_alignments import verify_alignments
from tests.data.alignments import (
    Family,
    config,
    many_families,
    plain_clean,
    random_family,
    small_alignments,
    write_stockholm,
)
from tests.data.corpora import content, small_corpus


def everything(path: Path) -> dict[str, tuple[str, list[str], str | None]]:
    """family -> (split, all rows, structure)."""
    found = {}
    for split in SPLITS:
        if read_manifest(path)["splits"][split]["alignments"]:
            corpus = AlignmentCorpus.open(path, split)
            for one in corpus.alignments(np.arange(corpus.count)):
                assert one.family not in found
                rows = [row.tobytes().decode() for row in one.rows(np.arange(one.depth))]
                found[one.family] = (split, rows, one.structure)
    return found


def test_round_trip(tmp_path: Path) -> None:
    families = many_families(40)
    path = small_alignments(tmp_path, 40, validation_fraction=0.1)
    found = everything(path)
    assert sorted(found) == sorted(family.features["AC"] for family in families)
    for family in families:
        _, rows, structure = found[family.features["AC"]]
        expected = plain_clean(family, query=True)
        assert rows[0] == expected[0]
        assert sorted(rows) == sorted(expected)
        assert structure is not None
        assert len(structure) == len(rows[0])
    assert sum(split == "validation" for split, _, _ in found.values()) == 4
    report = verify_alignments(path)
    assert report.problems == []
    assert (report.alignments, report.rows) == (40, sum(len(rows) for _, rows, _ in found.values()))
    corpus = AlignmentCorpus.open(path)
    ids = np.arange(corpus.count)
    assert corpus.lengths.tolist() == [one.columns for one in corpus.alignments(ids)]
    assert corpus.depths.tolist() == [one.depth for one in corpus.alignments(ids)]
    assert {corpus.type_names[t] for t in corpus.types(ids).tolist()} == {"tRNA"}
    assert corpus.accessions(ids) == [one.described["family"] for one in corpus.alignments(ids)]
    assert corpus.alignments([0])[0].described["query"] == "s0/1-9"
    one = corpus.alignments([3])[0]
    assert one.rows([one.depth - 1, 0, 0]).shape == (3, one.columns)
    assert one.rows([]).shape == (0, one.columns)
    partner = one.partners
    assert partner is not None
    paired = np.flatnonzero(partner >= 0)
    assert np.array_equal(partner[partner[paired]], paired)


def test_plain_webdataset_and_tar_read_it(tmp_path: Path) -> None:
    path = small_alignments(tmp_path)
    corpus = AlignmentCorpus.open(path)
    urls = [str(path / shard["name"]) for shard in corpus.manifest["shards"] if shard["split"] == "train"]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == corpus.accessions(np.arange(corpus.count))
    for sample, one in zip(samples, corpus.alignments(np.arange(corpus.count)), strict=True):
        letters = np.load(io.BytesIO(sample["msa.npy"]), allow_pickle=False)
        assert np.array_equal(letters, one.rows(np.arange(one.depth)))
        described = json.loads(sample["json"])
        assert (described["depth"], described["columns"], described["source"]) == (*letters.shape, "source0")
    with tarfile.open(urls[0]) as tar:
        assert {(member.mtime, member.type) for member in tar} == {(0, tarfile.REGTYPE)}


def test_rows_are_shuffled_by_family_and_cut(tmp_path: Path) -> None:
    letters = np.arange(1000, dtype=np.uint8)[:, None] % 251
    order = shuffled(np.arange(1000)[:, None].astype(np.uint8), 0, "RF00001", 0)
    assert order.shape == (1000, 1)
    assert np.array_equal(shuffled(letters, 0, "a", 50), shuffled(letters, 0, "a", 0)[:50])
    assert not np.array_equal(shuffled(letters, 0, "a", 0), shuffled(letters, 0, "b", 0))
    assert not np.array_equal(shuffled(letters, 0, "a", 0), shuffled(letters, 1, "a", 0))
    assert shuffled(letters, 0, "a", 0)[0] == letters[0]
    wide = np.arange(1000, dtype=np.uint16)[:, None].view(np.uint8)  # two bytes tell all rows apart
    places = shuffled(wide, 0, "a", 0).view(np.uint16)[:, 0]
    assert sorted(places.tolist()) == list(range(1000))
    assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1
    source = write_stockholm(tmp_path / "deep.sto", [random_family(1, depth=300), random_family(2, depth=20)])
    manifest = prepare_alignments(config(tmp_path / "c", source, max_rows=100, validation_fraction=0))
    assert manifest["sources"][0]["changed"]["rows_not_stored"] == 200
    assert sorted(AlignmentCorpus.open(tmp_path / "c").depths.tolist()) == [20, 100]


def test_rows_read_and_check_only_their_pages(tmp_path: Path) -> None:
    family = random_family(1, depth=2000, columns=100, gaps=0)
    prepare_alignments(
        config(tmp_path / "c", write_stockholm(tmp_path / "a.sto", [family]), columns="all", validation_fraction=0)
    )
    shard = next((tmp_path / "c").glob("*.tar"))
    corpus = AlignmentCorpus.open(tmp_path / "c")
    pages = -(-shard.stat().st_size // PAGE)
    assert pages > 40
    one = corpus.alignments([0])[0]
    assert (one.depth, one.columns, corpus.pages.pages_checked(0)) == (2000, 100, 0)  # nothing was read yet
    first = one.rows([0])
    assert corpus.pages.pages_checked(0) <= 2
    several = one.rows([1990, 3, 1000])
    assert corpus.pages.pages_checked(0) <= 2 + 2 * 3
    whole = one.rows(np.arange(2000))
    assert np.array_equal(whole[[1990, 3, 1000]], several)
    assert np.array_equal(whole[:1], first)
    assert corpus.pages.pages_checked(0) >= pages - 4
    corpus.close()
    # Damage elsewhere does not disturb what is not read; damage in a row that is read is an error.
    raw = bytearray(shard.read_bytes())
    raw[100_000] ^= 1  # about row 990
    shard.write_bytes(raw)
    damaged = AlignmentCorpus.open(tmp_path / "c").alignments([0])[0]
    assert np.array_equal(damaged.rows([0, 1, 1990]), whole[[0, 1, 1990]])
    with pytest.raises(DataError, match=r"train-000000\.tar: the 4096 bytes from 98304 on do not match"):
        damaged.rows(np.arange(960, 1000))
    assert any("page 24" in problem for problem in verify_alignments(tmp_path / "c").problems)


def test_what_the_order_and_the_mixture_need(tmp_path: Path) -> None:
    corpus = AlignmentCorpus.open(small_alignments(tmp_path))
    order = Order(corpus.block_counts, 0, 4)
    epoch = np.concatenate([order.step(step)[1] for step in range(corpus.count // 4)])
    assert len(np.unique(epoch)) == len(epoch)
    mixture = Mixture({"only": corpus}, [1.0], 0, 4)  # type: ignore[dict-item]
    assert mixture.fingerprint == corpus.fingerprint
    assert np.array_equal(mixture.lengths[np.arange(5)], corpus.lengths[:5])


def test_splits_by_family_and_clan(tmp_path: Path) -> None:
    source = write_stockholm(tmp_path / "a.sto", many_families(60, clan_of=4))
    clan_of = {f.features["AC"]: f.features["CL"] for f in many_families(60, clan_of=4)}
    for split_by in ("family", "clan"):
        path = tmp_path / split_by
        manifest = prepare_alignments(config(path, source, split_by=split_by, validation_fraction=0.2))
        sides: dict[str, set[str]] = {split: set() for split in SPLITS}
        for family, (split, _, _) in everything(path).items():
            sides[split].add(family)
        assert not sides["train"] & sides["validation"]
        assert len(sides["train"] | sides["validation"]) == 60
        clans = [{clan_of[family] for family in sides[split]} for split in SPLITS]
        assert bool(clans[0] & clans[1]) == (split_by == "family")
        assert manifest["split"]["units"] == (60 if split_by == "family" else 16)
        assert 9 <= len(sides["validation"]) <= 12
        assert verify_alignments(path).problems == []
    # The same clans from a file, by names and by accessions, where the alignments themselves do not tell them.
    bare = write_stockholm(tmp_path / "bare.sto", many_families(60))
    lines: dict[str, list[str]] = {}
    for i, (family, clan) in enumerate(clan_of.items()):
        lines.setdefault(clan, []).append(family if i % 2 else f"name_{int(family[2:])}")
    (tmp_path / "Rfam.clanin").write_text("".join(f"{clan}\t{' '.join(some)}\n" for clan, some in lines.items()))
    options = {"split_by": "clan", "validation_fraction": 0.2, "clans": str(tmp_path / "Rfam.clanin")}
    prepare_alignments(config(tmp_path / "by-file", bare, **options))
    chosen = [{f for f, (split, _, _) in everything(tmp_path / name).items() if split == "validation"}
              for name in ("clan", "by-file")]  # fmt: skip
    assert chosen[0] == chosen[1]


def test_listed_families(tmp_path: Path) -> None:
    source = write_stockholm(tmp_path / "a.sto", many_families(20, clan_of=4))
    (tmp_path / "out.txt").write_text("# with known structures\nRF00003\t1abc\nname_7\nRF09999 elsewhere\n")
    (tmp_path / "held.txt").write_text("RF00001\nname_12  # and its clan\n")
    options = {"exclude": str(tmp_path / "out.txt"), "held_out": str(tmp_path / "held.txt")}
    manifest = prepare_alignments(config(tmp_path / "c", source, **options))
    found = everything(tmp_path / "c")
    assert len(found) == 18
    assert not {"RF00003", "RF00007"} & set(found)
    assert manifest["sources"][0]["dropped"]["excluded"] == 2
    assert {f for f, (split, _, _) in found.items() if split == "validation"} == {"RF00001", "RF00012"}
    prepare_alignments(config(tmp_path / "by-clan", source, split_by="clan", **options))
    held = {f for f, (split, _, _) in everything(tmp_path / "by-clan").items() if split == "validation"}
    assert held == {"RF00001", "RF00002", "RF00012", "RF00013", "RF00014", "RF00015"}
    for key, text, message in (
        ("exclude", "RF09999\n", "none of its families is in the sources"),
        ("held_out", "RF00001\n\nRF09999\n", "line 3: no alignment of the corpus is of family RF09999"),
        ("held_out", "# nothing\n", "lists no family"),
        ("clans", "CL00001\n", "line 1: expected a clan and its families"),
        ("clans", "CL1 a b\nCL2 b\n", "line 2: b is in clan CL2 and in CL1"),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            prepare_alignments(config(tmp_path / "bad", source, **{key: str(tmp_path / "list.txt")}))
        assert not (tmp_path / "bad").exists()
        assert not (tmp_path / ".bad.partial").exists()


def test_filters_duplicates_and_names(tmp_path: Path) -> None:
    families = [random_family(1), random_family(2, columns=9), random_family(3, columns=300), random_family(4, depth=1)]
    write_stockholm(tmp_path / "in" / "a.sto", families)
    again = random_family(1, columns=50)  # the same family once more, with other columns
    write_stockholm(tmp_path / "in" / "b.sto", [again, random_family(5)])
    (tmp_path / "in" / "1abc_A.v2.a3m").write_text(">q\nACGUACGUACGU\n>r\nACGUACG-ACGU\n")
    (tmp_path / "in" / "notes.txt").write_text("not read")
    nameless = Family(random_family(6).rows)
    write_stockholm(tmp_path / "in" / "c.sto", [nameless, nameless])
    options: dict[str, Any] = {"min_columns": 10, "max_columns": 200, "validation_fraction": 0}
    manifest = prepare_alignments(config(tmp_path / "c", tmp_path / "in", **options))
    assert set(everything(tmp_path / "c")) == {"RF00001", "RF00005", "1abc_A_v2", "c", "c-2"}
    told = manifest["sources"][0]
    assert told["dropped"] == {"excluded": 0, "duplicate": 1, "too_narrow": 1, "too_wide": 1, "too_shallow": 1}
    assert told["first_dropped"]["duplicate"] == "b.sto, alignment 1 (RF00001)"
    assert len(everything(tmp_path / "c")["RF00001"][1][0]) < 40  # the first one read stayed
    assert [file["name"] for file in told["files"]] == ["1abc_A.v2.a3m", "a.sto", "b.sto", "c.sto"]


@pytest.mark.parametrize("query", ["first", "random", "none"])
def test_equal_bytes_however_the_families_lie_on_disk(tmp_path: Path, query: str) -> None:
    families = many_families(30)
    together = write_stockholm(tmp_path / "all.sto", families)
    for i in np.random.default_rng(0).permutation(30).tolist():  # created in another order, one file each
        write_stockholm(tmp_path / "each" / f"f{i % 7}{i}.sto", [families[i]], width=i % 11)
    options: dict[str, Any] = {"shard_megabytes": 1, "query": query}
    first = prepare_alignments(config(tmp_path / "a", together, **options))
    other = config(tmp_path / "b", tmp_path / "each", **options)
    second = prepare_alignments(other)
    assert first["fingerprint"] == second["fingerprint"]
    shards = [shard["name"] for shard in first["shards"]]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in shards)
    other.overwrite = True
    before = content(tmp_path / "b")
    prepare_alignments(other)
    assert content(tmp_path / "b") == before
    reseeded = prepare_alignments(config(tmp_path / "d", together, seed=1, query=query))
    assert reseeded["fingerprint"] != first["fingerprint"]
    assert set(everything(tmp_path / "d")) == set(everything(tmp_path / "a"))


def test_shards_close_at_their_size(tmp_path: Path) -> None:
    families = [random_family(n, depth=3000, columns=100, gaps=0) for n in range(1, 8)]  # 0.3 MB each
    source = write_stockholm(tmp_path / "a.sto", families)
    options: dict[str, Any] = {"shard_megabytes": 1, "columns": "all", "validation_fraction": 0.2}
    manifest = prepare_alignments(config(tmp_path / "c", source, **options))
    assert [shard["alignments"] for shard in manifest["shards"]] == [3, 3, 1]
    assert all(shard["bytes"] <= 10**6 for shard in manifest["shards"])
    assert len(everything(tmp_path / "c")) == 7


def test_a_replaced_corpus_is_never_taken_for_a_finished_build(tmp_path: Path) -> None:
    """A kill right after publishing leaves the corpus that was replaced where a finished build would lie."""
    old = config(tmp_path / "c", write_stockholm(tmp_path / "a.sto", many_families(5)), validation_fraction=0)
    prepare_alignments(old)
    kept = content(tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / "aside")
    new = config(tmp_path / "c", write_stockholm(tmp_path / "b.sto", many_families(6)), validation_fraction=0)
    prepare_alignments(new)
    expected = content(tmp_path / "c")
    from data.alignment_config import files_of, identity_key

    partial = tmp_path / ".c.partial"
    partial.mkdir()
    (partial / "job.json").write_text(identity_key(new, [files_of(source) for source in new.sources]))
    (partial / "finished").write_text("0" * 64)
    (tmp_path / "aside").rename(partial / "built")
    assert content(partial / "built") == kept
    new.overwrite = True
    prepare_alignments(new)
    assert content(tmp_path / "c") == expected


def test_staged_shards_are_read_when_they_are_there(tmp_path: Path) -> None:
    path = small_alignments(tmp_path, 40, validation_fraction=0.1)
    with Staged.open(path, tmp_path / "cache") as staged:
        there = AlignmentCorpus.open(staged.path, "validation", shards=staged.locate)
        found = {one.family: one.rows([0]).tobytes() for one in there.alignments(np.arange(there.count))}
    here = AlignmentCorpus.open(path, "validation")
    assert found == {one.family: one.rows([0]).tobytes() for one in here.alignments(np.arange(here.count))}


def test_wrong_questions(tmp_path: Path) -> None:
    path = small_alignments(tmp_path)
    corpus = AlignmentCorpus.open(path)
    with pytest.raises(DataError, match=r"alignment 39 is not in the train split, which has 39"):
        corpus.alignments([39])
    shallow = corpus.alignments([int(np.argmin(corpus.depths))])[0]
    with pytest.raises(DataError, match="row 2 is not in the alignment"):
        shallow.rows([0, 2])
    with pytest.raises(DataError, match="there is no split 'test'"):
        AlignmentCorpus.open(path, "test")
    corpus.close()
    with pytest.raises(DataError, match="was closed"):
        corpus.alignments([0])
    with pytest.raises(DataError, match="is a corpus of sequences, alignments were expected"):
        AlignmentCorpus.open(small_corpus(tmp_path / "sequences"))
    with pytest.raises(DataError):
        Corpus.open(path)
    assert verify(path).problems  # as a corpus of sequences it is none
    assert verify_alignments(tmp_path / "sequences/corpus").problems
    prepare_alignments(config(tmp_path / "whole", tmp_path / "a.sto", validation_fraction=0))
    with pytest.raises(DataError, match="the validation split is empty"):
        AlignmentCorpus.open(tmp_path / "whole", "validation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "some"}, "columns is 'some', expected one of rf, gaps, all"),
        ({"query": "best"}, "query is 'best'"),
        ({"split_by": "cluster"}, "split_by is 'cluster', expected one of family, clan"),
        ({"max_gaps": 1.5}, "max_gaps is 1.5"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"min_depth": 0}, "min_depth is 0"),
        ({"max_rows": 1}, "max_rows is 1"),
        ({"max_columns": 5, "min_columns": 6}, "max_columns is 5"),
        ({"exclude": "nowhere.txt"}, "exclude: nowhere.txt does not exist"),
        ({"sources": []}, "sources is empty"),
        ({"sources": [AlignmentSource("a", "x.sto", "clustal")]}, r"sources\[0\].format is 'clustal'"),
        ({"sources": [AlignmentSource("a", "x.sto", type="tRNa")]}, "did you mean 'tRNA'"),
        ({"kind": "sequences"}, "kind is 'sequences'"),
        ({"min_columns": 100}, "no alignment is left after filtering"),
        ({"min_columns": 30, "validation_fraction": 0.9999}, "the train split would be empty"),
    ],
)
def test_config_mistakes(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    chosen = config(tmp_path / "c", write_stockholm(tmp_path / "a.sto", many_families(4, gaps=0)))
    for key, value in options.items():
        setattr(chosen, key, value)
    with pytest.raises(DataError, match=message):
        prepare_alignments(chosen)
    assert not (tmp_path / "c").exists()


def test_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("kind: alignments\nname: x\nsources:\n- {name: a, path: b.sto}\nquery: none\n")
    loaded = load_alignment_config(tmp_path / "c.yaml", ["seed=3", "sources.0.type=tRNA"])
    assert (loaded.query, loaded.seed, loaded.sources[0].type, loaded.min_depth) == ("none", 3, "tRNA", 2)
    (tmp_path / "c.yaml").write_text("kind: alignments\nname: x\nmin_dept: 3\n")
    with pytest.raises(DataError, match="nearest valid key is min_depth"):
        load_alignment_config(tmp_path / "c.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file named \*\.sto\[\.gz\][^(]*; download the files"):
        prepare_alignments(config(tmp_path / "c", tmp_path / "empty"))


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "X.A3M.GZ").write_bytes(gzip.compress(b">q\nACGU\n>r\nACgGU\n"))
    prepare_alignments(config(tmp_path / "c", tmp_path / "in", validation_fraction=0))
    assert AlignmentCorpus.open(tmp_path / "c").accessions([0]) == ["X"]


def test_a_folder_of_folders_is_told_the_pattern_that_descends(tmp_path: Path) -> None:
    write_stockholm(tmp_path / "all/RF1/a.sto", many_families(4))
    with pytest.raises(DataError, match="folders in it are not looked into") as refused:
        prepare_alignments(config(tmp_path / "c", tmp_path / "all"))
    pattern = str(refused.value).split("is: ")[1].split(")")[0]
    assert pattern == f"{tmp_path}/all/**/*.sto"
    prepare_alignments(config(tmp_path / "c", Path(pattern), validation_fraction=0))
    assert len(everything(tmp_path / "c")) == 4


@pytest.mark.parametrize("kind", ["auto", "stockholm", "a3m"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.sto.gz", "a.zip"])
def test_archives_are_to_be_unpacked(tmp_path: Path, kind: str, name: str) -> None:
    """Whatever their names promise: a tar holds the text of its members, which a reader could take for its own."""
    source, packed = write_stockholm(tmp_path / "a.sto", many_families(2)), tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(source)
    else:
        with tarfile.open(packed, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(source)
    chosen = config(tmp_path / "c", packed)
    chosen.sources[0].format = kind
    with pytest.raises(DataError, match=f"{name}: is a (tar|zip) archive, which is not read; unpack it"):
        prepare_alignments(chosen)
