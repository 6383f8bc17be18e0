"""The real commands on profiles: build, verify, describe, synthetic; one dispatch by kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import DataError
from data.reactivity_config import load_reactivity_config
from launch.cli import CONFIGS
from launch.prepare import main
from launch.reactivity_tables import figure
from tests.data.reactivity_files import other, rows_of, write_table

pytest.importorskip("pyarrow")

GOOD = "kind: reactivity\nname: x\nsources:\n- {name: a, path: a.csv}\n"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_build_verify_describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(60)
    rows = [other(row, errors=rows[i | 1].errors) for i, row in enumerate(rows)]
    table, corpus = write_table(tmp_path / "train_data.csv", rows), tmp_path / "corpora" / "my"
    code, out, err = run(capsys, "reactivity", "--from", table, "--to", corpus, "split.folds=4")
    assert (code, "profiles read" in out) == (0, True), err
    assert "warning: the error columns of different channels are identical in 60 of 60 samples" in out
    assert run(capsys, "verify", corpus)[1].startswith(f"{corpus}: intact; 60 sequences, ")
    code, out, _ = run(capsys, "describe", corpus)
    assert code == 0
    assert "LIB0_NULL" in out
    card = (corpus / "README.md").read_text()
    assert "clean: signal-to-noise above 1 in every channel" in card
    assert "do not use them" in card
    assert (corpus / "describe.png").stat().st_size > 5000
    assert run(capsys, "verify", corpus)[0] == 0  # the card is no damage
    with open(corpus / "train-000000.tar", "r+b") as file:
        file.seek(3000)
        file.write(b"!")
    code, _, err = run(capsys, "verify", corpus)
    assert (code, "train-000000.tar" in err) == (2, True)


def test_a_config_tells_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "a.csv", rows_of(30))
    (tmp_path / "c.yaml").write_text(
        GOOD.replace("a.csv", str(tmp_path / "a.csv")) + "published: {clean: 9, records: 60}\n"
    )
    for command in ([], ["reactivity"]):
        code, out, err = run(
            capsys, *command, "--config", tmp_path / "c.yaml", f"output={tmp_path / 'out'}", "overwrite=true"
        )
        assert code == 0, err
        assert "published: clean 9; here 10" in out
        assert "published: records 60; here 60" in out
    (tmp_path / "odd.yaml").write_text(GOOD.replace("reactivity", "structures"))
    code, _, err = run(capsys, "--config", tmp_path / "odd.yaml")
    assert (code, "kind is 'structures', expected one of sequences, alignments, reactivity" in err) == (2, True)


def test_synthetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "synthetic", "--reactivity", "--sequences", 80, "--to", tmp_path / "c")
    assert code == 0, err
    assert "clean" in out
    assert run(capsys, "verify", tmp_path / "c")[0] == 0
    assert run(capsys, "synthetic", "--reactivity", "--sequences", 8, "--csv", tmp_path / "t.csv")[0] == 0
    assert (tmp_path / "t.csv").read_text().startswith("sequence_id,sequence,experiment_type,dataset_name,reads,")
    assert run(capsys, "synthetic", "--csv", tmp_path / "t.csv")[0] == 2
    assert run(capsys, "synthetic", "--reactivity")[0] == 2


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "chanels: [DMS]\n", [], "there is no key chanels; the nearest valid key is channels"),
        (GOOD, ["channels=[DMS,DMS]"], "channels is ['DMS', 'DMS']"),
        (GOOD, ["split.folds=1"], "split.folds is 1"),
        (GOOD, ["split.fold=6"], "split.fold is 6, expected a fold from 0 to 5"),
        (GOOD, ["split.of=[clear]"], "split.of[0] is 'clear', expected one of clean, dirty, noisy"),
        (GOOD, ["split.by=cluster"], "clusters.method is 'none', expected mmseqs or table"),
        (GOOD, ["unpaired=no"], "unpaired is "),
        (GOOD, ["kind=alignments"], "kind is 'alignments', expected one of reactivity"),
        (GOOD, ["sources.0.experiments={1M7: 2A4}"], "sources[0].experiments.1M7 is '2A4', expected one of 2A3, DMS"),
        (GOOD, ["sources.0.sequences=no.csv"], "sources[0].sequences: no.csv does not exist"),
        (GOOD, ["sources.0.pth=x"], "the nearest valid key is sources[0].path"),
        (GOOD, ["validation_fraction=0.1"], "no key validation_fraction; valid are name, kind, sources, channels"),
        (GOOD, ["clusters.method=table"], "give both, or neither"),
        (GOOD + "- {name: a, path: b.csv}\n", [], "sources[1].name is 'a'"),
        ("name: x\n", [], "sources is empty"),
    ],
)
def test_bad_configs_name_file_key_and_cure(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DataError) as error:
        load_reactivity_config(tmp_path / "c.yaml", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_sources_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name, message in (
        ("none.csv", "does not exist"),
        ("a.txt", "the format is told by the suffix"),
        ("folder", "no file named *.csv[.gz], *.parquet, *.rdat[.gz], *.json"),
        ("folder", f"a pattern as `path` is: {tmp_path}/folder/**/*.csv)"),
        ("empty.csv", "the file is empty"),
    ):
        code, _, err = run(capsys, "reactivity", "--from", tmp_path / name, "--to", tmp_path / "out" / "c")
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1)
        assert message in errors[0]
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_suffixes_in_capitals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "t.csv", rows_of(30)).rename(tmp_path / "T.CSV")
    assert run(capsys, "reactivity", "--from", tmp_path, "--to", tmp_path / "out" / "c")[0] == 0


def test_shipped_configs() -> None:
    ribonanza = load_reactivity_config(CONFIGS / "data" / "ribonanza.yaml")
    assert (ribonanza.split.folds, ribonanza.split.of, ribonanza.channels) == (6, ["clean"], ["2A3", "DMS"])
    assert ribonanza.published["clean"] + ribonanza.published["dirty"] + ribonanza.published["noisy"] == 806_573
    assert ribonanza.published["clean"] - 27_946 + ribonanza.published["dirty"] == 214_831
    assert load_reactivity_config(CONFIGS / "data" / "ribonanza_test.yaml").split.folds == 0
    text = (CONFIGS / "data" / "ribonanza_pseudo.yaml").read_text()
    assert "signal_to_noise: 10" in text
    manifest = {
        "sources": [{"records": 3}, {"records": 4}],
        "splits": {s: {"sequences": n, "classes": {"clean": n - 1}} for s, n in (("train", 5), ("validation", 2))},
    }
    assert [figure(manifest, what) for what in ("records", "sequences", "validation_clean", "odd")] == [7, 7, 1, None]
