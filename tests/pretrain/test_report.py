"""The report of a run of each kind, from records as the trainer writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from pretrain import report
from pretrain.errors import PretrainError
from pretrain.report import summary, write_report
from pretrain.report_pictures import draw_curves
from pretrain.tracking import read_metrics

TRAIN = {"loss": 1.2, "learning_rate": 1e-3, "gradient_norm": 1.0, "nucleotides_per_second": 9e3, "padding": 0.1}
TRAIN |= {"epoch": 0.5, "sequences": 80, "nucleotides": 8000, "skipped_steps": 0, "eta_seconds": 60, "mfu": None}
SAVE = {"complete_at_step": 9, "bytes": 2_000_000, "seconds": 3.0, "waited_seconds": 0.25, "waited_steps": 0.5}

RUNS = {
    "sequences": (
        {"perplexity": 3.3, "accuracy": 0.4},
        [{"loss": 1.1, "perplexity": 3.0, "accuracy": 0.5, "loss_per_nucleotide": 1.1, "types": {}}],
        [{"letter_frequencies": {"loss": 1.4, "perplexity": 4.1}, "generator_bound": {"loss": 0.8, "perplexity": 2.2}}],
        ["loss 1.1000, perplexity 3.000", "letter frequencies: loss 1.4000", "50% of the way"],
        ["cross-entropy (nats per masked token)", "accuracy on masked tokens"],
    ),
    "alignments": (
        {"perplexity": 3.3, "accuracy": 0.4},
        [{"loss": 1.1, "perplexity": 3.0, "accuracy": 0.5, "contact_precision_l": 0.3, "contact_precision_l5": 0.6}],
        [{"column_profile": {"loss": 1.3, "perplexity": 3.7}}],
        ["contact precision at L 0.3000", "contact precision at L/5 0.6000", "column profile: loss 1.3000"],
        ["cross-entropy (nats per masked token)", "accuracy on masked tokens", "precision of contacts"],
    ),
    "profiles": (
        {},
        [{"loss": 0.25, "loss_2A3": 0.3, "loss_DMS": 0.2}],
        [{"nucleotide_median": {"loss": 0.22}}],
        ["loss 0.2500, loss 2A3 0.3000, loss DMS 0.2000", "nucleotide median: loss 0.2200"],
        ["mean absolute error of the reactivity", "mean absolute error by chemical"],
    ),
    "two corpora, types and stages": (
        {"perplexity": 3.3, "accuracy": 0.4, "stage": "base"},
        [
            {
                "corpus": "a",
                "loss": 1.1,
                "perplexity": 3.0,
                "accuracy": 0.5,
                "type_accuracy": 0.6,
                "type_majority": 0.2,
                "stage": "base",
            },
            {"corpus": "b", "loss": 1.0, "perplexity": 2.7, "accuracy": 0.6, "types": {}, "stage": "base"},
        ],
        [
            {"corpus": "a", "markov_2": {"loss": 1.3, "perplexity": 3.7}, "stage": "base"},
            {"corpus": "b", "markov_2": {"loss": 1.2}, "stage": "base"},
        ],
        ["validation of a at step 8: loss 1.1000", "type named right 0.6000", "validation of b at step 8: loss 1.0000"],
        ["cross-entropy (nats per masked token)", "accuracy on masked tokens", "share of RNA types named right"],
    ),
}


def run_with(tmp_path: Path, train: dict, validation: list[dict], references: list[dict]) -> Path:
    records = [{"kind": "references", "step": 0, **one} for one in references]
    records += [{"kind": "train", "step": step, **TRAIN, **train} for step in (4, 8)]
    records += [{"kind": "validation", "step": 8, **one} for one in validation]
    records += [{"kind": "checkpoint", "step": 8, **SAVE}]
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_report_of_every_kind_of_run(tmp_path, kind, monkeypatch) -> None:
    train, validation, references, told, panels = RUNS[kind]
    run = run_with(tmp_path, train, validation, references)
    for text in told:
        assert text in summary(run)
    curves, throughput, page = write_report(run)
    assert all(path.stat().st_size > 10_000 for path in (curves, throughput))
    html = page.read_text()
    assert "1 of 2.0 MB; training waited 0.25 s, 0.50 steps" in html
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    draw_curves(tmp_path / "again.png", "my-run", read_metrics(run / "metrics.jsonl"))
    assert [axes.get_ylabel() for axes in drawn[0].axes] == panels
    assert all(len(axes.get_lines()) >= 2 for axes in drawn[0].axes), "a panel without its curves"


def test_trivial_models_of_another_stage_are_not_shown_beside_the_last(tmp_path, monkeypatch) -> None:
    """Stages may validate on other targets, and the last one may have no trivial models at all."""
    references = [{"markov_2": {"loss": 0.5}, "stage": "before"}, {"markov_2": {"loss": 1.3}, "stage": "base"}]
    validation = [{"loss": 1.1, "stage": "base"}]
    both = run_with(tmp_path, {"stage": "base"}, validation, references)
    assert "Markov model: loss 1.3" in summary(both)
    assert "0.5" not in summary(both)
    assert lines_at(both, monkeypatch) == {1.3}
    (tmp_path / "second").mkdir()
    one = run_with(tmp_path / "second", {"stage": "base"}, validation, references[:1])
    assert summary(one) == "validation at step 8: loss 1.1000"
    assert lines_at(one, monkeypatch) == set()


def lines_at(run: Path, monkeypatch) -> set[float]:
    """The losses at which the first picture has a line from side to side."""
    drawn: list = []
    monkeypatch.setattr(plt, "close", drawn.append)
    draw_curves(run / "again.png", "my-run", read_metrics(run / "metrics.jsonl"))
    lines = drawn[0].axes[0].get_lines()
    return {float(line.get_ydata()[0]) for line in lines if list(line.get_xdata()) == [0, 1] and line.get_ydata()[0]}


def test_a_run_without_a_step_has_no_report(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(PretrainError, match="has no training step yet"):
        write_report(tmp_path)
    assert summary(tmp_path) == "no validation yet"


def test_what_is_no_run_is_told_apart(tmp_path) -> None:
    file, folder, run = tmp_path / "file", tmp_path / "folder", tmp_path / "run"
    file.write_text("")
    folder.mkdir()
    (run / "logs").mkdir(parents=True)
    for path, says in (
        (tmp_path / "nowhere", "does not exist; give a run directory"),
        (file, "is a file; give a run directory"),
        (folder, "is no run directory"),
        (run, "has no training step yet; the last lines in"),
    ):
        with pytest.raises(PretrainError, match=says):
            write_report(path)


def test_a_report_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(report, "of_kind", lambda metrics, kind: [{"step": 1}])
    with pytest.raises(PretrainError, match=r"cannot be written to .*; choose a directory with --to"):
        write_report(tmp_path, tmp_path / "file")
