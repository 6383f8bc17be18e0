"""Releases: what is published gives the trained model's outputs, and what does not is never put into place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.layouts.detect import read_checkpoint
from pretrain import recipe, release
from pretrain.checkpoint import newest
from pretrain.errors import PretrainError
from pretrain.initialise import build_model, load_initial, read_weights, stated_licence
from pretrain.release import Options
from tests.ranks import TINY, pretrain_well


def recipe_arguments(corpus: Path, *more: str) -> list[str]:
    fixed = [f"data.corpus={corpus}", "batch.sequences=8", "budget.steps=3", "schedule.warmup_steps=1"]
    return [*TINY, *fixed, "validation.sequences=16", "tracking.log_every_steps=1", *more]


@pytest.fixture(scope="session")
def run(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of a tiny RiNALMo whose feed-forward layers are padded."""
    runs = tmp_path_factory.mktemp("runs")
    extra = [f"run.directory={runs}", "run.name=tiny", "model.ffn_pad_to=64"]
    pretrain_well(["--config", "demo.yaml", *recipe_arguments(synthetic_corpus, *extra)])
    return runs / "tiny"


@pytest.fixture(scope="session")
def released(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("release") / "tiny"
    _, checked = release.release(run, to, Options(licence="cc-by-4.0"))
    assert [result.layout for result in checked] == ["multimolecule", "original"]
    assert all(result.largest_difference == 0.0 and result.path.exists() for result in checked)
    return to


def test_both_layouts_hold_the_trained_weights_without_padding(run: Path, released: Path) -> None:
    trained = newest(run / "checkpoints").weights()
    padded = trained["blocks.0.ffn.swish.weight"]
    assert padded.shape[0] == 64
    assert torch.count_nonzero(padded[40:]) == 0
    (file,) = (released / "original").glob("*.pt")
    for path in (released, file):
        name, config, state = read_checkpoint(path, heads=2)
        assert (name, config.ffn) == ("rinalmo", 40)
        assert torch.equal(state["blocks.0.ffn.swish.weight"], padded[:40])
        assert torch.equal(state["embed.weight"], trained["embed.weight"])


def test_multimolecule_gives_the_trained_outputs(run: Path, released: Path) -> None:
    pytest.importorskip("multimolecule", reason="the optional extra `test` is not installed")
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    theirs = AutoModelForMaskedLM.from_pretrained(released)
    tokenizer = AutoTokenizer.from_pretrained(released)
    text = ["GGGAAACCC<mask>UUAGN", "ACGU<mask>ACGGAUUAGCAUCG"]
    encoded = tokenizer(text, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = theirs(**encoded).logits

    settings = recipe.read_resolved(run / "recipe.yaml")
    model = build_model(settings)
    model.load_state_dict(newest(run / "checkpoints").weights())
    model.eval()
    from data.alphabet import RINALMO

    for row, sequence in enumerate(text):
        left, right = sequence.split("<mask>")
        ids = [0, *RINALMO.encode(left), 4, *RINALMO.encode(right), 2]
        n = len(ids)
        with torch.no_grad():
            ours = model(torch.tensor(ids), torch.tensor([0, n], dtype=torch.int32), torch.arange(n), n)
        for letter in "ACGUN":
            their_id = tokenizer.convert_tokens_to_ids(letter)
            torch.testing.assert_close(logits[row, :n, their_id], ours[:, RINALMO.letter_id(letter)], atol=2e-5, rtol=0)


def test_model_card_tells_data_recipe_results_and_licence(run: Path, released: Path) -> None:
    card = (released / "README.md").read_text()
    front = card.split("---")[1]
    assert 'license: "cc-by-4.0"' in front
    assert 'pipeline_tag: "fill-mask"' in front
    progress = newest(run / "checkpoints").progress
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [record for record in records if record["kind"] == "validation"][-1]
    for fact in (progress.fingerprint, "| Steps | 3 |", f"{validation['loss']:.4f}", "Trained from new weights"):
        assert fact in card
    assert stated_licence(released) == "cc-by-4.0"
    assert recipe.read_resolved(released / "recipe.yaml") == recipe.read_resolved(run / "recipe.yaml")


def test_bf16_sharded_release_reads_back_as_rounded_weights(run: Path, tmp_path: Path) -> None:
    options = Options(layouts=("multimolecule",), dtype="bfloat16", shard_bytes=20_000, vocabulary=26)
    release.release(run, tmp_path / "half", options)
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    assert all(
        x.dtype == torch.bfloat16 for f in (tmp_path / "half").glob("*.safetensors") for x in load_file(f).values()
    )
    assert len((tmp_path / "half" / "vocab.txt").read_text().split()) == 26
    _, _, state = read_checkpoint(tmp_path / "half")
    trained = newest(run / "checkpoints").weights()["blocks.1.attn.qkv.weight"]
    assert torch.equal(state["blocks.1.attn.qkv.weight"], trained.bfloat16().float())


def test_a_layout_with_other_outputs_is_not_published(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.layouts import rinalmo

    original = rinalmo.to_original

    def swapped(state, config):  # type: ignore[no-untyped-def]
        return original({**state, "blocks.0.ffn.beta": -state["blocks.0.ffn.beta"]}, config)

    monkeypatch.setattr(rinalmo, "to_original", swapped)
    with pytest.raises(PretrainError, match="not published"):
        release.release(run, tmp_path / "wrong", Options())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_only_replaced_when_asked(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    (target / "precious").write_text("mine")
    with pytest.raises(PretrainError, match="exists already"):
        release.release(run, target, Options())
    assert (target / "precious").read_text() == "mine"
    with pytest.raises(PretrainError, match="is not a release"):
        release.release(run, target, Options(overwrite=True))
    assert (target / "precious").read_text() == "mine"
    with pytest.raises(PretrainError, match="is a file"):
        release.release(run, target / "precious", Options(overwrite=True))
    (target / "recipe.yaml").write_text("")
    release.release(run, target, Options(overwrite=True))
    assert not (target / "precious").exists()
    assert (target / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_outputs_can_be_checked_on_a_fasta(run: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "check.fa"
    fasta.write_text(">a\nGGGATTACACCC\n>b\nacgunACGU\n")
    _, checked = release.release(run, tmp_path / "out", Options(layouts=("original",), sequences=fasta))
    assert checked[0].sequences == 2


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PretrainError, match="neither a run directory nor a checkpoint"):
        release.release(tmp_path, tmp_path / "out", Options())
    with pytest.raises(PretrainError, match="nowhere does not exist"):
        release.release(tmp_path / "nowhere", tmp_path / "out", Options())
    (tmp_path / "logs").mkdir()
    with pytest.raises(PretrainError, match="has no checkpoint yet; the last lines in"):
        release.release(tmp_path, tmp_path / "out", Options())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(PretrainError, match="has no checkpoint yet"):
        release.release(tmp_path, tmp_path / "out", Options())
    for name in ("recipe.yaml", "config.json"):
        (tmp_path / "released").mkdir(exist_ok=True)
        (tmp_path / "released" / name).write_text("")
    with pytest.raises(PretrainError, match="is a release; give the run"):
        release.release(tmp_path / "released", tmp_path / "out", Options())


@pytest.mark.parametrize("source", ["run", "checkpoint", "directory", "original"])
def test_init_from_reads_every_form(run: Path, released: Path, source: str) -> None:
    path = {
        "run": run,
        "checkpoint": run / "checkpoints" / "step-00000003",
        "directory": released,
        "original": next((released / "original").glob("*.pt")),
    }[source]
    settings = recipe.read_resolved(run / "recipe.yaml")
    settings.init_from = str(path)
    model = build_model(settings)
    load_initial(model, settings)
    for name, weight in newest(run / "checkpoints").weights().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_init_from_a_hub_id_uses_the_local_cache(
    released: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory laid out as the hub's cache stands in for the hub."""
    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "models--lab--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(released)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    settings = recipe.read_resolved(run / "recipe.yaml")
    settings.init_from = "lab/tiny"
    origin = load_initial(build_model(settings), settings)
    assert origin == {"init_from": "lab/tiny", "local": False, "licence": "cc-by-4.0", "before": None}
    settings.init_from = "lab/absent"
    with pytest.raises(PretrainError, match="lab/absent is no file or directory here"):
        load_initial(build_model(settings), settings)


def test_starting_from_agpl_weights_warns(
    released: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging
    import shutil

    copy = tmp_path / "theirs"
    shutil.copytree(released, copy)
    (copy / "README.md").write_text("---\nlicense: agpl-3.0\n---\n")
    settings = recipe.read_resolved(run / "recipe.yaml")
    settings.init_from = str(copy)
    monkeypatch.setattr(logging.getLogger("rnafoundry"), "propagate", True)
    load_initial(build_model(settings), settings)
    assert "agpl-3.0" in caplog.text


def test_read_weights_strips_padding(run: Path) -> None:
    name, config, state = read_weights(run)
    assert (name, config.ffn_pad_to) == ("rinalmo", 64)
    assert state["blocks.0.ffn.down.weight"].shape == (32, 40)


@pytest.mark.slow
def test_the_card_names_the_weights_that_a_run_started_from_however_it_is_exported(
    run: Path, released: Path, synthetic_corpus: Path, tmp_path: Path
) -> None:
    """Through a second run, and from a checkpoint that was moved away from its run directory."""
    for name, source in (("second", released), ("third", tmp_path / "second")):
        place = [f"run.directory={tmp_path}", f"run.name={name}", f"init_from={source}"]
        pretrain_well(["--config", "demo.yaml", *recipe_arguments(synthetic_corpus, *place)])
    moved = tmp_path / "moved" / "step-00000003"
    shutil.copytree(tmp_path / "third" / "checkpoints" / "step-00000003", moved)
    release.release(moved, tmp_path / "out", Options(layouts=("original",)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Training started from `second`, whose licence is `cc-by-4.0`." in card
    assert "Training started from `tiny`, whose licence is `cc-by-4.0`." in card
    assert "new weights" not in card
    assert "base_model" not in card
