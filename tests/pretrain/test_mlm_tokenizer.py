"""Masked language modelling on pieces of several nucleotides: the same promises as on letters (test_mlm.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import randomness
from data.errors import DataError
from data.index import Corpus
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.sentencepiece_training import train_tokenizer
from data.tokenizer import decode, widths
from pretrain.errors import PretrainError
from pretrain.objectives.mlm import MLM, MaskedBatch, MLMConfig

Samples = tuple[list[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def directory(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_tokenizer(Corpus.open(synthetic_corpus), to, "bpe", vocabulary=200, sequences=300, seed=0)
    return to


@pytest.fixture(scope="module")
def samples(synthetic_corpus: Path) -> Samples:
    letters = [x.copy() for x in Corpus.open(synthetic_corpus).letters(np.arange(1200))]
    for i in range(0, 1200, 10):
        letters[i][:5] = ord("N")
    return letters, randomness.keys(randomness.key("test"), np.arange(1200))


def objective(directory: Path, **options: object) -> MLM:
    return MLM(MLMConfig(tokenizer=str(directory), **options))  # type: ignore[arg-type]


def rows(batch: MaskedBatch, uncorrupted: bool = True) -> list[list[int]]:
    tokens = batch.tokens.numpy().copy()
    if uncorrupted:
        tokens[batch.target_index.numpy()] = batch.targets.numpy()
    return [part.tolist() for part in np.split(tokens, batch.cu_seqlens.numpy()[1:-1])]


def test_rows_are_the_pieces_between_cls_and_eos(directory: Path, samples: Samples) -> None:
    letters, keys = samples
    tokenizer, batch = SentencePieceTokenizer.load(directory), objective(directory).collate(letters, keys)
    for row, sequence, nucleotides in zip(rows(batch), letters, batch.nucleotides, strict=True):
        assert row == [0, *tokenizer.encode(sequence).tolist(), 2]
        assert nucleotides == len(sequence)
    assert batch.positions.tolist() == [i for length in batch.lengths for i in range(length)]
    assert batch.lengths.sum() < 0.6 * batch.nucleotides.sum()


def test_fifteen_percent_of_pieces_are_selected_of_these_80_10_10(directory: Path, samples: Samples) -> None:
    batch = objective(directory).collate(*samples)
    pieces = int((batch.lengths - 2).sum())
    seen, targets = batch.tokens.numpy()[batch.target_index.numpy()], batch.targets.numpy()
    masked, same = seen == 4, seen == targets
    for found, total, share in ((batch.weight, pieces, 0.15), (masked.sum(), batch.weight, 0.8)):
        assert abs(found / total - share) < 3 * np.sqrt(share * (1 - share) / total)
    assert abs(same.sum() / batch.weight - 0.1) < 3 * np.sqrt(0.09 / batch.weight)
    assert (targets >= 5).all()


def test_a_random_piece_is_another_one_of_any_length_made_of_the_random_letters(
    directory: Path, samples: Samples
) -> None:
    mlm = objective(directory, mask_share=0.0, random_share=1.0)
    batch = mlm.collate(*samples)
    seen, targets = batch.tokens.numpy()[batch.target_index.numpy()], batch.targets.numpy()
    assert (seen != targets).all()
    plain = [i for i, token in enumerate(mlm.alphabet.tokens) if i >= 5 and set(token) <= set("ACGU")]
    assert set(seen.tolist()) == set(plain)
    counts = np.bincount(seen, minlength=200)[plain]
    assert (abs(counts - len(seen) / len(plain)) < 6 * np.sqrt(len(seen) / len(plain))).all()


def test_targets_know_their_nucleotides_also_in_a_crop(directory: Path, samples: Samples) -> None:
    letters, keys = samples
    mlm = objective(directory, max_tokens=14)
    batch = mlm.collate(letters, keys)
    cut = 0
    for i, place, width, target in zip(
        batch.target_sample, batch.target_nucleotide, batch.target_width, batch.targets.numpy(), strict=True
    ):
        text = letters[i].tobytes().decode()
        assert text[place : place + width] == decode(mlm.alphabet, np.array([target]))
    for row, sequence, nucleotides in zip(rows(batch), letters, batch.nucleotides, strict=True):
        whole = [0, *mlm.alphabet.encode(sequence).tolist(), 2]
        assert len(row) == min(len(whole), 14)
        assert any(whole[start : start + len(row)] == row for start in range(len(whole) - len(row) + 1))
        assert nucleotides == widths(mlm.alphabet)[row].sum()
        cut += len(whole) > 14
    assert cut > 100


def test_a_sample_is_masked_alike_in_any_company(directory: Path, samples: Samples) -> None:
    letters, keys = samples
    mlm = objective(directory, max_tokens=40)
    together = rows(mlm.collate(letters, keys), uncorrupted=False)
    for i in (0, 7, 300, 1199):
        assert rows(mlm.collate([letters[i]], keys[i : i + 1]), uncorrupted=False) == [together[i]]


def test_only_pieces_of_nucleotides_are_eligible_on_request(directory: Path, samples: Samples) -> None:
    found = {name: objective(directory, eligible=name).collate(*samples) for name in ("letters", "nucleotides")}
    tokens = objective(directory).alphabet.tokens
    has_n = {name: any("N" in tokens[i] for i in batch.targets.tolist()) for name, batch in found.items()}
    assert has_n == {"letters": True, "nucleotides": False}


def test_planned_lengths_hold_nearly_always_and_are_capped(directory: Path, samples: Samples) -> None:
    letters, keys = samples
    mlm = objective(directory, max_tokens=60)
    nucleotides = np.array([len(x) for x in letters])
    planned, batch = mlm.token_lengths(nucleotides), mlm.collate(letters, keys)
    assert planned.max() <= 60
    assert (planned <= nucleotides + 2).all()
    assert (batch.lengths > planned).mean() < 0.02


def test_an_empty_micro_batch_is_one_row_without_targets(directory: Path) -> None:
    batch = objective(directory).collate([], np.zeros(0, np.uint64))
    assert batch.tokens.tolist() == [0, 2]
    assert (batch.weight, batch.nucleotides.tolist()) == (0, [0])


def test_widths_and_nucleotides_of_single_letters(samples: Samples) -> None:
    letters, keys = samples
    batch = MLM(MLMConfig(max_tokens=50)).collate(letters, keys)
    assert set(batch.target_width.tolist()) == {1}
    inside = [sum(token >= 5 for token in row) for row in rows(batch)]
    assert batch.nucleotides.tolist() == inside


def test_refusals(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        objective(tmp_path / "none")
    with pytest.raises(PretrainError, match="two or more different letters of bpe-200"):
        objective(directory, random_letters="AX")
