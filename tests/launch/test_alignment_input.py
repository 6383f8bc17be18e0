"""What is no usable alignment, through the command line: one sentence each, or the rule of docs/rnamsm.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from data.alignments import AlignmentCorpus
from launch.prepare import main
from tests.ranks import ROOT, pretrain_well

HEAD = "# STOCKHOLM 1.0\n#=GF AC RF1\n"
GOOD = ">a\nACGU\n>b\nACGA\n"


def prepare(source: Path, to: Path, *options: str) -> int:
    return main(["alignments", "--from", str(source), "--to", str(to), "validation_fraction=0", *options])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ragged.sto", HEAD + "a ACGU\nb ACG\n//\n", r"\(RF1\): row 2 \(b\) has 3 columns, the first row \(a\) has 4"),
        ("ragged.a3m", ">a\nACGU\n>b\nACgG\n", r"row 2 \(b\) has 3 columns once insertions are removed"),
        ("ragged.afa", ">a\nACGU\n>b\nACG\n", r"row 2 \(b\) has 3 columns"),
        ("one.sto", HEAD + "a ACGU\n//\n", r"no alignment is left after filtering \(too shallow"),
        ("one.a3m", ">a\nACGU\n", r"no alignment is left after filtering \(too shallow"),
        (
            "zero.sto",
            HEAD + "a ----\nb ....\n//\n",
            r"no alignment is left after filtering \(too narrow",
        ),
        ("zero.a3m", ">a\n>b\n", r"no alignment is left after filtering \(too narrow"),
        (
            "protein.sto",
            HEAD + "a MKLEFPQ\nb MKLEFPQ\n//\n",
            r"row 1 \(a\) holds 'L' in column 3, which is no letter of",
        ),
        ("protein.a3m", ">a\nMKLEFPQ\n>b\nMKLEFPQ\n", r"looks like a protein"),
        (
            "dkvhs.sto",
            HEAD + "a DKVHSNRDKV\nb DKVHSARCT-\n//\n",
            r"dkvhs\.sto, alignment 1 \(RF1\): 16 of its 19 letters are ambiguity codes \(DHKNRSV\)",
        ),
        ("dkvhs.afa", ">a\nDKVHSNRDKV\n>b\nDKVHSARCT-\n", r"perhaps of proteins; give nucleotides, or leave it out"),
        ("cut.sto", HEAD + "a ACGU\nb ACGU\n", r"the file ends without the // that ends an alignment"),
        ("block.sto", HEAD + "a AC\nb AC\n\na GU\n//\n", r"row a is in blocks 1 and 2, but the blocks do not list the"),
        ("line.sto", HEAD + "a ACGU\nb AC\n//\n", r"row 2 \(b\) has 2 columns, the first row \(a\) has 4"),
        ("name.sto", HEAD + "a ACGU\nb\n//\n", r"line 4: expected a row name and its letters but found 'b'"),
        ("name.a3m", ">a\nACGU\n>b\n", r"row 2 \(b\) has 0 columns once insertions are removed"),
        ("empty.a3m", "", r"empty"),
        ("clustal.aln", "CLUSTAL W (1.83)\n\na  ACGU\nb  ACG-\n", r"is a CLUSTAL file.*esl-reformat stockholm"),
        ("clustal.sto", "CLUSTAL O(1.2.4)\n\na  ACGU\nb  ACG-\n", r"is a CLUSTAL file.*esl-reformat stockholm"),
        ("nexus.nex", "#NEXUS\nbegin data;\n", r"is a NEXUS file"),
    ],
)
def test_no_alignment_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "good.a3m").write_text(GOOD)
    assert prepare(tmp_path / name, tmp_path / "corpus") == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("reading", "writing"))]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["good.a3m", name])


def test_one_row_and_no_columns_are_dropped_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule: such an alignment is left out and counted; a file of nothing else is refused (above)."""
    family = "# STOCKHOLM 1.0\n#=GF AC {}\n{}\n//\n"
    rows = {"RF1": "a ACGU\nb ACGA", "RF2": "a ACGU", "RF3": "a ----\nb ----"}
    (tmp_path / "all.sto").write_text("".join(family.format(*item) for item in rows.items()))
    assert prepare(tmp_path / "all.sto", tmp_path / "corpus") == 0
    shown = capsys.readouterr().out
    assert "dropped: too shallow" in shown
    assert "dropped: too narrow" in shown
    corpus = AlignmentCorpus.open(tmp_path / "corpus")
    assert corpus.accessions(np.arange(corpus.count)) == ["RF1"]
    assert prepare(tmp_path / "all.sto", tmp_path / "single", "min_depth=1") == 0
    assert AlignmentCorpus.open(tmp_path / "single").count == 2


@pytest.mark.slow
def test_20000_rows_and_10000_columns_prepare_and_train(tmp_path: Path) -> None:
    """The rule: 8,192 rows are stored, all columns are; training draws rows and cuts windows."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGU", np.uint8)
    for name, shape in (("deep", (20_000, 30)), ("wide", (5, 10_000))):
        rows = (row.tobytes() for row in rng.choice(letters, shape))
        (tmp_path / f"{name}.afa").write_bytes(b"".join(b">r%d\n%s\n" % (i, row) for i, row in enumerate(rows)))
    assert main(["alignments", "--from", *(str(tmp_path / f"{n}.afa") for n in ("deep", "wide")), "--to",
                 str(tmp_path / "corpus"), "validation_fraction=0"]) == 0  # fmt: skip
    corpus = AlignmentCorpus.open(tmp_path / "corpus")
    sizes = dict(
        zip(corpus.accessions([0, 1]), zip(corpus.depths.tolist(), corpus.lengths.tolist(), strict=True), strict=True)
    )
    assert sizes == {"deep": (8192, 30), "wide": (5, 10_000)}
    sizes = ["model.name=rnamsm", "model.layers=1", "model.width=16", "model.heads=1", "model.ffn=16"]
    options = ["objective.name=msa", "objective.max_tokens=1024", "objective.max_columns=1024", "budget.steps=2"]
    place = [f"data.corpus={tmp_path / 'corpus'}", f"run.directory={tmp_path}", "run.name=run", "batch.sequences=2"]
    said = pretrain_well(
        ["--config", str(ROOT / "tests" / "tiny.yaml"), *sizes, *options, *place, "schedule.warmup_steps=1"]
    )
    assert "done: 2 steps, 4 sequences" in said
    assert prepare(tmp_path / "deep.afa", tmp_path / "whole", "max_rows=0") == 0
    assert AlignmentCorpus.open(tmp_path / "whole").depths.tolist() == [20_000]
