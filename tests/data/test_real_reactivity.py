"""The released files in ../shared/data against figures measured independently (spec RibonanzaNet 13, README there)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.reactivity import ReactivityCorpus
from data.reactivity_config import ReactivitySource, SplitConfig
from data.reactivity_filter import SampleFilter
from data.verify_reactivity import verify_reactivity
from tests.data import recounted
from tests.data.corpora import SHARED
from tests.data.reactivity_files import build

pytest.importorskip("pyarrow")

EITHER = SplitConfig(of=["clean", "dirty"])  # few of these sequences have a profile in both channels
REAL = SHARED / "chemical_mapping"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real files in ../shared/data are not there")


@pytest.fixture(scope="module")
def pk50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pk50") / "corpus"
    build(output, sources=[ReactivitySource("pk50", str(REAL / "ribonanza_pk50_*.csv.gz"))])
    return output


def test_counts_of_the_pk50_pair(pk50: Path) -> None:
    train, validation = ReactivityCorpus.open(pk50, "train"), ReactivityCorpus.open(pk50, "validation")
    splits = train.manifest["splits"].values()
    assert [sum(s["classes"][name] for s in splits) for name in ("clean", "dirty", "noisy")] == [2553, 53, 123]
    assert [sum(s["values"][name] for s in splits) for name in ("2A3", "DMS")] == [187_059, 186_783]
    assert [2729 - sum(s["profiles"][name] for s in splits) for name in ("2A3", "DMS")] == [18, 22]
    assert validation.count == 426  # a sixth of 2,553, rounded up
    counted = recounted.tables(sorted(REAL.glob("ribonanza_pk50_*.csv.gz")))
    assert (counted.counts["rows"], len(counted.sequences), counted.duplicates) == (2 * 2729, 2729, 0)
    for channel in ("2A3", "DMS"):
        assert sum(s["values"][channel] for s in splits) == counted.counts[f"values {channel}"]
        assert sum(s["profiles"][channel] for s in splits) == counted.counts[f"rows with values {channel}"]
    ratios = [[counted.best(one, channel)[0] for channel in ("2A3", "DMS")] for one in counted.sequences]
    above = [sum(ratio > 1 for ratio in both) for both in ratios]
    assert [above.count(n) for n in (2, 1, 0)] == [2553, 53, 123]
    require_same_profiles(pk50, counted)
    assert train.manifest["errors"]["pairs_identical"] == train.manifest["errors"]["pairs_compared"] > 2700
    assert not train.errors_trusted
    report = verify_reactivity(pk50)
    assert report.intact
    assert report.sequences == 2729


def require_same_profiles(corpus: Path, counted: recounted.Recount) -> None:
    """Every sequence and channel has the values of a profile with the highest signal-to-noise, and nothing else is."""
    seen = 0
    for split in ("train", "validation"):
        opened = ReactivityCorpus.open(corpus, split)
        for profile in opened.profiles(np.arange(opened.count)):
            sequence = profile.letters.tobytes().decode()
            for c, channel in enumerate(opened.channels):
                values, ratio = profile.values[:, c], profile.signal_to_noise[c]
                if (sequence, channel) not in counted.profiles:
                    assert np.isnan(values).all()
                    assert np.isnan(ratio)
                    continue
                top, candidates = counted.best(sequence, channel)
                halves = [np.float32(np.float16(np.float32(one))) for one in candidates]
                assert any(np.array_equal(one, values, equal_nan=True) for one in halves), sequence
                assert ratio == np.float32(top) if np.isfinite(top) else np.isnan(ratio)
                seen += 1
    assert seen == len(counted.profiles)


def test_figures_of_the_pk50_pair(pk50: Path) -> None:
    clipped, kept = [], np.zeros(2, dtype=np.int64)
    for split in ("train", "validation"):
        opened = ReactivityCorpus.open(pk50, split)
        for profile in opened.profiles(np.arange(opened.count)):
            measured = ~np.isnan(profile.values)
            kept += (measured & (profile.signal_to_noise >= 1)).sum(axis=0)
            assert not measured[:26].any()
            assert not measured[95:].any()
        clean = opened.view(SampleFilter.of("clean"))
        clipped += [np.clip(profile.values, 0, 1) for profile in clean.profiles(np.arange(clean.count))]
    assert kept.tolist() == [178_986, 176_985]
    values = np.concatenate(clipped)
    assert np.count_nonzero(~np.isnan(values)) == 352_314
    np.testing.assert_allclose(np.nanmean(values, axis=0), [0.3313, 0.3194], atol=1e-4)
    median = np.nanmedian(values, axis=0)
    np.testing.assert_allclose(median, [0.206, 0.149], atol=1e-3)
    assert np.nanmean(np.abs(values - median)) == pytest.approx(0.2647, abs=1e-4)


def test_the_rule_of_the_recipe_drops_this_library(tmp_path: Path) -> None:
    """Its name is not one of those that the authors keep."""
    path = str(REAL / "ribonanza_pk50_*.csv.gz")
    source = ReactivitySource("pk50", path, drop_datasets=["PK50"], keep_datasets=["PK50_AltChemMap_NovaSeq"])
    with pytest.raises(DataError, match="no sequence is left"):
        build(tmp_path / "c", sources=[source])


def test_test_sequences(tmp_path: Path) -> None:
    manifest = build(tmp_path / "c", REAL / "ribonanza_example_test_sequences.csv.gz", split=SplitConfig(folds=0))
    assert manifest["splits"]["train"]["sequences"] == 6902
    assert manifest["splits"]["train"]["nucleotides"] == 1_264_650


def unpacked(tmp_path: Path, name: str) -> Path:
    with tarfile.open(REAL / name) as archive:
        for member in archive.getmembers():
            if member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                (tmp_path / Path(member.name).name).write_bytes(content.read())
    return tmp_path


@pytest.mark.slow
def test_cloud_lab_rdats(tmp_path: Path) -> None:
    folder = tmp_path / "rdat"
    folder.mkdir()
    source = ReactivitySource("rmdb", str(unpacked(folder, "eternabench_cloudlab_rdats.tar.gz")), {"SHAPE": "1M7"})
    manifest = build(tmp_path / "c", sources=[source], channels=["1M7", "DMS"], other_letters="N", split=EITHER)
    (told,) = manifest["sources"]
    counted = recounted.rdats(sorted(folder.glob("*.rdat")), {"1M7": "1M7", "SHAPE": "1M7", "DMS": "DMS"})
    counts = counted.counts  # beside the figures of the files' description
    assert (counts["rows"], counts["values"], counts["dots"]) == (17_922, 1_621_180, 2)
    assert (counts["1M7"], counts["SHAPE"], counts["DMS"]) == (16_359, 1_354, 209)
    assert (counts["negative errors"], counts["rows past the end"]) == (3_604, 791)
    assert told["records"] == counts["rows"]
    assert {reason: n for reason, n in told["dropped"].items() if n} == {
        "no_sequence": counts["rows without sequence"],
        "duplicate": counted.duplicates,
    }
    assert counts["rows without sequence"] == 32
    assert told["changed"]["values_past_the_end"] == counts["values past the end"]
    assert told["changed"]["negative_errors"] == counts["negative errors inside"]
    assert sum(told["sequences"].values()) == len(counted.sequences) == 16_981
    require_same_profiles(tmp_path / "c", counted)
    assert verify_reactivity(tmp_path / "c").intact


def test_mohca_files_give_no_sample(tmp_path: Path) -> None:
    folder = tmp_path / "rdat"
    folder.mkdir()
    with pytest.raises(DataError, match="no sequence is left"):
        build(tmp_path / "c", unpacked(folder, "biers_mutmap_rdats.tar.gz"), channels=["1M7", "2A3", "DMS"])


def test_a_pseudoknot_library_in_rdat(tmp_path: Path) -> None:
    manifest = build(tmp_path / "c", REAL / "openknot_pk50_twist.rdat.gz", channels=["1M7"])
    splits = manifest["splits"].values()
    assert sum(s["sequences"] for s in splits) == 200
    assert sum(s["values"]["1M7"] for s in splits) == 13_800
    profile = ReactivityCorpus.open(tmp_path / "c").profiles([0])[0]
    assert np.flatnonzero(~np.isnan(profile.values[:, 0])).tolist() == list(range(26, 95))  # X27 to X95


def test_openvaccine(tmp_path: Path) -> None:
    channels = ["reactivity", "deg_Mg_pH10", "deg_pH10", "deg_Mg_50C", "deg_50C"]
    source = REAL / "openvaccine_train_plus_kdeg.json.zip"
    manifest = build(tmp_path / "c", source, channels=channels)
    splits = manifest["splits"].values()
    assert sum(s["sequences"] for s in splits) == 1589
    assert all(sum(s["values"][c] for s in splits) == 1589 * 68 for c in channels)
    assert sum(s["nucleotides"] for s in splits) == 1589 * 107
