"""Validation on alignments: the same report however it is split; references and contacts, computed independently."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.alignment_corpus import prepare_alignments
from data.alignments import AlignmentCorpus
from data.errors import DataError
from models.rnamsm import RNAMSM, RNAMSMConfig
from pretrain import contacts
from pretrain.distributed import OtherRankFailed, World
from pretrain.objectives.msa import MSA
from pretrain.objectives.msa_config import MSAConfig
from pretrain.validation_alignments import PROBE_KNOWN, AlignmentValidation, letter_frequencies, profile
from tests.data.alignments import Family, config, many_families, write_stockholm
from tests.models.conftest import telling_weights
from tests.ranks import pretrain
from tests.synthetic_alignments import synthetic_alignments

BUDGET = 512
LETTERS = "ACGUX-"
IDS = {6: "A", 7: "C", 8: "G", 9: "U", 22: "X", 26: "-"}
SCRIPT = Path(__file__).parent / "validate_alignments.py"


class Threads:
    """Ranks as threads of this process: a collective waits for all of them, or fails after ten seconds."""

    def __init__(self, ranks: int):
        self.ranks, self.barrier, self.values = ranks, threading.Barrier(ranks, timeout=10), [None] * ranks
        self.told: list[BaseException | None] = [None] * ranks

    def world(self, rank: int) -> SimpleNamespace:
        def gather(value):
            self.values[rank] = value
            self.barrier.wait()
            found = list(self.values)
            self.barrier.wait()
            return found

        def total(values):
            return [float(sum(column)) for column in zip(*gather(values), strict=True)]

        def fail_together(problem):
            texts = gather(None if problem is None else str(problem))
            if problem is not None:
                raise problem
            raise OtherRankFailed(next(text for text in texts if text))

        return SimpleNamespace(
            rank=rank,
            ranks=self.ranks,
            device=torch.device("cpu"),
            sum=total,
            gather=gather,
            fail_together=fail_together,
        )

    def run(self, checked: AlignmentValidation, engine, stopping=lambda rank: False) -> list:
        reports = [None] * self.ranks

        def work(rank: int) -> None:
            try:
                world = self.world(rank)
                reports[rank] = checked.run(engine, world, lambda problem: World.meet(world, problem, stopping(rank)))
            except BaseException as error:
                self.told[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return reports


class Engine:
    """A model without DeepSpeed; keeps what it was told."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.modes = module.eval(), []
        self.deepspeed = SimpleNamespace(
            eval=lambda: self.modes.append("eval"), train=lambda: self.modes.append("train")
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_alignments(tmp_path_factory.mktemp("alignments"))


@pytest.fixture(scope="module")
def held_out(path: Path) -> AlignmentCorpus:
    return AlignmentCorpus.open(path, "validation")


@pytest.fixture(scope="module")
def training(path: Path) -> AlignmentCorpus:
    return AlignmentCorpus.open(path, "train")


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    config = RNAMSMConfig(layers=2, width=24, heads=3, ffn=32, attention_dropout=0, residual_dropout=0)
    return Engine(telling_weights(RNAMSM(config)))


def validation(corpus: AlignmentCorpus, training=None, sequences=64, **options) -> AlignmentValidation:
    objective = MSA(MSAConfig(**{"max_columns": 64, "max_tokens": BUDGET, **options}))
    checked = AlignmentValidation(corpus, objective, sequences, BUDGET)
    if training is not None:
        checked.learn_from(training)
    return checked


def alone(checked: AlignmentValidation, engine: Engine) -> dict:
    return Threads(1).run(checked, engine)[0]


def batches(checked: AlignmentValidation):
    """(place, batch) one alignment after the other, without the layout."""
    for place in range(len(checked.ids)):
        alignment = checked.corpus.alignments(checked.ids[place : place + 1])
        yield place, checked.objective.collate(alignment, checked._keys[place : place + 1])


# The report


def test_the_report_equals_a_plain_recomputation(held_out, engine):
    checked = validation(held_out, sequences=9)
    means, nats, right, by_type = [], [], [], {}
    for place, batch in batches(checked):
        with torch.no_grad():
            logits = engine.module(batch.tokens).double()[0].flatten(0, 1)[batch.target_index]
        allowed = logits[:, list(IDS)]
        each = allowed.logsumexp(1) - logits.gather(1, batch.targets[:, None])[:, 0]
        means.append(each.mean().item())
        nats += each.tolist()
        best = [list(IDS)[i] for i in allowed.argmax(1).tolist()]
        right += [a == b for a, b in zip(best, batch.targets.tolist(), strict=True)]
        by_type.setdefault(held_out.type_names[held_out.types([place])[0]], []).append(means[-1])
    report = alone(checked, engine)
    assert report["sequences"] == len(means) == 9
    assert report["targets"] == len(nats) > 300
    assert report["loss"] == pytest.approx(np.mean(means), rel=1e-5)
    assert report["perplexity"] == pytest.approx(math.exp(np.mean(means)), rel=1e-5)
    assert report["loss_per_token"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert report["loss_per_token"] != pytest.approx(report["loss"], rel=1e-5)  # alignments differ in size
    assert report["accuracy"] == pytest.approx(np.mean(right))
    assert {name: part["loss"] for name, part in report["types"].items()} == pytest.approx(
        {name: np.mean(losses) for name, losses in by_type.items()}, rel=1e-5
    )


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_report_is_the_same_on_one_rank_and_on_several(held_out, training, engine, ranks):
    whole = alone(validation(held_out, training), engine)
    assert {"contact_precision_l", "contact_precision_l2", "contact_precision_l5"} <= set(whole)
    for report in Threads(ranks).run(validation(held_out, training), engine):
        assert flat(report) == pytest.approx(flat(whole), rel=1e-6)
        # The probe is fitted on the same examples in the same order, so its figures agree to the last bit.
        assert {k: v for k, v in report.items() if "contact" in k} == {k: v for k, v in whole.items() if "contact" in k}


def flat(report: dict, prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in report.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_more_ranks_than_alignments(held_out, training, engine):
    whole = flat(alone(validation(held_out, training, sequences=2), engine))
    for report in Threads(4).run(validation(held_out, training, sequences=2), engine):
        assert flat(report) == pytest.approx(whole, rel=1e-6)


@pytest.fixture(scope="module")
def under_deepspeed(path):
    def run(ranks: int, stage: int) -> dict[str, float]:
        results = pretrain([str(path), str(stage)], ranks, script=SCRIPT)
        assert [code for code, _, _ in results] == [0] * ranks, results
        reports = json.loads(results[0][1].splitlines()[-1])
        assert all(report == reports[0] for report in reports)
        return flat(reports[0])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (3, 0), (1, 3), (2, 3), (3, 3)])
def test_the_report_is_the_same_under_zero(under_deepspeed, ranks, stage):
    whole = under_deepspeed(1, 0)
    assert under_deepspeed(ranks, stage) == pytest.approx(whole, rel=1e-5)
    assert 0 < whole["contact_precision_l"] < 1


# Contacts


def test_contacts_equal_the_probe_on_maps_computed_one_by_one(held_out, training, engine):
    def examples(corpus, most):
        for i in range(corpus.count):
            (alignment,) = corpus.alignments([i])
            distant = sum(j - i >= 6 for i, j in enumerate(alignment.partners.tolist()))
            if distant >= 3 and most > 0:
                most -= 1
                letters = alignment.rows(np.arange(alignment.depth)).tobytes().decode()
                ids = [{letter: i for i, letter in IDS.items()}[letter] for letter in letters]
                tokens = torch.tensor(ids).view(alignment.depth, alignment.columns)
                tokens = torch.cat([torch.ones(alignment.depth, 1, dtype=torch.long), tokens], dim=1)
                yield engine.module.extract(tokens)[1].permute(2, 0, 1).numpy(), alignment.partners

    expected = contacts.probe(list(examples(training, PROBE_KNOWN)), list(examples(held_out, 64)))
    report = alone(validation(held_out, training), engine)
    assert {name: report[f"contact_{name}"] for name in expected} == pytest.approx(expected)


def test_learn_from_takes_structures_of_the_training_split_alone(held_out, training):
    checked = validation(held_out)
    assert checked.known == []
    checked.learn_from(training)
    assert [one.id for one in checked.known] == list(range(PROBE_KNOWN))
    assert not {one.family for one in checked.known} & {one.family for one in checked.held_out}
    assert {one.family for one in checked.known} <= set(training.accessions(np.arange(training.count)))
    assert [one.id for one in checked.held_out] == list(range(held_out.count))


def test_alignments_without_pairs_or_too_wide_are_not_probed(tmp_path, engine):
    """Of 40 families: no structure, one of two pairs, pairs too close, wider than the probe, and good ones."""
    structures = [None, "((......))" + 30 * ".", "(((...)))" + 31 * ".", None, "(((" + 34 * "." + ")))"]
    families = []
    for number, family in enumerate(many_families(40, gaps=0.0)):
        kind = number % 5
        rows = [(name, row * 7 if kind == 3 else row) for name, row in family.rows]
        width = len(rows[0][1])
        marks = {"RF": "x" * width}
        if structures[kind]:
            marks["SS_cons"] = structures[kind]
        if kind == 3:
            marks["SS_cons"] = "(((" + "." * (width - 6) + ")))"
        families.append(Family(rows, family.features, marks))
    source = write_stockholm(tmp_path / "a.sto", families)
    prepare_alignments(config(tmp_path / "corpus", source, validation_fraction=0.5))
    split = {name: AlignmentCorpus.open(tmp_path / "corpus", name) for name in ("train", "validation")}
    checked = validation(split["validation"], split["train"])
    for found, corpus in ((checked.known, split["train"]), (checked.held_out, split["validation"])):
        numbers = [int(name[2:]) - 1 for name in corpus.accessions(np.arange(corpus.count))]
        assert [int(one.family[2:]) - 1 for one in found] == [number for number in numbers if number % 5 == 4]
    assert "contact_precision_l" in alone(checked, engine)


def test_a_corpus_without_structures_has_no_contact_figures(tmp_path, engine):
    source = write_stockholm(
        tmp_path / "a.sto", [Family(f.rows, f.features, {"RF": f.marks["RF"]}) for f in many_families(40)]
    )
    prepare_alignments(config(tmp_path / "corpus", source, validation_fraction=0.2))
    training = AlignmentCorpus.open(tmp_path / "corpus", "train")
    report = alone(validation(AlignmentCorpus.open(tmp_path / "corpus", "validation"), training), engine)
    assert report["targets"] > 0
    assert not [key for key in report if "contact" in key]


def test_a_corpus_that_was_not_learnt_from_has_no_contact_figures(held_out, engine):
    assert not [key for key in alone(validation(held_out), engine) if "contact" in key]


def test_a_model_that_has_diverged_still_gives_a_report(held_out, training, engine):
    broken = RNAMSM(engine.module.config)
    broken.load_state_dict({name: torch.full_like(x, math.nan) for name, x in engine.module.state_dict().items()})
    report = alone(validation(held_out, training), Engine(broken))
    assert math.isnan(report["loss"])
    assert 0 <= report["contact_precision_l"] <= 1


# Stopping and failing


@pytest.mark.parametrize("after", [0, 5, 14, 40])
def test_a_stop_on_one_rank_ends_validation_on_all_without_a_report(held_out, training, engine, after):
    """``after`` questions: during the loss, during the maps of the known structures, and of the held-out ones."""
    asked = [0] * 3

    def stopping(rank: int) -> bool:
        asked[rank] += 1
        return rank == 1 and asked[rank] > after

    checked = validation(held_out, training)
    turns = [-(-n // 3) for n in (len(checked.ids), len(checked.known), len(checked.held_out))]
    assert turns == [4, 7, 4]
    found = Threads(3).run(checked, engine, stopping)
    assert all((report is None) == (after < sum(turns)) for report in found)
    assert engine.modes[-1] == "train"


def test_a_damaged_shard_fails_on_all_ranks(held_out, training, engine):
    """Rank 1 meets it while it reads a known structure; the others learn of it and do not wait."""

    def damaged(_):
        raise DataError("train-000000.tar: page 3 is damaged.")

    checked = validation(held_out, training)
    checked.known[1] = SimpleNamespace(depth=4, rows=damaged)
    threads = Threads(2)
    assert threads.run(checked, engine) == [None, None]
    assert isinstance(threads.told[1], DataError)
    assert isinstance(threads.told[0], OtherRankFailed)
    assert str(threads.told[0]) == str(threads.told[1])
    assert engine.modes[-1] == "train"


# References


def plain_background(corpus) -> dict[str, float]:
    counts = Counter(dict.fromkeys(LETTERS, 1))
    for alignment in corpus.alignments(np.arange(corpus.count)):
        counts.update(alignment.rows(np.arange(alignment.depth)).tobytes().decode())
    return {letter: counts[letter] / sum(counts.values()) for letter in LETTERS}


def test_letter_frequencies_equal_a_count(training):
    assert dict(zip(LETTERS, letter_frequencies(training), strict=True)) == pytest.approx(plain_background(training))


def test_references_equal_an_independent_implementation(held_out, training):
    checked = validation(held_out)
    background = plain_background(training)
    frequencies, columns = [], []
    for _, batch in batches(checked):
        rows, width = batch.tokens.shape[1:]
        shown = [[IDS.get(token, "<>") for token in row] for row in batch.tokens[0].tolist()]
        targets = {
            divmod(i, width): IDS[t]
            for i, t in zip(*map(torch.Tensor.tolist, (batch.target_index, batch.targets)), strict=True)
        }
        seen = [[shown[r][c] for r in range(rows) if (r, c) not in targets] for c in range(width)]
        frequencies.append(np.mean([math.log(background[letter]) for letter in targets.values()]))
        columns.append(
            np.mean(
                [
                    math.log((seen[c].count(letter) + background[letter]) / (len(seen[c]) + 1))
                    for (_, c), letter in targets.items()
                ]
            )
        )
    report = checked.references(training)
    assert report["letter_frequencies"]["loss"] == pytest.approx(-np.mean(frequencies), rel=1e-9)
    assert report["column_profile"]["loss"] == pytest.approx(-np.mean(columns), rel=1e-9)
    assert report["column_profile"]["perplexity"] == pytest.approx(math.exp(-np.mean(columns)), rel=1e-9)
    assert report["column_profile"]["loss"] < report["letter_frequencies"]["loss"]


def test_the_profile_sees_no_target_and_no_other_alignment(held_out):
    """What stands at targets, masked, replaced or left as it is, changes nothing; a visible letter does."""
    checked = validation(held_out, mask_share=0.3, random_share=0.3)
    _, batch = next(batches(checked))
    background = np.full(6, 1 / 6)
    before = profile(batch, background)
    assert before.shape == (batch.tokens.shape[2], 6)
    assert np.allclose(before.sum(axis=1), 1)
    batch.tokens.view(-1)[batch.target_index] = 9
    assert np.array_equal(profile(batch, background), before)
    visible = np.setdiff1d(np.arange(batch.tokens.numel()), batch.target_index.numpy())
    place = next(i for i in visible.tolist() if batch.tokens.view(-1)[i] not in (1, 9))
    batch.tokens.view(-1)[place] = 9
    changed = np.flatnonzero((profile(batch, background) != before).any(axis=1))
    assert changed.tolist() == [place % batch.tokens.shape[2]]


def test_a_column_of_which_nothing_is_visible_has_the_background(held_out, training):
    checked = validation(held_out, select="columns", mask_share=1.0, random_share=0.0)
    report = checked.references(training)
    assert report["column_profile"]["loss"] == pytest.approx(report["letter_frequencies"]["loss"], rel=1e-9)


def test_references_without_a_single_target_are_numbers(held_out, training):
    report = validation(held_out, sequences=1, masked_fraction=1e-12).references(training)
    assert report == {name: {"loss": 0.0, "perplexity": 1.0} for name in ("letter_frequencies", "column_profile")}
