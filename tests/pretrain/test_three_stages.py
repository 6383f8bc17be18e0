"""RibonanzaNet's procedure in small, with our commands alone, and killed in every stage (spec ribonanzanet 5).

true labels -> pseudo-labels of noisy and unlabelled sequences -> pretraining on them -> true labels
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from data.manifest import read_manifest
from data.reactivity import ReactivityCorpus
from data.reactivity_filter import SampleFilter
from tests.data.reactivity_files import rows_of, write_table
from tests.pretrain import faults
from tests.ranks import ROOT, last, losses, pretrain, pretrain_well, records, same_bits

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

FAULTS = Path(faults.__file__)
EVALUATE, PREPARE = (ROOT / "launch" / name for name in ("evaluate.py", "prepare.py"))
TINY = ROOT / "tests" / "tiny_reactivity.yaml"


def command(script: Path, *arguments: object) -> str:
    ((code, out, err),) = pretrain([str(argument) for argument in arguments], script=script)
    assert code == 0, err
    return out


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


def stages_of(name: str, folder: Path) -> Path:
    """The shipped recipe's stages, shortened, on the small corpora and model."""
    shipped = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
    content = OmegaConf.to_container(OmegaConf.load(TINY))
    content["data"]["corpus"] = str(folder / "measured")
    content["run"]["directory"] = str(folder / "runs")
    content["budget"], content["validation"] = {}, {"sequences": 5}
    content["checkpoint"] = {"every_steps": 2}
    content["stages"] = OmegaConf.to_container(shipped.stages)
    for stage in content["stages"].values():
        stage["budget"] = {"steps": 5}
        if "decay_epochs" in stage.get("schedule", {}):
            stage["schedule"] = {"name": "cosine", "decay_steps": 6}
        if "data" in stage:
            stage["data"] = {"corpus": str(folder / "pseudo"), "validation": str(folder / "measured")}
    content["objective"]["samples"] = OmegaConf.to_container(shipped.objective.samples)
    path = folder / f"{name}.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


def whole_and_killed(config: Path, name: str, kills: list[int]) -> tuple[Path, Path]:
    """The run uninterrupted, and one killed while the steps ``kills`` are saved and continued each time."""
    runs = Path(OmegaConf.load(config).run.directory)
    pretrain_well(["--config", str(config), f"run.name={name}"], ranks=2)
    again = ["--config", str(config), f"run.name={name}-killed"]
    for step in kills:
        results = pretrain([f"kill_in_save=0:{step}:before-rename", "--", *again], ranks=2, script=FAULTS)
        assert any(code for code, _, _ in results), results
    pretrain_well(again, ranks=2)
    return runs / name, runs / f"{name}-killed"


def test_the_three_stages(folder: Path) -> None:
    first, killed = whole_and_killed(stages_of("ribonanzanet_initial", folder), "first", kills=[4, 8])
    assert same_bits(last(killed), last(first))
    assert losses(killed) == losses(first)
    assert [record["stage"] for record in records(first)] == ["constant"] * 5 + ["annealed"] * 5

    out = command(
        EVALUATE,
        *(first, killed, "--corpus", folder / "unlabelled", "--classes", "noisy"),
        *("--write-predictions", folder / "pseudo", "--weights", 2, 1),
    )
    assert "70 train profiles" in out
    pseudo = ReactivityCorpus.open(folder / "pseudo")
    source = ReactivityCorpus.open(folder / "unlabelled").view(SampleFilter.of("noisy"))
    assert pseudo.accessions(np.arange(70)) == source.accessions(np.arange(70))
    assert sum(name.startswith("t") for name in pseudo.accessions(np.arange(70))) == 40
    told = read_manifest(folder / "pseudo")["provenance"]
    assert [one["sha256"] for one in told["checkpoints"]] == [last(first).sha256, last(killed).sha256]

    final, killed = whole_and_killed(stages_of("ribonanzanet", folder), "final", kills=[2, 8])
    assert same_bits(last(killed), last(final))
    assert losses(killed) == losses(final)
    trained = records(final)
    assert [record["stage"] for record in trained] == ["pseudo_labels"] * 5 + ["true_labels"] * 5
    assert [record["learning_rate"] for record in trained[:5]] == [3e-3] * 5
    cosine = [1.5e-3 * (1 + np.cos(np.pi * step / 6)) for step in range(5)]
    assert [record["learning_rate"] for record in trained[5:]] == pytest.approx(cosine)
    # Every place of a pseudo-label counts, the ends of a library too; of a measured one they are blank.
    assert trained[0]["targets"] == 2 * trained[0]["nucleotides"]
    assert trained[5]["targets"] < 2 * (trained[5]["nucleotides"] - trained[4]["nucleotides"])
    for run in (first, final):  # both stages on the same measured sequences
        assert len({record["targets"] for record in records(run, "validation")}) == 1
    assert records(first, "validation")[-1]["targets"] == records(final, "validation")[-1]["targets"]
