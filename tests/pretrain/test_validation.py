"""Validation: the same report however it is split; references: trivial models and the bound, computed independently."""

from __future__ import annotations

import math
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.corpus import prepare
from data.index import Corpus
from data.prepare_config import PrepareConfig, SourceConfig
from models.rinalmo import RiNALMo, RiNALMoConfig
from pretrain.distributed import World
from pretrain.objectives.masked import perplexity
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.references import reference_losses
from pretrain.validation import Validation

BUDGET = 700


class Threads:
    """Ranks as threads of this process: a collective waits for all of them, or fails after ten seconds."""

    def __init__(self, ranks: int):
        self.ranks, self.barrier, self.values = ranks, threading.Barrier(ranks, timeout=10), [[]] * ranks

    def world(self, rank: int) -> SimpleNamespace:
        def total(values):
            self.values[rank] = [float(value) for value in values]
            self.barrier.wait()
            summed = [sum(column) for column in zip(*self.values, strict=True)]
            self.barrier.wait()
            return summed

        return SimpleNamespace(rank=rank, ranks=self.ranks, device=torch.device("cpu"), sum=total)

    def run(self, validation: Validation, engine, stopping=lambda rank: False) -> list:
        reports = [None] * self.ranks

        def work(rank: int) -> None:
            world = self.world(rank)
            reports[rank] = validation.run(engine, world, lambda problem: World.meet(world, problem, stopping(rank)))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return reports


class Engine:
    """A model without DeepSpeed; keeps what it was told."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.modes = module, []
        self.deepspeed = SimpleNamespace(
            eval=lambda: self.modes.append("eval"), train=lambda: self.modes.append("train")
        )


@pytest.fixture(scope="module")
def held_out(synthetic_corpus: Path) -> Corpus:
    return Corpus.open(synthetic_corpus, "validation")


@pytest.fixture(scope="module")
def training(synthetic_corpus: Path) -> Corpus:
    return Corpus.open(synthetic_corpus, "train")


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    config = RiNALMoConfig(layers=1, width=16, heads=2, ffn=20, attention_dropout=0, residual_dropout=0)
    return Engine(RiNALMo(config).eval())


def validation(corpus: Corpus, sequences: int = 4096, budget: int = BUDGET, **options) -> Validation:
    return Validation(corpus, MLM(MLMConfig(**{"max_tokens": 128, **options})), sequences, budget)


def alone(checked: Validation, engine: Engine):
    return Threads(1).run(checked, engine)[0]


def flat(report: dict, prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in report.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


def masks(checked: Validation, ranks: int = 1) -> dict[int, tuple]:
    found = {}
    for rank in range(ranks):
        for chosen, batch in checked.micro_batches(rank, ranks):
            for i, place in enumerate(chosen.tolist()):
                start, stop = batch.cu_seqlens[i : i + 2].tolist()
                mine = tuple(batch.target_nucleotide[batch.target_sample == i].tolist())
                assert place not in found
                found[place] = tuple(batch.tokens[start:stop].tolist()), mine
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_report_is_the_same_for_one_rank_and_for_several_on_each(held_out, engine, ranks):
    whole = flat(alone(validation(held_out, budget=5000), engine))
    for report in Threads(ranks).run(validation(held_out), engine):
        assert flat(report) == pytest.approx(whole, rel=1e-5)


def test_more_ranks_than_sequences_give_the_same_report(held_out, engine):
    whole = flat(alone(validation(held_out, sequences=2), engine))
    for report in Threads(4).run(validation(held_out, sequences=2), engine):
        assert flat(report) == pytest.approx(whole, rel=1e-5)


def test_the_report_equals_cross_entropies_computed_one_sequence_at_a_time(held_out, engine):
    checked = validation(held_out, sequences=30)
    nats, plain, right = [], [], []
    for place in range(30):
        letters = held_out.letters([place])
        batch = checked.objective.collate(letters, checked._keys[place : place + 1])
        with torch.no_grad():
            logits = checked.objective.logits(engine.module, batch).double()
        for row, target in zip(logits, batch.targets.tolist(), strict=True):
            nats.append((row.logsumexp(0) - row[target]).item())
            plain.append((row[5:9].logsumexp(0) - row[target]).item())
            right.append(row.argmax().item() == target)
    report = alone(checked, engine)
    assert report["sequences"] == 30
    assert report["targets"] == len(nats) > 100
    assert report["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert report["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert report["perplexity_acgu"] == pytest.approx(math.exp(np.mean(plain)), rel=1e-5)
    assert report["accuracy"] == pytest.approx(np.mean(right))


def test_the_types_add_up_to_the_total(held_out, engine):
    report = alone(validation(held_out), engine)
    types = report["types"].values()
    assert set(report["types"]) == {"tRNA", "rRNA", "snRNA", "snoRNA"}
    assert sum(t["targets"] for t in types) == report["targets"]
    for key in ("loss", "accuracy"):
        assert sum(t[key] * t["targets"] for t in types) / report["targets"] == pytest.approx(report[key])


def test_perplexity_over_four_letters_is_at_most_that_over_all_tokens(held_out, engine):
    report = alone(validation(held_out), engine)
    assert 1 < report["perplexity_acgu"] < report["perplexity"]


def test_masks_depend_on_the_sequence_alone(held_out):
    found = []
    for seed, budget, ranks in ((1, 130, 1), (2, 5000, 3)):
        np.random.seed(seed)  # noqa: NPY002 (no generator of the process may matter)
        torch.manual_seed(seed)
        found.append(masks(validation(held_out, budget=budget), ranks))
    assert found[0] == found[1]
    assert len(found[0]) == held_out.count
    fewer = masks(validation(held_out, sequences=20))
    assert fewer == {place: found[0][place] for place in range(20)}


def test_a_stop_on_one_rank_ends_validation_on_all_without_a_report(held_out, engine):
    assert Threads(3).run(validation(held_out), engine, stopping=lambda rank: rank == 1) == [None] * 3


def test_dropout_is_off_during_validation_and_back_on_afterwards_even_when_it_fails(held_out):
    class Failing(torch.nn.Module):
        def forward(self, **_):
            raise RuntimeError("out of memory")

    engine = Engine(Failing())
    with pytest.raises(RuntimeError, match="out of memory"):
        validation(held_out).run(engine, Threads(1).world(0), lambda problem: False)
    assert engine.modes == ["eval", "train"]


def test_the_model_is_left_without_gradients(held_out, engine):
    alone(validation(held_out, sequences=5), engine)
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_perplexity_of_a_hopeless_or_an_empty_sum():
    assert perplexity(0.0, 0) == 1
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(math.log(4) * 10, 10) == pytest.approx(4)


# References


def targets(checked: Validation) -> list[tuple[str, int]]:
    """(sequence, selected place) of every target, sequence by sequence."""
    found = []
    for place in range(len(checked.ids)):
        letters = checked.corpus.letters([place])
        batch = checked.objective.collate(letters, checked._keys[place : place + 1])
        found += [(letters[0].tobytes().decode(), i) for i in batch.target_nucleotide.tolist()]
    return found


def test_letter_frequencies_and_markov_chain_equal_a_direct_computation(training, held_out):
    checked = validation(held_out)
    sequences = [letters.tobytes().decode() for letters in training.letters(np.arange(training.count))]
    single = Counter(letter for sequence in sequences for letter in sequence)
    triples = Counter(sequence[i - 2 : i + 1] for sequence in sequences for i in range(2, len(sequence)))
    pairs = Counter(triple[:2] for triple in triples.elements())

    def frequency(letter: str) -> float:
        return (single[letter] + 1) / (sum(single.values()) + 4)

    def markov(sequence: str, i: int) -> float:
        if i < 2:
            return frequency(sequence[i])
        return (triples[sequence[i - 2 : i + 1]] + 1) / (pairs[sequence[i - 2 : i]] + 4)

    chosen = targets(checked)
    report = reference_losses(training, checked)
    letters = -np.mean([math.log(frequency(sequence[i])) for sequence, i in chosen])
    chain = -np.mean([math.log(markov(sequence, i)) for sequence, i in chosen])
    assert report["letter_frequencies"]["loss"] == pytest.approx(letters, rel=1e-9)
    assert report["markov_2"]["loss"] == pytest.approx(chain, rel=1e-9)
    assert report["markov_2"]["perplexity"] == pytest.approx(math.exp(chain), rel=1e-9)


def test_the_bound_of_a_synthetic_corpus_is_below_what_any_trivial_model_reaches(training, held_out):
    report = reference_losses(training, validation(held_out))
    assert 0.1 < report["generator_bound"]["loss"] < 0.8 * report["markov_2"]["loss"]
    assert report["markov_2"]["loss"] < report["letter_frequencies"]["loss"] < 1.05 * math.log(4)


def test_the_bound_falls_when_nothing_is_masked_and_rises_when_more_is(training, held_out):
    def bound(**rates):
        return reference_losses(training, validation(held_out, **rates))["generator_bound"]["loss"]

    assert bound(mask_share=0.0, random_share=0.0) == pytest.approx(0, abs=1e-9)
    assert bound(mask_share=1.0, random_share=0.0, masked_fraction=0.1) < bound(
        mask_share=1.0, random_share=0.0, masked_fraction=0.9
    )


@pytest.mark.parametrize("options", [{"random_differs": False}, {"random_letters": "AC"}, {"max_tokens": 50}])
def test_no_bound_is_given_for_a_masking_it_does_not_hold_for(training, held_out, options):
    assert set(reference_losses(training, validation(held_out, **options))) == {"letter_frequencies", "markov_2"}


def test_no_bound_is_given_for_sequences_that_are_not_synthetic(tmp_path):
    generator = np.random.default_rng(0)
    sequences = ["".join(generator.choice(list("ACGU"), 40)) for _ in range(300)]
    fasta = tmp_path / "real.fa"
    fasta.write_text("".join(f">SYN7-demo-{i} rRNA\n{sequence}\n" for i, sequence in enumerate(sequences)))
    output = tmp_path / "corpus"
    prepare(PrepareConfig("real", [SourceConfig("real", str(fasta))], str(output), validation_fraction=0.1))
    checked = validation(Corpus.open(output, "validation"))
    report = reference_losses(Corpus.open(output), checked)
    assert set(report) == {"letter_frequencies", "markov_2"}
    assert report["letter_frequencies"]["loss"] == pytest.approx(math.log(4), rel=0.01)


def test_references_of_a_validation_without_a_single_target_are_numbers(training, held_out):
    report = reference_losses(training, validation(held_out, sequences=1, masked_fraction=1e-12))
    assert report["markov_2"] == {"loss": 0.0, "perplexity": 1.0}
    assert "generator_bound" not in report
