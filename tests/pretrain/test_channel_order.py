"""Channels in another order than the published one: names decide which row of the output is which, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.layouts.detect import read_checkpoint
from pretrain import recipe, release
from pretrain.checkpoint import newest
from pretrain.errors import PretrainError
from pretrain.initialise import build_model, load_initial
from pretrain.release import Options
from tests.data.reactivity_files import build, rows_of, write_table
from tests.ranks import ROOT, last, pretrain, pretrain_well, refused

pytest.importorskip("pyarrow")

TINY = ["--config", str(ROOT / "tests" / "tiny_reactivity.yaml")]
ORDERS = {"published": ["2A3", "DMS"], "swapped": ["DMS", "2A3"]}
HEAD = ("head.weight", "head.bias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same profiles as a corpus of either order, and of other names."""
    folder = tmp_path_factory.mktemp("channels")
    table = write_table(folder / "t.csv", rows_of(60))
    for name, channels in ORDERS.items():
        build(folder / name, table, channels=channels)
    renamed = {"2A3_MaP": "1M7", "DMS_MaP": "DMS"}
    source = {"name": "t", "path": str(table), "experiments": renamed}
    build(folder / "other", channels=["1M7", "DMS"], sources=[source_of(**source)])
    return folder


def source_of(**given):
    from data.reactivity_config import ReactivitySource

    return ReactivitySource(**given)


@pytest.fixture(scope="module")
def train(folder: Path) -> Callable[..., Path]:
    """A run on the corpus of one of these orders; each is trained once."""
    done: dict[str, Path] = {}

    def run(corpus: str, *settings: str, name: str | None = None) -> Path:
        name = name or corpus
        if name not in done:
            pretrain_well(arguments(folder, corpus, f"run.name=run-{name}", "budget.steps=2", *settings))
            done[name] = folder / f"run-{name}"
        return done[name]

    return run


def arguments(folder: Path, corpus: str, *settings: str) -> list[str]:
    channels = ORDERS.get(corpus, ["1M7", "DMS"])
    place = [f"data.corpus={folder / corpus}", f"run.directory={folder}", f"objective.channels=[{','.join(channels)}]"]
    return [*TINY, *place, *settings]


def settings_of(folder: Path, corpus: str, *settings: str):
    return recipe.load(TINY[1], arguments(folder, corpus, *settings)[2:])


def loaded(folder: Path, corpus: str, source: Path):
    """A model of a recipe with the channels of ``corpus``, started from ``source``."""
    settings = settings_of(folder, corpus, f"init_from={source}")
    model = build_model(settings)
    load_initial(model, settings)
    return model.eval()


def test_a_release_names_the_rows_right_and_comes_back_bit_for_bit(
    train: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    run = train("swapped")
    trained = last(run).weights()
    _, checked = release.release(run, tmp_path / "out", Options())
    assert [one.layout for one in checked] == ["multimolecule", "original"]
    assert all(one.largest_difference == 0 for one in checked)
    for one in checked:
        _, _, state = read_checkpoint(one.path, heads=2)  # 2A3 first, as published
        assert torch.equal(state["head.weight"], trained["head.weight"].flip(0)), one.layout
        again = loaded(folder, "swapped", one.path).state_dict()
        assert all(torch.equal(again[key], trained[key]) for key in trained), one.layout
        published = loaded(folder, "published", one.path).state_dict()
        assert all(torch.equal(published[key], trained[key].flip(0)) for key in HEAD), one.layout
    original = torch.load(checked[1].path, weights_only=True)
    assert torch.equal(original["decoder.bias"], trained["head.bias"].flip(0))
    assert "are 2A3, DMS, in this order" in (tmp_path / "out" / "README.md").read_text()


def test_multimolecule_gives_our_predictions_by_name(train: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    multimolecule = pytest.importorskip("multimolecule", reason="the optional extra `test` is not installed")
    run = train("swapped")
    release.release(run, tmp_path / "out", Options(layouts=("multimolecule",)))
    theirs = multimolecule.RibonanzaNetForPreTraining.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    model = build_model(settings_of(folder, "swapped"))
    model.load_state_dict(last(run).weights())
    ids = torch.tensor([[0, 1, 2, 3, 3, 2, 0, 1, 1, 2]])
    with torch.no_grad():
        ours, found = model.eval()(ids), theirs(ids + 6)
    assert (ours[..., 0] - ours[..., 1]).abs().max() > 1e-2  # or the order would not show
    torch.testing.assert_close(found.logits_dms[..., 0], ours[..., 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.logits_2a3[..., 0], ours[..., 1], atol=2e-5, rtol=0)


def test_a_run_of_ours_starts_one_of_another_order(train: Callable[..., Path], folder: Path) -> None:
    run = train("published")
    trained, swapped = last(run).weights(), loaded(folder, "swapped", run).state_dict()
    assert all(torch.equal(swapped[key], trained[key].flip(0)) for key in HEAD)
    one = settings_of(folder, "published", f"init_from={run}", "model.channels=1", "objective.channels=[DMS]")
    model = build_model(one)
    load_initial(model, one)
    assert torch.equal(model.state_dict()["head.weight"], trained["head.weight"][1:])


def test_the_channels_of_stages_decide(train: Callable[..., Path], folder: Path) -> None:
    """The recipe's own objective.channels may be others, which no stage uses."""
    run = train("published")
    own = f"{{data: {{corpus: {folder / 'swapped'}}}, objective: {{channels: [DMS, 2A3]}}, budget: {{steps: 1}}}}"
    settings = settings_of(
        folder, "published", f"init_from={run}", "budget.steps=null", f"stages={{a: {own}, b: {own}}}"
    )
    model, trained = build_model(settings), last(run).weights()
    load_initial(model, settings)
    assert all(torch.equal(model.state_dict()[key], trained[key].flip(0)) for key in HEAD)


@pytest.mark.slow
def test_continued_training_starts_alike_in_either_order(train: Callable[..., Path], folder: Path) -> None:
    """The same weights, judged on the same values in two orders of channels before the first step."""
    run = train("published")
    found = []
    for corpus in ORDERS:
        more = ["validation.sequences=99", "validation.every_steps=0"]
        goes_on = train(corpus, f"init_from={run}", "validation.at_start=true", *more, name=f"{corpus}-on")
        found.append(validated(goes_on))
    assert found[0]["loss_2A3"] == pytest.approx(found[1]["loss_2A3"], rel=1e-6)
    assert found[0]["loss_DMS"] == pytest.approx(found[1]["loss_DMS"], rel=1e-6)
    assert abs(found[0]["loss_2A3"] - found[0]["loss_DMS"]) > 1e-4


def validated(run: Path) -> dict:
    from tests.ranks import records

    first = records(run, "validation")[0]
    assert first["step"] == 0
    return first


def test_other_channels_are_released_in_our_own_layout(
    train: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    run = train("other")
    trained = last(run).weights()
    for layout in ("multimolecule", "original"):
        with pytest.raises(PretrainError, match=rf"no {layout} layout .* 1M7, DMS; choose --layout rnafoundry"):
            release.release(run, tmp_path / "none", Options(layouts=(layout,)))
    _, checked = release.release(run, tmp_path / "out", Options())
    assert [(one.layout, one.largest_difference) for one in checked] == [("rnafoundry", 0)]
    assert "1M7, DMS, in this order" in (tmp_path / "out" / "README.md").read_text()
    again = loaded(folder, "other", tmp_path / "out").state_dict()
    assert all(torch.equal(again[key], trained[key]) for key in trained)
    turned = settings_of(folder, "other", f"init_from={tmp_path / 'out'}", "objective.channels=[DMS,1M7]")
    model = build_model(turned)
    load_initial(model, turned)
    assert torch.equal(model.state_dict()["head.bias"], trained["head.bias"].flip(0))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["run", "release", "file"])
def test_channels_that_the_weights_do_not_have_are_refused(
    train: Callable[..., Path], folder: Path, tmp_path: Path, form: str
) -> None:
    source = run = train("published")
    if form != "run":
        _, checked = release.release(run, tmp_path / "out", Options())
        source = checked[0 if form == "release" else 1].path
    said = refused(pretrain(arguments(folder, "other", f"init_from={source}", "run.name=refused")))
    assert f"init_from={source} predicts 2A3, DMS, but objective.channels asks for 1M7" in said


def test_a_file_whose_outputs_nobody_names(folder: Path, train: Callable[..., Path], tmp_path: Path, caplog) -> None:
    """A decoder of three rows in the authors' layout: as many channels are taken in its order, with a warning."""
    _, checked = release.release(train("published"), tmp_path / "out", Options())
    state = torch.load(checked[1].path, weights_only=True)
    state |= {key: torch.cat((state[key], state[key][:1])) for key in ("decoder.weight", "decoder.bias")}
    torch.save(state, tmp_path / "three.pt")
    more = ["model.channels=3", "objective.channels=[a,b,c]"]
    settings = settings_of(folder, "other", f"init_from={tmp_path / 'three.pt'}", *more)
    model = build_model(settings)
    load_initial(model, settings)
    assert torch.equal(model.state_dict()["head.weight"], state["decoder.weight"])
    assert "nothing names its 3 outputs; they are taken to be a, b, c" in caplog.text
    with pytest.raises(PretrainError, match=r"has 3 outputs without names, but objective\.channels are 2A3, DMS"):
        loaded(folder, "published", tmp_path / "three.pt")


def test_stages_and_continued_runs_keep_their_channels(
    train: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    stages = "{a: {budget: {steps: 1}}, b: {budget: {steps: 1}, data: {corpus: %s}, objective: {channels: [DMS, 2A3]}}}"
    said = refused(
        pretrain(
            arguments(
                folder, "published", "budget.steps=null", "run.name=mixed", f"stages={stages % (folder / 'swapped')}"
            )
        )
    )
    assert "the stages a (2A3, DMS) and b (DMS, 2A3) have different channels" in said
    train("published")
    again = arguments(folder, "swapped", "run.name=run-published", "budget.steps=3", "data.allow_changed=true")
    said = refused(pretrain(again))
    assert "predicts 2A3, DMS, but objective.channels is DMS, 2A3" in said
    assert newest(folder / "run-published" / "checkpoints").progress.step == 2


def test_figures_of_a_corpus_say_which_channel(folder: Path) -> None:
    """The two corpora hold the same values, in their own orders."""
    from data.reactivity import ReactivityCorpus

    one, other = (ReactivityCorpus.open(folder / name) for name in ORDERS)
    by_letters = {profile.letters.tobytes(): profile for profile in other.profiles(np.arange(other.count))}
    assert one.count == other.count
    for profile in one.profiles(np.arange(one.count)):
        turned = by_letters[profile.letters.tobytes()]
        np.testing.assert_array_equal(profile.values, turned.values[:, ::-1])
