"""The objective `intervals`: rows, levels, types, structures, determinism, the loss (specs: rnaernie 2.5, 4)."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import randomness
from data.alphabet import ALPHABETS, RNAERNIE
from data.index import Corpus
from data.loader import Moment, StepPlanner
from data.masking.options import LEVELS
from data.masking.words import WordScanner
from data.order import Order
from data.rna_types import TYPES
from pretrain.objectives.intervals import Intervals, Sample
from pretrain.objectives.intervals_config import IntervalsConfig
from pretrain.objectives.masked import MaskedBatch
from tests.pretrain.test_mlm import close, keys, letters, original, per_sample, random_letters, seen

MASK, UNK, IND = 4, 3, 28
ACGU = [6, 7, 8, 9]
MIRNA = RNAERNIE.ids["[miRNA]"]
WORDS = ["ACGUAC", "UUGCAU", "GGAUCC", "CAGUGA", "AAGCAG", "GCGGCA", "CACACA", "UGUGUA", "AUUUAA", "GGGCCA", "CCUUGG"]


@pytest.fixture(scope="module")
def motifs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("motifs") / "motifs.txt"
    path.write_text("\n".join(WORDS))
    return str(path)


def samples(sequences: list[np.ndarray], type_id: int = -1, structure: bytes | None = None) -> list[Sample]:
    return [Sample(sequence, type_id, structure) for sequence in sequences]


def objective(motifs: str, **options) -> Intervals:
    words = {"files": [motifs], **options.pop("motif", {})}
    return Intervals(IntervalsConfig.of(motif=words, **options))


def only(level: str) -> dict[str, int]:
    return {name: int(name == level) for name in LEVELS}


MIXED = [s for length in (1, 9, 22, 24, 60, 300, 600) for s in random_letters(8, length, seed=length)]


def test_fifteen_percent_at_every_level_and_nothing_else_changes(motifs):
    for level in ("base", "span", "motif"):
        own = objective(motifs, levels=only(level), type_token={"append": False})
        batch = own.collate(samples(random_letters(200, 100)), keys(200))
        assert np.bincount(batch.target_sample, minlength=200).tolist() == [15] * 200
        assert (
            original(batch).tolist()
            == np.concatenate([RNAERNIE.encode_row(s) for s in random_letters(200, 100)]).tolist()
        )
        assert len(set(batch.target_index.tolist())) == batch.weight


def test_no_sample_of_24_nucleotides_is_without_a_target_with_a_top_up_and_with_base_none_at_all(motifs):
    for topup, shortest in (("span", 24), ("base", 1)):
        for level in ("base", "span", "motif", "pair"):
            own = objective(motifs, levels=only(level), topup=topup)
            batch = own.collate(samples(MIXED), keys(len(MIXED)))
            counts = np.bincount(batch.target_sample, minlength=len(MIXED))
            assert all(n > 0 for n, s in zip(counts, MIXED, strict=True) if len(s) >= shortest)


def test_corruption_is_80_10_10_and_seven_and_a_half_percent_really_change(motifs):
    batch = objective(motifs).collate(samples(random_letters(3000, 300)), keys(3000))
    masked, same = seen(batch) == MASK, seen(batch) == batch.targets.numpy()
    assert close(masked.sum(), batch.weight, 0.8)
    assert close(same.sum(), batch.weight, 0.125)
    assert close((~masked & ~same).sum(), batch.weight, 0.075)
    assert set(seen(batch)[~masked].tolist()) == set(ACGU)


def test_letters_outside_acgu_are_unknown_targets_as_in_the_original_or_not_at_all_on_request(motifs):
    sequences = random_letters(200, 100, of="ACGUN")
    shares = {}
    for eligible in ("all", "letters", "nucleotides"):
        for alphabet in ("rnaernie", "rnaernie_iupac"):
            own = objective(motifs, eligible=eligible, alphabet=alphabet, levels=only("base"))
            targets = own.collate(samples(sequences), keys(200)).targets.numpy()
            shares[eligible, alphabet] = np.bincount(targets, minlength=57)[[UNK, 10]] / len(targets)
    assert shares["all", "rnaernie"] == pytest.approx([0.2, 0], abs=0.02)
    assert shares["all", "rnaernie_iupac"] == pytest.approx([0, 0.2], abs=0.02)
    assert shares["letters", "rnaernie_iupac"] == pytest.approx([0, 0.2], abs=0.02)
    assert not np.any(
        [shares["letters", "rnaernie"], shares["nucleotides", "rnaernie"], shares["nucleotides", "rnaernie_iupac"]]
    )


@pytest.mark.parametrize("alphabet", ["rinalmo", "aido_rna", "rnaernie_28"])
def test_other_vocabularies_of_single_nucleotides_serve_as_well(alphabet, motifs):
    own = objective(motifs, alphabet=alphabet, type_token={"append": False}, topup="base")
    sequences = random_letters(100, 100)
    batch = own.collate(samples(sequences), keys(100))
    assert original(batch).tolist() == np.concatenate([ALPHABETS[alphabet].encode_row(s) for s in sequences]).tolist()
    assert np.bincount(batch.target_sample).tolist() == [15] * 100
    assert set(batch.targets.tolist()) == set(own.nucleotide_ids.tolist())
    assert (batch.target_width == 1).all()


def test_u_and_t_and_lower_case_give_the_same_batch(motifs):
    rna = ["ACGUACUUGCAUUNNRYGGAUCC" * 5, "UUUU"]
    versions = [rna, [t.replace("U", "T") for t in rna], [t.lower() for t in rna]]
    own = objective(motifs, levels=only("motif"))
    found = [per_sample(own.collate(samples([letters(t) for t in texts]), keys(2))) for texts in versions]
    assert found[0] == found[1] == found[2]


# Determinism


def test_a_sample_is_masked_alike_in_any_company_order_and_micro_batch(motifs):
    own, all_keys = objective(motifs, crop="random", max_tokens=256), keys(len(MIXED))
    given = samples(MIXED, MIRNA)
    together = per_sample(own.collate(given, all_keys))
    assert together == [per_sample(own.collate(given[i : i + 1], all_keys[i : i + 1]))[0] for i in range(len(MIXED))]
    order = np.random.default_rng(1).permutation(len(MIXED))
    assert per_sample(own.collate([given[i] for i in order], all_keys[order])) == [together[i] for i in order]


def test_equal_length_and_first_base_get_different_masks_and_the_same_key_the_same(motifs):
    sequences = [letters("A" + "".join(s)) for s in np.random.default_rng(0).choice(list("ACGU"), (100, 99))]
    for level in ("base", "span", "motif"):
        own = objective(motifs, levels=only(level))
        batch = own.collate(samples(sequences), keys(100))
        masks = [places for _, places, _, _ in per_sample(batch)]
        assert len(set(masks)) == 100
        assert per_sample(own.collate(samples(sequences), keys(100))) == per_sample(batch)
        other_epoch = per_sample(own.collate(samples(sequences), keys(100, seed=1)))
        assert all(a[1] != b[1] for a, b in zip(per_sample(batch), other_epoch, strict=True))


def test_a_choice_per_batch_is_the_same_however_a_step_is_split_into_micro_batches(motifs):
    own = objective(motifs, choose_per="batch")
    given, sample_keys = samples(MIXED), keys(len(MIXED))
    masks_of_steps = set()
    for step in range(12):
        moment = Moment(step, 0.5, randomness.key("run", step))
        whole = per_sample(own.collate(given, sample_keys, moment))
        parts = [per_sample(own.collate(given[i::3], sample_keys[i::3], moment)) for i in range(3)]
        assert [parts[i % 3][i // 3] for i in range(len(MIXED))] == whole
        masks_of_steps.add(tuple(whole))
    assert len(masks_of_steps) == 3  # the levels


def test_stages_follow_the_fraction_of_the_run_and_validation_is_its_end(motifs):
    own = objective(motifs, preset="rnaernie-card")
    assert own.config.span.min == 4
    bases, spans, words = (objective(motifs, levels=only(level)) for level in ("base", "span", "motif"))
    given, sample_keys = samples(MIXED), keys(len(MIXED))
    for fraction, expected in ((0.0, bases), (0.3, bases), (0.5, spans), (0.7, words), (1.0, words)):
        moment = Moment(0, fraction, 0)
        assert per_sample(own.collate(given, sample_keys, moment)) == per_sample(expected.collate(given, sample_keys))
    assert per_sample(own.collate(given, sample_keys)) == per_sample(words.collate(given, sample_keys))
    assert per_sample(own.collate(given, sample_keys, Moment.last())) == per_sample(words.collate(given, sample_keys))


# Types


def test_types_are_appended_dropped_and_masked_at_their_rates(motifs):
    own = objective(motifs, type_token={"drop_prob": 0.4, "mask_prob": 0.25})
    batch = own.collate(samples(random_letters(6000, 20), MIRNA), keys(6000))
    typed = batch.lengths == 24
    assert set(batch.lengths.tolist()) == {22, 24}
    assert close(typed.sum(), 6000, 0.6)
    hidden = batch.targets.numpy() == MIRNA
    assert close(hidden.sum(), typed.sum(), 0.25)
    assert set(seen(batch)[hidden].tolist()) == {MASK}
    assert len(set(batch.target_sample[hidden].tolist())) == hidden.sum()
    assert IND not in batch.targets
    ends = batch.cu_seqlens.numpy()[1:][typed]
    assert set(original(batch)[ends - 2].tolist()) == {MIRNA}
    assert set(batch.tokens.numpy()[ends - 3].tolist()) == {IND}


def test_a_masked_type_counts_for_no_nucleotide(motifs):
    own = objective(motifs, type_token={"drop_prob": 0, "mask_prob": 0.5})
    sequences = random_letters(300, 50)
    batch = own.collate(samples(sequences, MIRNA), keys(300))
    special = batch.targets.numpy() == MIRNA
    assert special.sum() > 100
    assert (batch.target_width == np.where(special, 0, 1)).all()
    assert batch.nucleotides.tolist() == [50] * 300
    for sample, place, target in zip(
        batch.target_sample[~special], batch.target_nucleotide[~special], batch.targets.numpy()[~special], strict=True
    ):
        assert RNAERNIE.encode(sequences[sample])[place] == target
    assert (np.diff(batch.target_index.numpy()) > 0).all()
    assert (np.diff(batch.target_sample) >= 0).all()


def test_the_faithful_preset_always_shows_the_type_and_never_asks_for_it(motifs):
    own = objective(motifs, preset="rnaernie-code")
    batch = own.collate(samples(random_letters(300, 50), MIRNA), keys(300))
    assert set(batch.lengths.tolist()) == {54}
    assert MIRNA not in batch.targets
    assert (batch.tokens.numpy() == MIRNA).sum() == 300


def test_types_of_a_corpus_map_to_their_tokens_and_unknown_ones_to_none(motifs):
    found = dict(zip(TYPES, objective(motifs).type_tokens(list(TYPES)).tolist(), strict=True))
    assert found["miRNA"] == MIRNA == 38
    assert found["RNase_MRP_RNA"] == 29
    assert found["autocatalytically_spliced_intron"] == RNAERNIE.ids["[autocatalyticallysplicedintron]"]
    assert found["vault_RNA"] == 56
    assert sorted(i for i in found.values() if i >= 0) == list(range(29, 57))  # every type of the vocabulary
    assert [name for name, i in found.items() if i < 0][:4] == ["unknown", "circRNA", "mRNA", "riboswitch"]
    some = objective(motifs, type_token={"types": ["pre_miRNA", "tRNA"]}).type_tokens(list(TYPES))
    assert sorted(TYPES[i] for i in np.flatnonzero(some >= 0)) == ["pre_miRNA", "tRNA"]


class StructuredCorpus:
    """Two sequences, the first with a structure."""

    type_names = ("unknown", "tRNA")
    has_structures = True

    def letters(self, ids):
        return [letters("GGGGAAAACCCC" * 4) for _ in ids]

    def types(self, ids):
        return np.array([1 - i for i in ids], dtype=np.uint8)

    def structures(self, ids):
        return [b"((((....))))" * 4 if i == 0 else None for i in ids]


def test_samples_are_read_with_types_and_structures_only_where_they_are_used(motifs):
    corpus, ids = StructuredCorpus(), np.array([0, 1])
    plain = objective(motifs, type_token={"append": False}).read(corpus, ids)
    assert [(s.type_id, s.structure) for s in plain] == [(-1, None)] * 2
    full = objective(motifs, levels={"pair": 1}).read(corpus, ids)
    assert [(s.type_id, s.structure) for s in full] == [(RNAERNIE.ids["[tRNA]"], b"((((....))))" * 4), (-1, None)]
    assert objective(motifs).read(corpus, np.zeros(0, np.int64)) == []


def test_pairs_of_a_structure_are_masked_together_through_the_crop(motifs):
    own = objective(motifs, levels=only("pair"), max_tokens=40, topup="none", crop="random", masked_fraction=0.3)
    text, structure = "GGGGAAAACCCC" * 8, "((((....))))" * 8
    partner = {i: 12 * (i // 12) + 11 - i % 12 for i in range(96) if structure[i] != "."}
    batch = own.collate(samples([letters(text)] * 200, -1, structure.encode()), keys(200))
    starts = [min(nucleotides) for nucleotides in _read(batch)]
    assert len(set(starts)) > 20
    for i, start in enumerate(starts):
        chosen = set(batch.target_nucleotide[batch.target_sample == i].tolist())
        for place in chosen & partner.keys():
            if start <= partner[place] < start + 36:
                assert partner[place] in chosen


def _read(batch: MaskedBatch) -> list[list[int]]:
    """Nucleotides of the uncropped sequence that each row holds, from its targets' places."""
    found = []
    for i in range(len(batch.lengths)):
        mine = np.flatnonzero(batch.target_sample == i)
        first = batch.target_nucleotide[mine[0]] - (batch.positions[batch.target_index[mine[0]]].item() - 1)
        found.append(list(range(int(first), int(first) + int(batch.nucleotides[i]))))
    return found


# On a corpus


def test_a_corpus_is_read_described_and_masked(synthetic_corpus: Path, motifs, tmp_path: Path):
    corpus, own = Corpus.open(synthetic_corpus), objective(motifs, motif={"min_len": 6})
    ids = np.arange(64)
    given = own.read(corpus, ids)
    assert [RNAERNIE.tokens[s.type_id].strip("[]") if s.type_id >= 0 else "" for s in given] == [
        corpus.type_names[t].replace("_", "") if f"[{corpus.type_names[t].replace('_', '')}]" in RNAERNIE.ids else ""
        for t in corpus.types(ids)
    ]
    batch = own.collate(given, keys(64))
    assert (batch.lengths <= own.costs(corpus, ids)).all()
    report = own.describe(corpus, 300)
    assert report == own.describe(corpus, 300)
    assert report["sequences"] == 300
    fingerprint = report["words"]["motif"].pop("fingerprint")
    assert report["words"] == {"motif": {"words": 11, "read": 11}}
    json.dumps(report, allow_nan=False)
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("\n".join(WORDS[1:]))
    assert objective(str(fewer)).describe(corpus, 10)["words"]["motif"]["fingerprint"] != fingerprint
    assert set(report["levels"]) == {"base", "span", "motif"}
    assert report["levels"]["span"]["masked_fraction"] == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("choose_per", ["sample", "batch"])
def test_a_step_has_the_same_rows_and_masks_on_any_ranks_and_micro_batches(choose_per, synthetic_corpus: Path, motifs):
    corpus, own = Corpus.open(synthetic_corpus), objective(motifs, choose_per=choose_per, schedule="ramp")
    order = Order(corpus.block_counts, 5, 48)

    def rows(step: int, ranks: int, budget: int) -> list[tuple]:
        planners = [StepPlanner(corpus, order, own, budget, rank, ranks, steps=40) for rank in range(ranks)]
        batches = [batch for planner in planners for batch in planner.step(step).micro_batches]
        return sorted(row for batch in batches if batch.nucleotides.sum() for row in per_sample(batch))

    for step in (3, 20, 39):
        whole = rows(step, 1, 100_000)
        assert len(whole) == 48
        assert rows(step, 1, 1000) == rows(step, 3, 700) == whole


def test_the_check_fires_for_motifs_spelled_with_t_where_normalisation_is_bypassed(
    synthetic_corpus: Path, motifs, caplog
):
    corpus = Corpus.open(synthetic_corpus)
    hexamers = ["".join(w) for w in itertools.product("ACGU", repeat=6)][::7]
    own = objective(motifs)
    own.engine.scanners["motif"] = WordScanner(hexamers)
    assert not [w for w in own.describe(corpus)["warnings"] if "U is" in w]
    own.engine.scanners["motif"] = WordScanner([word.replace("U", "T") for word in hexamers])
    with caplog.at_level("WARNING", "rnafoundry"):
        report = own.describe(corpus)
    assert report["levels"]["motif"]["composition"]["U"] == 0
    assert any(w.startswith("masking level motif: U is 0.0% of its targets") for w in report["warnings"])


# Loss and the packed form


def test_an_empty_micro_batch_is_one_row_without_targets(motifs):
    batch = objective(motifs).collate([], np.zeros(0, np.uint64), Moment.last())
    assert batch.tokens.tolist() == [1, 2]
    assert batch.cu_seqlens.tolist() == [0, 2]
    assert batch.weight == 0
    assert {batch.tokens.dtype, batch.positions.dtype, batch.target_index.dtype, batch.targets.dtype} == {torch.int64}


def test_a_batch_of_samples_without_targets_is_possible(motifs):
    own = objective(motifs, levels=only("motif"), topup="none")
    assert own.collate(samples(random_letters(5, 22)), keys(5)).weight == 0


def test_the_loss_is_the_mean_over_real_targets_once_divided_by_the_weight(motifs):
    own = objective(motifs)
    batch = own.collate(samples(random_letters(8, 100), MIRNA), keys(8))

    class Fixed(torch.nn.Module):
        table = torch.randn(len(batch.tokens), 57, generator=torch.Generator().manual_seed(0))

        def forward(self, tokens, cu_seqlens, positions, max_seqlen, target_index):
            return self.table[target_index]

    loss, counts = own.loss(Fixed(), batch)
    rows = Fixed.table.double()[batch.target_index]
    nats = -torch.log_softmax(rows, -1)[torch.arange(batch.weight), batch.targets]
    assert loss.item() == pytest.approx(nats.sum().item(), rel=1e-5)
    assert counts["correct"].item() == (rows.argmax(-1) == batch.targets).sum().item()


def test_nucleotide_ids_are_those_of_the_alphabet(motifs):
    assert objective(motifs).nucleotide_ids.tolist() == ACGU
    assert objective(motifs).alphabet is ALPHABETS["rnaernie"]


def test_the_whole_objective_is_pure(motifs):
    own = objective(motifs)
    np.random.seed(1)  # noqa: NPY002 (the point of the test)
    given = [replace(s) for s in samples(MIXED, MIRNA)]
    before = [s.letters.copy() for s in given]
    first = per_sample(own.collate(given, keys(len(MIXED))))
    np.random.seed(2)  # noqa: NPY002
    assert per_sample(own.collate(given, keys(len(MIXED)))) == first
    assert all(np.array_equal(a, s.letters) for a, s in zip(before, given, strict=True))
