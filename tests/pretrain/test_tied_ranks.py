"""A decoder that is the embedding, at every way to divide a step: the same losses, and one tensor in checkpoints.

AIDO.RNA and RNAErnie have one, RNAErnie trained as it is meant: by bases, spans and motifs, with types. At stage 3
every parameter is partitioned here, also those that by their size would stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint import steps_on_disk
from tests.ranks import QUICK, finish, last, losses, pretrain_well, same_bits, start, wait_for

STEPS = 12
MODELS = {
    "aido_rna": ["model.name=aido_rna", "model.size=null", "objective.alphabet=aido_rna"],
    "rnaernie": [
        *("model.name=rnaernie", "model.vocab=57", "objective.name=intervals", "objective.alphabet=rnaernie"),
        *("objective.motif.files=[{motifs}]", "objective.type_token.mask_prob=0.5"),
    ],
}
PARTITION_ALL = "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"
QUICKLY = [(2, 0), (2, 3)]
OTHERS = [case for case in product((1, 2, 3), (0, 1, 2, 3)) if case not in [(1, 0), *QUICKLY]]


def taking_turns(cases: list[tuple]) -> list:
    """Every case with one of the models, in turn; `make soak` does it with the other one too."""
    return [
        pytest.param(*case, model, marks=() if at % 2 == number else pytest.mark.soak)
        for at, case in enumerate(cases)
        for number, model in enumerate(MODELS)
    ]


@pytest.fixture(scope="module")
def command(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path]]:
    """(arguments, run directory) of a run of one of the models."""
    directory = tmp_path_factory.mktemp("tied")
    motifs = directory / "motifs.txt"
    motifs.write_text("GGCGCC\nGCGGAU\nAACUUACG\nUUCGAA\nGGGAAA\nCCUUGG\n")

    def make(name: str, model: str, stage: int, *extra: str) -> tuple[list[str], Path]:
        settings = [f"run.directory={directory}", f"run.name={model}-{name}", f"data.corpus={synthetic_corpus}"]
        settings += [f"deepspeed.zero_stage={stage}", "batch.tokens_per_micro_batch=256", f"budget.steps={STEPS}"]
        settings += [setting.format(motifs=motifs) for setting in MODELS[model]] + [PARTITION_ALL] * (stage == 3)
        return [*QUICK, *settings, *extra], directory / f"{model}-{name}"

    return make


@pytest.fixture(scope="module")
def train(command) -> Callable[..., Path]:
    """Trains and returns the run directory; the same arguments train once."""
    done: set[Path] = set()

    def run(model: str, ranks: int, stage: int, *extra: str) -> Path:
        named = "-".join(["", *extra]).replace("/", "")
        arguments, directory = command(f"ranks{ranks}-zero{stage}{named}", model, stage, *extra)
        if directory not in done:
            pretrain_well(arguments, ranks)
            done.add(directory)
        return directory

    return run


def require_equal(run: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    assert losses(reference)[-1] < losses(reference)[0] - 0.1
    np.testing.assert_allclose(losses(run), losses(reference), rtol=1e-5)
    one, other = last(run).weights(), last(reference).weights()
    assert one.keys() == other.keys()
    assert {"embed.weight", "head.out.bias"} <= one.keys()
    assert "head.out.weight" not in one
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("ranks", "stage"), QUICKLY)
def test_ranks_and_zero_stages_give_one_loss_curve(train, model, ranks, stage) -> None:
    require_equal(train(model, ranks, stage), train(model, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "model"), taking_turns(OTHERS))
def test_every_other_stage_too(train, model, ranks, stage) -> None:
    require_equal(train(model, ranks, stage), train(model, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_blocks_change_nothing(train, model, stage) -> None:
    require_equal(train(model, 2, stage, "model.checkpointing=true"), train(model, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "stage", "model"),
    taking_turns([("bf16", 2), ("bf16", 3), ("bf16_autocast", 0), ("bf16_autocast", 3)]),
)
def test_bf16_follows_fp32_within_a_fiftieth(train, model, precision, stage) -> None:
    run, reference = train(model, 2, stage, f"compute.precision={precision}"), train(model, 1, 0)
    np.testing.assert_allclose(losses(run), losses(reference), rtol=2e-2)
    assert losses(run) != losses(reference), "bf16 was not used"


@pytest.mark.parametrize(("precision", "stage", "model"), taking_turns([("fp32", 2), ("bf16", 3)]))
@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(command, model, precision, stage) -> None:
    """With dropout, which is keyed; killed on both ranks once at least one checkpoint is there."""
    settings = ["checkpoint.every_steps=3", f"compute.precision={precision}", "model.residual_dropout=0.1"]
    settings += ["model.attention_dropout=0.1"]
    whole, reference = command(f"whole-{precision}", model, stage, *settings)
    pretrain_well(whole, ranks=2)
    arguments, run = command(f"killed-{precision}", model, stage, *settings)
    ranks = start(arguments, ranks=2)
    wait_for(lambda: steps_on_disk(run / "checkpoints"))  # a thread writes them
    for rank in ranks:
        rank.kill()
    assert all(code != 0 for code, _, _ in finish(ranks)), "the run was over before the kill"
    assert 3 <= last(run).progress.step < STEPS
    pretrain_well(arguments, ranks=2)
    assert same_bits(last(run), last(reference))
    assert losses(run) == losses(reference)


def test_both_ends_of_the_model_train_the_tied_matrix(train, command) -> None:
    """The rows of letters move as inputs and as answers, those of unused tokens as wrong answers only."""
    from pretrain import recipe
    from pretrain.initialise import build_model

    arguments, _ = command("unused", "aido_rna", 0)
    before = build_model(recipe.load(arguments[1], arguments[2:])).state_dict()["embed.weight"]
    moved = (last(train("aido_rna", 2, 3)).weights()["embed.weight"] - before).abs().amax(dim=1)
    assert (moved > 1e-4).all(), moved
