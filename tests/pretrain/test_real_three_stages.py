"""RibonanzaNet's procedure on measured profiles: a small model beats the medians, and the errors of all stages.

PK50 (2A3 and DMS, 2,729 sequences) is measured; pseudo-labels are for its noisy sequences and 200 of EternaBench.
A run of each stage is killed once in either phase and continued; `make soak` also trains without a kill and compares.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from data.manifest import read_manifest
from tests.data import recounted
from tests.pretrain.three_stages import EVALUATE, PREPARE, command, figures, kill_predicting, killed, whole, written
from tests.ranks import last, losses, records, same_bits

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

MODEL = {"name": "ribonanzanet", "size": "nano", "layers": 2, "width": 32, "heads": 2, "ffn": 64, "pair": 8}
RECIPE: dict[str, Any] = {
    "run": {"seed": 1},
    "model": MODEL,
    "objective": {"name": "reactivity"},
    "batch": {"sequences": 8, "tokens_per_micro_batch": 16384},
    "optimizer": {"name": "ranger", "learning_rate": 6e-3, "betas": [0.95, 0.999], "eps": 1e-5, "decayed": "all"},
    "validation": {"sequences": 32, "every_steps": 0, "baselines": False},  # all are for the command at the end
    "checkpoint": {"every_steps": 10},
    "tracking": {"log_every_steps": 1},
}


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora: the measured profiles, and the same with sequences of EternaBench."""
    folder, real = tmp_path_factory.mktemp("real"), shared_data / "chemical_mapping"
    measured = sorted(real.glob("ribonanza_pk50_*.csv.gz"))
    with tarfile.open(real / "eternabench_cloudlab_rdats.tar.gz") as archive:
        member = next(one for one in archive.getmembers() if one.name.endswith("ETERNA_R69_0000.rdat"))
        content = archive.extractfile(member)
        assert content is not None
        (folder / "eterna.rdat").write_bytes(content.read())
    found = recounted.rdats([folder / "eterna.rdat"], {"1M7": "1M7", "SHAPE": "SHAPE", "DMS": "DMS"})
    sequences = sorted(found.sequences)[:200]
    table = folder / "test_sequences.csv"
    table.write_text("sequence_id,sequence\n" + "".join(f"eterna{i},{one}\n" for i, one in enumerate(sequences)))
    command(PREPARE, "reactivity", "--from", *measured, "--to", folder / "measured")
    command(PREPARE, "reactivity", "--from", *measured, table, "--to", folder / "unlabelled", "split.folds=0")
    return folder


@pytest.mark.parametrize("twin", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_small_model_beats_the_medians_and_the_three_stages_follow(folder: Path, tmp_path: Path, twin: bool) -> None:
    recipe = {**RECIPE, "data": {"corpus": str(folder / "measured")}, "run": {"seed": 1, "directory": str(tmp_path)}}

    def trained(name: str, steps: tuple[int, int], kills: list[int]) -> Path:
        config = written(recipe, name, tmp_path, steps, tmp_path / "pseudo")
        run = killed(config, name, kills)
        assert [record["step"] for record in records(run)] == list(range(1, sum(steps) + 1))
        if twin:
            undisturbed = whole(config, f"{name}-undisturbed")
            assert same_bits(last(run), last(undisturbed))
            assert losses(run) == losses(undisturbed)
        return run

    first = trained("ribonanzanet_initial", (40, 20), kills=[20, 50])
    kill_predicting([first], folder / "unlabelled", tmp_path / "pseudo")
    predicting = ["--classes", "noisy", "--write-predictions", tmp_path / "pseudo"]
    command(EVALUATE, first, "--corpus", folder / "unlabelled", *predicting)
    manifest = read_manifest(tmp_path / "pseudo")
    assert manifest["splits"]["train"]["sequences"] == 123 + 200
    assert manifest["provenance"]["checkpoints"][0]["sha256"] == last(first).sha256
    final = trained("ribonanzanet", (20, 40), kills=[10, 40])

    out = command(EVALUATE, first, final, "--corpus", folder / "measured")
    print(out)
    a, c, constant, median = (figures(line) for line in out.splitlines())
    assert (a["targets"], a["sequences"]) == (c["targets"], 426)
    assert constant["loss"] == pytest.approx(0.2648, abs=1e-4)  # of the held-out sixth; of all 0.2647 (spec 13)
    assert median["loss"] == pytest.approx(0.2164, abs=1e-4)  # of all 0.2167
    assert a["loss"] < median["loss"]
    assert c["loss"] < median["loss"]
    for one in (a, c, median):
        assert one["loss_DMS"] < one["loss_2A3"]
        assert one["loss"] == pytest.approx((one["loss_2A3"] + one["loss_DMS"]) / 2, abs=2e-3)
