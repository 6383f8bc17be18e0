"""The AIDO.RNA recipes say what specs/aido_rna 5 and 6 say."""

from __future__ import annotations

import numpy as np
import pytest

from data.alphabet import AIDO_RNA
from models.aido_rna import AidoRNAConfig, count_parameters
from pretrain import recipe
from pretrain.objectives.mlm import MLM

SIZES = {
    "aido_rna_650m.yaml": (648_372_368, "650m"),
    "aido_rna_1b6.yaml": (1_611_593_744, "1b6"),
    "aido_rna_650m_cds.yaml": (648_372_368, "650m"),
}


@pytest.mark.parametrize("name", SIZES)
def test_model_and_objective(name):
    loaded = recipe.load(name)
    parameters, size = SIZES[name]
    assert loaded.model == AidoRNAConfig.named(size, checkpointing=True)
    assert count_parameters(loaded.model) == parameters
    assert loaded.objective.max_tokens == 1024


def test_selected_tokens_and_what_stands_in_their_place():
    """specs/aido_rna 11.3: 15 % of the letters, N too; 80/10/10; a random letter is A, C, G or T and another one."""
    objective = MLM(recipe.load("aido_rna_650m.yaml").objective)
    generator = np.random.default_rng(0)
    letters = [generator.choice(np.frombuffer(b"ACGUNR", dtype=np.uint8), 1022) for _ in range(60)]
    batch = objective.collate(letters, np.arange(60, dtype=np.uint64))
    original, now = batch.targets.numpy(), batch.tokens.numpy()[batch.target_index.numpy()]
    assert batch.lengths.tolist() == [1024] * 60
    assert (batch.tokens[batch.cu_seqlens[:-1].long()] == 2).all()
    assert (batch.tokens[batch.cu_seqlens[1:].long() - 1] == 3).all()
    assert {AIDO_RNA.tokens[i] for i in original} == set("ACGTN")
    assert len(original) / (60 * 1022) == pytest.approx(0.15, abs=0.006)
    masked, random = now == AIDO_RNA.ids["[MASK]"], (now != AIDO_RNA.ids["[MASK]"]) & (now != original)
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert random.mean() == pytest.approx(0.1, abs=0.015)
    assert {AIDO_RNA.tokens[i] for i in now[random]} == set("ACGT")


@pytest.mark.parametrize(
    ("name", "peak", "minimum", "epochs"),
    [
        ("aido_rna_650m.yaml", 5e-5, 1e-5, 6),
        ("aido_rna_1b6.yaml", 5e-5, 1e-5, 6),
        ("aido_rna_650m_cds.yaml", 1e-5, 1e-6, 3),  # continues at the base run's final rate
    ],
)
def test_optimisation(name, peak, minimum, epochs):
    loaded = recipe.load(name)
    optimizer, schedule = loaded.optimizer, loaded.schedule
    assert (optimizer.learning_rate, schedule.minimum, loaded.budget.epochs) == (peak, minimum, epochs)
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_start) == ("cosine", 2000, 1e-7)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.gradient_clipping) == (
        [0.9, 0.999],
        1e-8,
        0.01,
        1.0,
    )
    assert loaded.batch.sequences == 1344
    assert loaded.compute.precision == "bf16_autocast"
    assert (loaded.init_from is not None) == name.endswith("cds.yaml")


def test_steps_of_six_epochs():
    """specs/aido_rna 11.3: 42 M sequences, 1344 at a time, six times."""
    loaded = recipe.load("aido_rna_650m.yaml")
    assert 42_000_000 * loaded.budget.epochs / loaded.batch.sequences == 187_500
