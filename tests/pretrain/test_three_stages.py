"""RibonanzaNet's procedure in small, with our commands alone, and killed in every stage (spec ribonanzanet 5).

    A  true labels
    B  pseudo-labels of the noisy sequences, by A -> true labels
    C  pseudo-labels of noisy and unlabelled sequences, by B -> true labels

Each run has new weights. The profiles are made up; test_real_three_stages.py goes through it on measured ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from data.manifest import read_manifest
from data.reactivity import ReactivityCorpus
from data.reactivity_filter import SampleFilter
from pretrain.checkpoint import Checkpoint
from tests.data.corpora import content
from tests.data.reactivity_files import rows_of, write_table
from tests.pretrain.three_stages import EVALUATE, PREPARE, command, figures, kill_predicting, killed, whole, written
from tests.ranks import ROOT, last, losses, records, same_bits

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora: measured profiles, and the same with 40 unlabelled sequences."""
    folder = tmp_path_factory.mktemp("three")
    table = write_table(folder / "train_data.csv", rows_of(90))
    new = [row.sequence for row in rows_of(40, seed=1)[::2]]
    unlabelled = folder / "test_sequences.csv"
    unlabelled.write_text("\n".join(["sequence_id,sequence", *(f"t{i},{s}" for i, s in enumerate(new))]) + "\n")
    command(PREPARE, "reactivity", "--from", table, "--to", folder / "measured")
    both = ["--from", table, unlabelled, "--to", folder / "unlabelled", "split.folds=0"]
    command(PREPARE, "reactivity", *both)
    return folder


def stages_of(name: str, folder: Path, pseudo: str = "none") -> Path:
    """A shipped recipe's stages of 5 steps each, on the small corpora and model."""
    recipe = OmegaConf.to_container(OmegaConf.load(ROOT / "tests" / "tiny_reactivity.yaml"))
    assert isinstance(recipe, dict)
    recipe["data"]["corpus"] = str(folder / "measured")
    recipe["run"]["directory"] = str(folder / "runs")
    recipe["validation"], recipe["checkpoint"] = {"sequences": 5}, {"every_steps": 2, "keep": 9}
    return written(recipe, name, folder, (5, 5), folder / pseudo)


def trained(config: Path, name: str, kills: list[int]) -> Path:
    """The run, which kills do not change by a bit."""
    run, disturbed = whole(config, name), killed(config, f"{name}-killed", kills)
    assert same_bits(last(disturbed), last(run))
    assert losses(disturbed) == losses(run)
    assert last(run).progress.optimizer_steps == 10
    return run


def predicted(models: list[Path], folder: Path, corpus: str, to: str, *more: object) -> ReactivityCorpus:
    """Pseudo-labels of the noisy samples, begun twice because it is killed once; as if that had not been."""
    arguments = [*models, "--corpus", folder / corpus, "--classes", "noisy", *more, "--write-predictions"]
    kill_predicting(models, folder / corpus, folder / to)
    out = command(EVALUATE, *arguments, folder / to)
    command(EVALUATE, *arguments, folder / "again" / to)
    assert content(folder / to) == content(folder / "again" / to)
    made, source = ReactivityCorpus.open(folder / to), ReactivityCorpus.open(folder / corpus)
    noisy = source.view(SampleFilter.of("noisy"))
    assert f"{noisy.count} train profiles" in out
    assert made.accessions(np.arange(made.count)) == noisy.accessions(np.arange(noisy.count))
    told = read_manifest(folder / to)["provenance"]
    assert [one["sha256"] for one in told["checkpoints"]] == [last(run).sha256 for run in models]
    assert [one["name"] for one in told["checkpoints"]] == [f"{run.name} step 10" for run in models]
    assert told["source"] == {"name": corpus, "fingerprint": source.fingerprint}
    return made


def test_the_three_stages(folder: Path) -> None:
    before = {name: content(folder / name) for name in ("measured", "unlabelled")}
    first = trained(stages_of("ribonanzanet_initial", folder), "first", kills=[4, 8])
    assert [record["stage"] for record in records(first)] == ["constant"] * 5 + ["annealed"] * 5

    assert predicted([first], folder, "measured", "pseudo_noisy").count == 30
    second = trained(stages_of("ribonanzanet_intermediate", folder, "pseudo_noisy"), "second", kills=[2, 8])

    more = [second, folder / "runs" / "first-killed"]
    pseudo = predicted(more, folder, "unlabelled", "pseudo", "--weights", 2, 1)
    assert sum(name.startswith("t") for name in pseudo.accessions(np.arange(pseudo.count))) == 40
    assert pseudo.count == 70
    final = trained(stages_of("ribonanzanet", folder, "pseudo"), "final", kills=[2, 8])

    for run in (second, final):
        steps = records(run)
        assert [record["stage"] for record in steps] == ["pseudo_labels"] * 5 + ["true_labels"] * 5
        assert [record["learning_rate"] for record in steps[:5]] == [3e-3] * 5
        cosine = [1.5e-3 * (1 + np.cos(np.pi * step / 6)) for step in range(5)]
        assert [record["learning_rate"] for record in steps[5:]] == pytest.approx(cosine)
        # Every place of a pseudo-label counts, the ends of a library too; of a measured one they are blank.
        assert steps[0]["targets"] == 2 * steps[0]["nucleotides"]
        assert steps[5]["targets"] < 2 * (steps[5]["nucleotides"] - steps[4]["nucleotides"])
        require_state_carried_over(run)
    for run in (first, second, final):  # all stages are judged on the same measured sequences
        assert len({record["targets"] for record in records(run, "validation")}) == 1
    require_final_beside_first(folder, first, second, final)
    assert all(content(folder / name) == files for name, files in before.items())  # nothing is written into the data


def require_state_carried_over(run: Path) -> None:
    """The second moment only forgets a thousandth in the first step of the second stage: it did not begin anew."""
    before, after = (Checkpoint(run / "checkpoints" / f"step-{step:08d}") for step in (5, 6))
    for name, shape in before.shapes.items():
        n = int(np.prod(shape))
        old, new = (one.read("exp_avg_sq", name, 0, n) for one in (before, after))
        assert (new >= old * (0.999 - 1e-5)).all(), name


def require_final_beside_first(folder: Path, *runs: Path) -> None:
    """One command says all errors, on the same profiles: of each chemical, and of constants."""
    out = command(EVALUATE, *runs, "--corpus", folder / "measured")
    print(out)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [*(run.name for run in runs), "channel", "nucleotide"]
    for run, line in zip(runs, lines, strict=False):
        expected = records(run, "validation")[-1]
        for key in ("loss", "loss_2A3", "loss_DMS"):
            assert figures(line)[key] == pytest.approx(expected[key], abs=1e-4)
