"""Profiles that cannot be right, through the real command: one sentence each, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.prepare import main
from tests.data.reactivity_files import Row, rows_of, write_table

pytest.importorskip("pyarrow")

RDAT = """RDAT_VERSION\t0.34
NAME\tx
SEQUENCE\tACGUACGU
OFFSET 0
SEQPOS\tA1\tC2\tG3\tU4
ANNOTATION\tmodifier:DMS
ANNOTATION_DATA:1\tsignal_to_noise:good:5.0
REACTIVITY:1\t0.1\t0.2\t0.3
"""


def without(text: str, column: str) -> str:
    return text.replace(f",{column},", f",{column}_of_another_name,", 1)


def infinite(row: Row) -> Row:
    return replace(row, values=tuple(None if x is None else float("inf") for x in row.values))


def cut(row: Row) -> Row:
    return replace(row, values=row.values[:40], errors=row.errors[:40])


def sources(folder: Path) -> dict[str, Callable[[], list[object]]]:
    """Sentence -> arguments that must give it; files are written when asked for."""
    rows = rows_of(30)
    text = write_table(folder / "good.csv", rows).read_text()

    def written(content: str, name: str = "t.csv") -> list[object]:
        (folder / name).write_text(content)
        return ["--from", folder / name]

    def table(changed: list[Row], **options: int) -> list[object]:
        return ["--from", write_table(folder / "t.csv", changed, **options)]

    def pseudo_labels(known: str) -> list[object]:
        """Without the column sequence, for the sequences ``known`` (`id,sequence`)."""
        head, *lines = text.splitlines()
        place = head.split(",").index("sequence")
        cells = [line.split(",") for line in (head, *lines)]
        written("\n".join(",".join([*one[:place], *one[place + 1 :]]) for one in cells) + "\n", "pl.csv")
        written(f"sequence_id,sequence\n{known}\n", "test_sequences.csv")
        config = f"kind: reactivity\nname: pl\nsources:\n- name: pl\n  path: {folder}/pl.csv\n"
        config += f"  sequences: {folder}/test_sequences.csv\n  signal_to_noise: 10\nsplit: {{folds: 0}}\n"
        (folder / "pl.yaml").write_text(config)
        return ["--config", folder / "pl.yaml"]

    only_2a3 = [row for row in rows if row.experiment.startswith("2A3")]
    return {
        "has no column sequence; set `sequences` of the source": lambda: written(without(text, "sequence")),
        "no experiment_type, which names the reagent": lambda: written(without(text, "experiment_type")),
        "there is experiment_type but no column reactivity_0001": lambda: written(
            text.replace("reactivity_0", "value_0").replace("reactivity_error_", "error_")
        ),
        "no column signal_to_noise, by which profiles are chosen": lambda: [
            *written(without(text, "signal_to_noise")),
            "split.folds=0",
        ],
        "the column reactivity_0040 is missing; columns are numbered from 1 on": lambda: written(
            without(text, "reactivity_0040")
        ),
        "no profile of DMS has a signal-to-noise": lambda: table(only_2a3),
        f"60 other experiment, the first t.csv, line 2 ({rows[0].id}), which has 1M7": lambda: table(
            [replace(row, experiment="1M7") for row in rows]
        ),
        "its columns seem to be separated by ';'": lambda: written(text.replace(",", ";")),
        "holds sequences (FASTA), a table of profiles is wanted": lambda: written(">a\nACGU\n", "t.fa"),
        "(records dropped: 30 unpaired": lambda: [*table(only_2a3), "unpaired=drop"],
        "letters, but the table has only 40 reactivity columns": lambda: table([cut(row) for row in rows], width=40),
        "(records dropped: 60 out of range, the first ": lambda: table([infinite(row) for row in rows]),
        "row 1 has 3 values for 4 positions of SEQPOS": lambda: written(RDAT, "t.rdat"),
        "(records dropped: 60 no sequence, the first ": lambda: pseudo_labels("aaaaaaaaaaaa,ACGUACGU"),
        "(ids): the sequence of this id".replace("ids", rows[0].id): lambda: pseudo_labels(f"{rows[0].id},{'A' * 81}"),
    }


def test_one_sentence_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for sentence, arguments in sources(tmp_path / "in").items():
        code = main(["reactivity", *map(str, arguments()), "--to", str(tmp_path / "out" / "c")])
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (sentence, err)
        assert sentence in errors[0]
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_one_infinite_row_is_dropped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(30)
    table = write_table(tmp_path / "t.csv", [infinite(rows[0]), *rows[1:]])
    assert main(["reactivity", "--from", str(table), "--to", str(tmp_path / "c")]) == 0
    assert f"the first profile dropped as out of range: t.csv, line 2 ({rows[0].id})" in capsys.readouterr().out
