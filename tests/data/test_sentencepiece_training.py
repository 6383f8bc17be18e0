"""Learning a tokenizer: exact scores, the same bytes from the same inputs, whole sequences, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.index import Corpus
from data.sentencepiece_tokenizer import KINDS, STRETCH, SentencePieceTokenizer
from data.sentencepiece_training import _with_exact_sums, draw_sample, train_tokenizer
from launch.cli import ROOT
from tests.data.test_tokenizer import random_texts


def test_scores_of_unigram_pieces_add_up_exactly(tokenizers: dict[str, Path]) -> None:
    scores = np.array(SentencePieceTokenizer.load(tokenizers["unigram"]).scores)
    assert (scores * 256 == np.round(scores * 256)).all()
    assert scores.min() >= -32
    assert STRETCH * 32 * 256 <= 2**24  # what single precision holds exactly


def test_rounding_changes_scores_by_less_than_a_step_and_nothing_else() -> None:
    import io

    import sentencepiece

    written = io.BytesIO()
    texts = random_texts("ACGU", 50, 60)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, vocab_size=40, add_dummy_prefix=False, minloglevel=2
    )
    before, after = (sentencepiece.SentencePieceProcessor() for _ in range(2))
    before.LoadFromSerializedProto(written.getvalue())
    after.LoadFromSerializedProto(_with_exact_sums(written.getvalue()))
    every = list(range(40))
    assert before.id_to_piece(every) == after.id_to_piece(every)
    change = abs(np.array(before.get_score(every)) - np.array(after.get_score(every)))
    assert 0 < change.max() <= 2**-9
    rounded = after.serialized_model_proto()
    assert _with_exact_sums(rounded) == rounded
    assert sum(a != b for a, b in zip(rounded, written.getvalue(), strict=True)) <= 4 * 40


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_corpus_and_seed_give_the_same_bytes_in_another_process(
    kind: str, tokenizers: dict[str, Path], synthetic_corpus: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from data.index import Corpus\n"
        "from data.sentencepiece_training import train_tokenizer\n"
        "train_tokenizer(Corpus.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 160, 150, 0)\n"
    )
    command = [sys.executable, "-c", code, str(synthetic_corpus), str(tmp_path / "again"), kind]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "1"})
    assert contents(tmp_path / "again") == contents(tokenizers[kind])
    assert sorted(contents(tmp_path / "again")) == [
        "sentencepiece.json",
        "sentencepiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_another_seed_draws_another_sample_and_settings_tell_which(synthetic_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(synthetic_corpus)
    trained = [train_tokenizer(corpus, tmp_path / str(seed), "bpe", 100, 50, seed) for seed in (0, 1)]
    assert trained[0].fingerprint != trained[1].fingerprint
    everything = train_tokenizer(corpus, tmp_path / "all", "bpe", 100, 10**9, 0).settings
    assert everything["sample"] == {"sequences": corpus.count, "nucleotides": int(corpus.lengths.sum())}
    assert everything["corpus"]["fingerprint"] == corpus.fingerprint
    assert not list(tmp_path.glob(".*"))


def test_a_sample_holds_different_sequences_all_over_the_corpus() -> None:
    for count, most in ((10, 10), (10, 20), (11, 10), (1000, 990), (36_000_000, 5000)):
        sample = draw_sample(count, most, seed=3)
        assert len(sample) == len(set(sample.tolist())) == min(count, most)
        assert (np.diff(sample) > 0).all()
        assert sample[0] >= 0
        assert sample[-1] < count
    counts = np.histogram(draw_sample(36_000_000, 5000, 3), bins=10, range=(0, 36_000_000))[0]
    assert (abs(counts - 500) < 100).all()


def test_long_sequences_lose_no_letter_in_training(tmp_path: Path) -> None:
    """A piece that occurs only in the last letters of sequences longer than any limit of SentencePiece is learned."""
    from data.corpus import prepare
    from tests.data.corpora import config, write_fasta

    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("ACG"), 9000)) + "UUUUUUUU" * 20 for _ in range(5)]
    prepare(
        config(tmp_path / "corpus", write_fasta(tmp_path / "long.fa", texts), max_length=20_000, validation_fraction=0)
    )
    trained = train_tokenizer(Corpus.open(tmp_path / "corpus"), tmp_path / "tokenizer", "bpe", 200, 10, 0)
    assert "UUUUUUUU" in trained.tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "words"}, "kind of tokenizer is 'words'"),
        ({"vocabulary": 21}, "vocabulary is 21"),
        ({"vocabulary": 10**7}, "vocabulary is 10000000"),
        ({"sequences": 0}, "sample is 0"),
        ({"vocabulary": 50_000, "sequences": 2}, "a vocabulary of 50000 is more than the sample supports"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_cannot_work_are_a_sentence_and_leave_nothing(
    kind: str, changes: dict[str, object], message: str, synthetic_corpus: Path, tmp_path: Path
) -> None:
    arguments = {"kind": kind, "vocabulary": 100, "sequences": 20, "seed": 0, **changes}
    with pytest.raises(DataError, match=message) as error:
        train_tokenizer(Corpus.open(synthetic_corpus), tmp_path / "tokenizer", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_smallest_vocabulary_works(synthetic_corpus: Path, tmp_path: Path) -> None:
    assert len(train_tokenizer(Corpus.open(synthetic_corpus), tmp_path / "t", "bpe", 22, 20, 0)) == 22
