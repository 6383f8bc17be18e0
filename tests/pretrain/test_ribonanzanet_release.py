"""RibonanzaNet from a run to a release in both layouts, and from each of them to the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain import release
from pretrain.release import Options
from tests.data.reactivity_files import build, rows_of, write_table
from tests.ranks import ROOT, last, losses, pretrain, pretrain_well, refused

pytest.importorskip("pyarrow")

TINY = ["--config", str(ROOT / "tests" / "tiny_reactivity.yaml")]
CASES = {
    "base": [],
    "triangle": ["model.triangle_attention=true"],
    "single": ["model.attention_residual=single"],
}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("release")
    build(folder / "corpus", write_table(folder / "t.csv", rows_of(60)))

    def run(name: str, *settings: str) -> Path:
        place = [f"data.corpus={folder / 'corpus'}", f"run.directory={folder}", f"run.name={name}", "budget.steps=2"]
        pretrain_well([*TINY, *place, *settings])
        return folder / name

    return run


@pytest.mark.parametrize(
    "case",
    ["base", pytest.param("triangle", marks=pytest.mark.slow), pytest.param("single", marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_every_layout_starts_the_next_run_from_the_same_weights(
    train: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    run = train(case, *CASES[case])
    _, checked = release.release(run, tmp_path / "out", Options(licence="cc0-1.0"))
    # The authors' code has no other residual than the double one.
    assert [one.layout for one in checked] == (["multimolecule"] if case == "single" else ["multimolecule", "original"])
    assert all(one.largest_difference == 0 for one in checked)
    found = [losses(train(f"{case}-run", f"init_from={run}", *CASES[case]))]
    for one in checked:
        found.append(losses(train(f"{case}-{one.layout}", f"init_from={one.path}", *CASES[case])))
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 2
    fresh = last(run).weights()
    state = torch.load(checked[1].path, weights_only=True) if len(checked) > 1 else None
    if state is not None:
        assert torch.equal(state["decoder.weight"], fresh["head.weight"])


@pytest.mark.slow
def test_weights_of_another_size_are_refused_in_one_sentence(train: Callable[..., Path], tmp_path: Path) -> None:
    run = train("small")
    settings = [
        f"init_from={run}",
        "model.pair=16",
        f"run.directory={tmp_path}",
        f"data.corpus={run.parent / 'corpus'}",
    ]
    assert "choose the model.size of that checkpoint" in refused(pretrain([*TINY, *settings]))
    triangle = [*settings[:1], "model.triangle_attention=true", *settings[2:]]
    assert "choose the model.size of that checkpoint" in refused(pretrain([*TINY, *triangle]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "signed", "zero_logit"])
def test_a_historical_treatment_of_padding_is_released_for_unpadded_input_and_says_so(
    train: Callable[..., Path], tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Spec 9: MultiMolecule has fixed and signed; files of the authors do not say what they were trained with."""
    run = train(f"mode-{mode}", f"model.mask_mode={mode}")
    _, checked = release.release(run, tmp_path / "out", Options(licence="cc0-1.0"))
    assert {one.layout: one.largest_difference for one in checked} == {"multimolecule": 0, "original": 0}
    without = ["original"] if mode == "signed" else ["multimolecule", "original"]
    told = [record.getMessage() for record in caplog.records if "without padding" in record.getMessage()]
    assert [line.split()[1] for line in told] == without
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"was trained with mask_mode {mode}" in card) == (mode != "signed")
