"""Masked language modelling: rates, crops, purity, and what every key does (specs: rinalmo 3.4, 4, 6)."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from data import randomness
from data.alphabet import RINALMO, Alphabet
from pretrain.errors import PretrainError
from pretrain.objectives import mlm
from pretrain.objectives.mlm import MLM, MaskedBatch, MLMConfig

CLS, EOS, MASK, N = 0, 2, 4, 20
ACGT = [5, 6, 7, 8]


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def random_letters(count: int, length: int, of: str = "ACGU", seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).choice(letters(of), (count, length)))


def keys(count: int, seed: int = 0) -> np.ndarray:
    return randomness.keys(randomness.key("test", seed), np.arange(count))


def original(batch: MaskedBatch) -> np.ndarray:
    tokens = batch.tokens.numpy().copy()
    tokens[batch.target_index.numpy()] = batch.targets.numpy()
    return tokens


def seen(batch: MaskedBatch) -> np.ndarray:
    return batch.tokens.numpy()[batch.target_index.numpy()]


def per_sample(batch: MaskedBatch) -> list[tuple]:
    ends = batch.cu_seqlens.tolist()
    return [
        (
            tuple(batch.tokens[ends[i] : ends[i + 1]].tolist()),
            tuple((batch.target_index[batch.target_sample == i] - ends[i]).tolist()),
            tuple(batch.targets[batch.target_sample == i].tolist()),
            tuple(batch.target_nucleotide[batch.target_sample == i].tolist()),
        )
        for i in range(len(ends) - 1)
    ]


def close(found: int, total: int, share: float) -> bool:
    """Within three standard errors."""
    return abs(found / total - share) < 3 * np.sqrt(share * (1 - share) / total)


LARGE = random_letters(1500, 800, of="ACGUN")


@pytest.fixture(scope="module")
def large() -> MaskedBatch:
    """1.2 million letters, a fifth of them N."""
    return MLM(MLMConfig()).collate(LARGE, keys(1500))


def test_fifteen_percent_of_letters_are_selected(large):
    assert close(large.weight, 1500 * 800, 0.15)


def test_selected_tokens_become_mask_random_and_unchanged_in_80_10_10(large):
    masked, same = seen(large) == MASK, seen(large) == large.targets.numpy()
    assert close(masked.sum(), large.weight, 0.8)
    assert close(same.sum(), large.weight, 0.1)
    assert close((~masked & ~same).sum(), large.weight, 0.1)


def test_special_tokens_are_never_selected_and_ambiguity_letters_are(large):
    targets = np.bincount(large.targets.numpy(), minlength=22)
    assert set(np.flatnonzero(targets)) == {*ACGT, N}
    assert close(targets[N], large.weight, 0.2)


def test_a_random_letter_is_one_of_the_other_three_and_each_equally_often(large):
    targets, shown = large.targets.numpy(), seen(large)
    replaced = (shown != MASK) & (shown != targets)
    for letter in ACGT:
        counts = np.bincount(shown[replaced & (targets == letter)], minlength=22)
        others = [other for other in ACGT if other != letter]
        assert counts.sum() == counts[others].sum()
        assert all(close(counts[other], counts.sum(), 1 / 3) for other in others)
    counts = np.bincount(shown[replaced & (targets == N)], minlength=22)
    assert all(close(counts[other], counts.sum(), 1 / 4) for other in ACGT)


def test_selection_is_spread_evenly_and_independently_over_places(large):
    places = np.bincount(large.target_nucleotide, minlength=800)
    chi2 = ((places - 225) ** 2 / (225 * 0.85)).sum()
    assert abs(chi2 - 800) < 4 * np.sqrt(2 * 800)
    chosen = np.zeros((1500, 800), dtype=bool)
    chosen[large.target_sample, large.target_nucleotide] = True
    both = (chosen[:, 1:] & chosen[:, :-1]).sum()
    assert close(both, 1500 * 799, 0.15**2)


def test_everything_that_is_not_selected_is_the_original_row(large):
    expected = np.concatenate([RINALMO.encode_row(sequence) for sequence in LARGE])
    assert np.array_equal(original(large), expected)
    assert len(np.unique(large.target_index.numpy())) == large.weight


def test_target_nucleotide_is_the_place_in_the_uncropped_sequence():
    sequences = random_letters(200, 90) + random_letters(200, 10)
    batch = MLM(MLMConfig(max_tokens=40)).collate(sequences, keys(400))
    assert batch.weight > 1000
    for sample, place, target in zip(batch.target_sample, batch.target_nucleotide, batch.targets.tolist(), strict=True):
        assert RINALMO.encode(sequences[sample])[place] == target


def test_a_sample_is_masked_alike_in_any_company_order_and_micro_batch():
    sequences = [s for length in (5, 30, 64, 200) for s in random_letters(10, length, seed=length)]
    samples, objective = keys(40), MLM(MLMConfig(max_tokens=64))
    together = per_sample(objective.collate(sequences, samples))
    alone = [per_sample(objective.collate([sequences[i]], samples[i : i + 1]))[0] for i in range(40)]
    assert together == alone
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(40)[: 40 - 7 * seed]
        mixed = per_sample(objective.collate([sequences[i] for i in order], samples[order]))
        assert mixed == [alone[i] for i in order]


@pytest.mark.parametrize("exact", [False, True])
def test_another_key_gives_another_mask_and_crop(exact):
    objective = MLM(MLMConfig(max_tokens=64, exact_count=exact))
    sequences = random_letters(1, 300) * 200
    assert len(set(per_sample(objective.collate(sequences, keys(200))))) == 200


def test_no_generator_of_the_process_is_read_or_changed():
    objective, sequences = MLM(MLMConfig()), random_letters(20, 50)
    found = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 (the point of the test)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(per_sample(objective.collate(sequences, keys(20))))
        assert torch.equal(before, torch.get_rng_state())
    assert found[0] == found[1]


def test_exact_count_selects_the_rounded_share_of_every_sequence_and_the_rate_on_average():
    lengths = [3, 10, 33, 100, 101] * 4000
    sequences = [random_letters(1, length, seed=length)[0] for length in lengths]
    batch = MLM(MLMConfig(exact_count=True)).collate(sequences, keys(len(lengths)))
    counts = np.bincount(batch.target_sample, minlength=len(lengths))
    for length in (3, 10, 33, 100, 101):
        mine, share = counts[np.array(lengths) == length], 0.15 * length
        assert set(mine) == {int(np.floor(share)), int(np.ceil(share))}
        assert close((mine > share).sum(), len(mine), share % 1) or share % 1 == 0


def test_exact_count_chooses_all_places_equally_often():
    batch = MLM(MLMConfig(exact_count=True)).collate(random_letters(8000, 40), keys(8000))
    places = np.bincount(batch.target_nucleotide, minlength=40)
    assert (abs(places - 1200) < 4 * np.sqrt(8000 * 0.15 * 0.85)).all()


def test_exact_count_counts_eligible_letters_only():
    sequences = [letters("NNNN" + "ACGU" * 25 + "NNNN")] * 50
    config = MLMConfig(exact_count=True, eligible="nucleotides")
    batch = MLM(config).collate(sequences, keys(50))
    assert np.bincount(batch.target_sample).tolist() == [15] * 50
    assert set(batch.targets.tolist()) <= set(ACGT)


def test_only_nucleotides_are_eligible_on_request():
    batch = MLM(MLMConfig(eligible="nucleotides")).collate(LARGE[:300], keys(300))
    assert set(batch.targets.tolist()) == set(ACGT)
    assert close(batch.weight, sum(int((s != ord("N")).sum()) for s in LARGE[:300]), 0.15)


def test_random_letters_come_from_the_pool_given():
    batch = MLM(MLMConfig(random_letters="AN-", random_share=1, mask_share=0)).collate(LARGE[:100], keys(100))
    targets, shown = batch.targets.numpy(), seen(batch)
    assert (shown != targets).all()
    assert set(shown.tolist()) == {5, N, 21}
    of_a = np.bincount(shown[targets == 5], minlength=22)
    assert close(of_a[N], of_a.sum(), 1 / 2)
    of_c = np.bincount(shown[targets == 6], minlength=22)
    assert all(close(of_c[other], of_c.sum(), 1 / 3) for other in (5, N, 21))


def test_random_letters_may_be_the_original_one_on_request():
    config = MLMConfig(random_differs=False, random_share=1, mask_share=0)
    batch = MLM(config).collate(random_letters(200, 200), keys(200))
    assert close((seen(batch) == batch.targets.numpy()).sum(), batch.weight, 1 / 4)


def test_all_tokens_can_be_selected_and_all_masked():
    batch = MLM(MLMConfig(masked_fraction=1.0, mask_share=1.0, random_share=0.0)).collate(LARGE[:3], keys(3))
    assert batch.weight == 2400
    assert set(seen(batch).tolist()) == {MASK}


# Crops


def test_a_crop_is_a_window_of_the_whole_row_with_cls_and_eos_only_at_its_ends():
    sequence = random_letters(1, 60)[0]
    row = RINALMO.encode_row(sequence).tolist()
    batch = MLM(MLMConfig(max_tokens=40)).collate([sequence] * 3000, keys(3000))
    assert set(batch.lengths.tolist()) == {40}
    windows = {tuple(row[start : start + 40]): start for start in range(len(row) - 40 + 1)}
    starts = [windows[tuple(tokens)] for tokens in original(batch).reshape(-1, 40).tolist()]
    counts = np.bincount(starts, minlength=23)
    assert len(counts) == 62 - 40 + 1
    chi2 = ((counts - 3000 / 23) ** 2 / (3000 / 23)).sum()
    assert chi2 < 22 + 4 * np.sqrt(44)


def test_a_crop_of_letters_always_has_cls_and_eos():
    sequence = random_letters(1, 60)[0]
    letters = RINALMO.encode(sequence).tolist()
    batch = MLM(MLMConfig(max_tokens=40, crop="letters")).collate([sequence] * 3000, keys(3000))
    windows = {tuple(letters[start : start + 38]): start for start in range(60 - 38 + 1)}
    rows = original(batch).reshape(-1, 40)
    assert (rows[:, 0] == RINALMO.ids["<cls>"]).all()
    assert (rows[:, -1] == RINALMO.ids["<eos>"]).all()
    counts = np.bincount([windows[tuple(row)] for row in rows[:, 1:-1].tolist()], minlength=23)
    chi2 = ((counts - 3000 / 23) ** 2 / (3000 / 23)).sum()
    assert chi2 < 22 + 4 * np.sqrt(44)


@pytest.mark.parametrize(("length", "tokens"), [(1, 3), (37, 39), (38, 40), (39, 40), (500, 40)])
def test_a_row_longer_than_max_tokens_is_cut_to_it_and_a_shorter_one_is_whole(length, tokens):
    objective = MLM(MLMConfig(max_tokens=40))
    batch = objective.collate(random_letters(50, length), keys(50))
    assert set(batch.lengths.tolist()) == {tokens}
    assert objective.token_lengths(np.array([length])).tolist() == [tokens]
    rows = original(batch).reshape(50, tokens)
    if tokens == length + 2:
        assert (rows[:, 0] == CLS).all()
        assert (rows[:, -1] == EOS).all()
    assert not np.isin(rows[:, 1:-1], [CLS, EOS]).any()


def test_the_published_limit_holds_1022_nucleotides_whole():
    sequences = random_letters(1, 1022)
    batch = MLM(MLMConfig()).collate(sequences, keys(1))
    assert original(batch).tolist() == RINALMO.encode_row(sequences[0]).tolist()


# The packed form


def test_rows_are_packed_end_to_end_and_positions_restart():
    batch = MLM(MLMConfig()).collate([letters("ACG"), letters("A"), letters("GGGUU")], keys(3))
    assert batch.cu_seqlens.tolist() == [0, 5, 8, 15]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.positions.tolist() == [*range(5), *range(3), *range(7)]
    assert batch.lengths.tolist() == [5, 3, 7]
    assert batch.max_seqlen == 7
    assert {batch.tokens.dtype, batch.positions.dtype, batch.target_index.dtype, batch.targets.dtype} == {torch.int64}


def test_an_empty_micro_batch_is_one_row_without_targets():
    batch = MLM(MLMConfig()).collate([], np.zeros(0, np.uint64))
    assert batch.tokens.tolist() == [CLS, EOS]
    assert batch.cu_seqlens.tolist() == [0, 2]
    assert batch.weight == len(batch.targets) == len(batch.target_index) == 0


def test_u_and_t_and_lower_case_give_the_same_batch():
    rna = ["ACGUUGCAUUNNRY" * 5, "UUUU"]
    versions = [rna, [t.replace("U", "T") for t in rna], [t.lower() for t in rna]]
    found = [per_sample(MLM(MLMConfig()).collate([letters(t) for t in texts], keys(2))) for texts in versions]
    assert found[0] == found[1] == found[2]


# The loss


class FixedLogits(torch.nn.Module):
    """Logits [T, 22] that are known; gives the rows it is asked for, in half precision."""

    def __init__(self, tokens: int):
        super().__init__()
        self.table = torch.randn(tokens, 22, generator=torch.Generator().manual_seed(0)).bfloat16()

    def forward(self, tokens, cu_seqlens, positions, max_seqlen, target_index):
        return self.table[target_index]


def test_the_loss_is_the_summed_cross_entropy_in_float32_and_counts_right_answers():
    objective = MLM(MLMConfig())
    batch = objective.collate(random_letters(8, 100), keys(8))
    model = FixedLogits(len(batch.tokens))
    loss, counts = objective.loss(model, batch)
    logits = model.table.double()[batch.target_index]
    nats = -torch.log_softmax(logits, -1)[torch.arange(batch.weight), batch.targets]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nats.sum().item(), rel=1e-5)
    assert counts["correct"].item() == sum(
        row.argmax().item() == t for row, t in zip(logits, batch.targets, strict=True)
    )


def test_the_loss_of_parts_adds_up_to_that_of_the_whole():
    objective, sequences, samples = MLM(MLMConfig()), random_letters(9, 60), keys(9)

    class ByToken(torch.nn.Module):
        table = torch.randn(22, 22, generator=torch.Generator().manual_seed(1))

        def forward(self, tokens, cu_seqlens, positions, max_seqlen, target_index):
            return self.table[tokens[target_index]]

    whole, _ = objective.loss(ByToken(), objective.collate(sequences, samples))
    parts = [objective.loss(ByToken(), objective.collate(sequences[i::3], samples[i::3]))[0] for i in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)


def test_a_micro_batch_without_targets_has_loss_zero():
    objective = MLM(MLMConfig())
    loss, counts = objective.loss(FixedLogits(2), objective.collate([], np.zeros(0, np.uint64)))
    assert loss.item() == 0
    assert counts["correct"].item() == 0


# The configuration

CHANGES = {
    "alphabet": "reversed",
    "max_tokens": 60,
    "crop": "letters",
    "masked_fraction": 0.3,
    "mask_share": 0.5,
    "random_share": 0.2,
    "exact_count": True,
    "eligible": "nucleotides",
    "random_letters": "AC",
    "random_differs": False,
}


def test_the_changes_below_cover_every_key():
    # `name` selects this objective: tests/pretrain/test_recipe.py; `tokenizer`: tests/pretrain/test_mlm_tokenizer.py
    assert {field.name for field in fields(MLMConfig)} == {"name", "tokenizer", *CHANGES}


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_changes_the_batch(key, monkeypatch):
    other = Alphabet("reversed", RINALMO.tokens[:5] + RINALMO.tokens[:4:-1])
    monkeypatch.setitem(mlm.ALPHABETS, "reversed", other)
    short = {"max_tokens": 50} if key == "crop" else {}
    configs = (MLMConfig(**short), MLMConfig(**short, **{key: CHANGES[key]}))
    batches = [MLM(config).collate(LARGE[:20], keys(20)) for config in configs]
    assert per_sample(batches[0]) != per_sample(batches[1])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("alphabet", "dna", "one of rinalmo"),
        ("max_tokens", 2, "at least 3"),
        ("masked_fraction", 0.0, "above 0"),
        ("masked_fraction", 1.5, "at most 1"),
        ("masked_fraction", float("nan"), "above 0"),
        ("mask_share", -0.1, "between 0 and 1"),
        ("mask_share", 0.95, r"objective\.random_share = 0\.1"),
        ("random_share", -0.1, "between 0 and 1"),
        ("random_share", float("nan"), "between 0 and 1"),
        ("eligible", "all", "letters or nucleotides"),
        ("random_letters", "", "two or more different letters"),
        ("random_letters", "A", "two or more different letters"),
        ("random_letters", "AA", "two or more different letters"),
        ("random_letters", "ATU", "two or more different letters"),
        ("random_letters", "ACX", "letters of rinalmo"),
        ("random_letters", "ACé", "letters of rinalmo"),
    ],
)
def test_a_mistake_is_refused_with_the_key_what_was_found_and_what_is_expected(key, value, expected):
    with pytest.raises(PretrainError, match=expected) as caught:
        MLM(MLMConfig(**{key: value}))
    assert str(caught.value).startswith(f"objective.{key} is {value!r}, but must be ")


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.9, 0.1), (1.0, 0.0), (0.0, 1.0), (1 / 3, 2 / 3)])
def test_shares_that_add_up_to_one_leave_nothing_unchanged(shares):
    batch = MLM(MLMConfig(mask_share=shares[0], random_share=shares[1])).collate(LARGE[:50], keys(50))
    assert (seen(batch) != batch.targets.numpy()).all()
