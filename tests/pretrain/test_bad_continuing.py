"""A run is not continued as another, nor from what is damaged; what was there stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.index import Corpus
from pretrain.checkpoint import MANIFEST, steps_on_disk
from tests.pretrain import faults
from tests.pretrain.bad_input import content, flip, require_refused, state_file, step_path
from tests.ranks import last, losses, pretrain, pretrain_well, refused, same_bits

FAULTS = Path(faults.__file__)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint_usable(again, run, trained, ranks) -> None:
    before = content(run / "checkpoints")
    results = pretrain(["no_file_above=50000", "--", *again], ranks, script=FAULTS)
    told = refused(results)
    assert "cannot be written" in told
    assert "earlier checkpoints are untouched" in told
    assert content(run / "checkpoints") == before
    pretrain_well([*again], ranks)
    assert len(losses(run)) == 8


# ----- continuing


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.seed=2", ("run.seed=1", "2")),
        ("batch.sequences=16", ("batch.sequences=8", "16")),
        ("model.layers=3", ("model.layers=2", "3")),
        ("run.resume=never", ("run.resume",)),
    ],
)
def test_a_run_is_not_continued_as_another(again, run, setting, says) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, setting], str(run), *says)
    assert content(run / "checkpoints") == before


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data.corpus import prepare
    from data.prepare_config import PrepareConfig, SourceConfig
    from data.synthetic import SyntheticCorpus

    directory = tmp_path_factory.mktemp("other")
    fasta = SyntheticCorpus(8, "demo").write_fasta(directory / "other.fa", 200)
    source = SourceConfig(name="other", path=str(fasta))
    prepare(PrepareConfig(name="other", output=str(directory / "c"), sources=[source], validation_fraction=0.1))
    return directory / "c"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_not_continued_on_another_corpus(again, run, other_corpus, ranks) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, f"data.corpus={other_corpus}"], Corpus.open(other_corpus).fingerprint[:16], ranks=ranks)
    assert content(run / "checkpoints") == before


def test_other_initial_weights_for_a_run_that_goes_on_are_named(again, run) -> None:
    """They are not read again, which must be seen."""
    ((code, out, err),) = pretrain([*again, f"init_from={run}"])
    assert code == 0, err
    assert f"continuing with a changed recipe: init_from: None -> {run}" in out + err


def test_a_run_is_continued_on_another_corpus_when_that_is_asked_for(again, run, other_corpus) -> None:
    pretrain_well([*again, f"data.corpus={other_corpus}", "data.allow_changed=true"])
    assert last(run).progress.fingerprint == Corpus.open(other_corpus).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("missing", [MANIFEST, "recipe.yaml", "*.safetensors"])
def test_a_named_checkpoint_with_a_missing_file(new, run, missing) -> None:
    (path,) = step_path(run, 6).glob(missing)
    path.unlink()
    require_refused([*new, f"run.resume={step_path(run, 6)}"], str(step_path(run, 6)), path.name, ranks=2)


def test_a_named_checkpoint_that_does_not_exist(new, run) -> None:
    require_refused([*new, f"run.resume={run / 'checkpoints' / 'step-7'}"], "step-7")


@pytest.mark.slow
@pytest.mark.parametrize("missing", [MANIFEST, "recipe.yaml", "*.safetensors"])
def test_the_newest_checkpoint_is_passed_over_when_a_file_is_missing(again, run, trained, missing) -> None:
    (path,) = step_path(run, 6).glob(missing)
    path.unlink()
    ((code, out, err),) = pretrain(again)
    assert code == 0, err
    assert err.count("warning: passing over a checkpoint:") == 1
    assert "at step 4" in out
    assert losses(run)[:6] == losses(trained)
    assert same_bits(_checkpoint(run, 6), _checkpoint(trained, 6))


def _checkpoint(run: Path, step: int):
    from pretrain.checkpoint import Checkpoint

    return Checkpoint(step_path(run, step))


def test_when_every_checkpoint_lacks_a_file_nothing_starts_from_zero(again, run) -> None:
    for step in (2, 4, 6):
        state_file(run, step).unlink()
    require_refused(again, str(run / "checkpoints"), "no checkpoint", ranks=2)
    assert len(steps_on_disk(run / "checkpoints")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("where", ["header", "weights", "recipe.yaml", MANIFEST])
def test_a_flipped_byte_in_a_named_checkpoint(again, run, where) -> None:
    path = step_path(run, 6) / where if where in ("recipe.yaml", MANIFEST) else state_file(run, 6)
    flip(path, 40 if where == "header" else path.stat().st_size // 2)
    before = content(run / "checkpoints")
    require_refused([*again, f"run.resume={step_path(run, 6)}"], str(path), ranks=2)
    assert content(run / "checkpoints") == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "another kind", "another format", "a key less"])
def test_a_damaged_manifest_of_a_checkpoint(new, run, damage) -> None:
    path = step_path(run, 6) / MANIFEST
    whole = path.read_text()
    less = {key: value for key, value in json.loads(whole).items() if key != "shapes"}
    texts = {
        "cut": whole[: len(whole) // 2],
        "empty": "",
        "another kind": "[1, 2]",
        "another format": whole.replace('"format": 2', '"format": 99'),
        "a key less": json.dumps(less),
    }
    path.write_text(texts[damage])
    require_refused([*new, f"run.resume={step_path(run, 6)}"], str(path))


def test_an_older_checkpoint_is_not_continued_over_newer_ones(again, run) -> None:
    before = content(run / "checkpoints")
    require_refused([*again, f"run.resume={step_path(run, 2)}"], "step-00000006", "run.resume=auto")
    assert content(run / "checkpoints") == before
