"""Tokenizers of several nucleotides: letters survive, transformers agrees, the same inputs give the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.alphabet import IUPAC, RINALMO, Alphabet
from data.errors import DataError
from data.index import Corpus
from data.manifest import canonical
from data.sentencepiece_tokenizer import MODEL, SETTINGS, SPECIALS, STRETCH, SentencePieceTokenizer
from data.sentencepiece_training import _with_exact_sums, draw_sample, train_tokenizer
from data.tokenizer import Tokenizer, decode, fingerprint, made_of, spans, widths
from data.transformers_tokenizer import last_merge
from launch.cli import ROOT

LETTERS = IUPAC + "I"
KINDS = ("bpe", "unigram")


def random_texts(of: str, count: int, longest: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(of), generator.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizers(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small tokenizer of each kind, by kind."""
    folder, corpus = tmp_path_factory.mktemp("tokenizers"), Corpus.open(synthetic_corpus)
    for kind in KINDS:
        train_tokenizer(corpus, folder / kind, kind, vocabulary=160, sequences=150, seed=0)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Path]) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(tokenizers[request.param])


# Letters


def test_special_tokens_have_rinalmos_ids_and_the_vocabulary_its_size(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.tokens[:5] == RINALMO.tokens[:5] == SPECIALS
    assert [tokenizer.ids[token] for token in SPECIALS] == list(range(5))
    assert len(tokenizer) == len(set(tokenizer.tokens)) == 160
    assert max(map(len, tokenizer.tokens[5:])) > 3  # it has learned something


def test_no_letter_of_a_corpus_is_unknown_or_changed(tokenizer: SentencePieceTokenizer) -> None:
    for text in [*LETTERS, LETTERS, *random_texts(LETTERS, 200, 300)]:
        ids = tokenizer.encode(text)
        assert 3 not in ids
        assert (ids >= 5).all()
        assert decode(tokenizer, ids) == text


def test_u_and_t_and_both_cases_are_folded(tokenizer: SentencePieceTokenizer) -> None:
    """Two public tokenizers silently lose one of T and U."""
    for text in random_texts("ACGUN", 100, 200):
        expected = tokenizer.encode(text).tolist()
        for spelling in (text.replace("U", "T"), text.lower(), text.lower().replace("u", "t")):
            assert tokenizer.encode(spelling).tolist() == expected


def test_text_bytes_and_arrays_encode_alike(tokenizer: SentencePieceTokenizer) -> None:
    text = "ACGUUGCAxé-NNRACGU" * 5
    expected = tokenizer.encode(text)
    raw = text.encode("ascii", "replace")
    assert np.array_equal(tokenizer.encode(raw), expected)
    assert np.array_equal(tokenizer.encode(np.frombuffer(raw, np.uint8)), expected)
    assert tokenizer.encode("").tolist() == []


def test_each_letter_that_is_lacking_is_one_unknown_token(tokenizer: SentencePieceTokenizer) -> None:
    acgu = tokenizer.encode("ACGU").tolist()
    assert tokenizer.encode("ACGUXX-\n?ACGU").tolist() == [*acgu, 3, 3, 3, 3, 3, *acgu]
    assert tokenizer.encode("E<>").tolist() == [3, 3, 3]
    assert decode(tokenizer, np.array([0, *acgu, 3, 4, 2, 1])) == "ACGU?"


def test_no_piece_crosses_a_stretch(tokenizer: SentencePieceTokenizer) -> None:
    text = "".join(random_texts("ACGU", 60, 300))
    parts = [tokenizer.encode(text[start : start + STRETCH]) for start in range(0, len(text), STRETCH)]
    assert len(parts) > 2
    assert np.array_equal(tokenizer.encode(text), np.concatenate(parts))


# What follows from the list of tokens


def test_an_alphabet_and_a_sentencepiece_tokenizer_offer_the_same(tokenizer: SentencePieceTokenizer) -> None:
    for each in (RINALMO, tokenizer):
        ids = each.encode("ACGTNacgu?AA")
        places = spans(each, ids)
        assert places[0, 0] == 0
        assert places[-1, 1] == 12
        assert np.array_equal(places[1:, 0], places[:-1, 1])
        assert np.array_equal(places[:, 1] - places[:, 0], widths(each)[ids])
        assert decode(each, ids) == "ACGUNACGU?AA"
        assert widths(each)[:5].tolist() == [0, 0, 0, 1, 0]
    assert spans(RINALMO, np.array([], dtype=np.int64)).shape == (0, 2)


def test_made_of_finds_the_tokens_of_some_letters(tokenizer: SentencePieceTokenizer) -> None:
    assert np.flatnonzero(made_of(RINALMO)).tolist() == list(range(5, 22))
    assert np.flatnonzero(made_of(RINALMO, "ACGU")).tolist() == np.flatnonzero(made_of(RINALMO, "tgca")).tolist()
    assert np.flatnonzero(made_of(RINALMO, "ACGU")).tolist() == [5, 6, 7, 8]
    every, plain = made_of(tokenizer), made_of(tokenizer, "ACGT")
    assert np.flatnonzero(~every).tolist() == list(range(5))
    assert {t for t, chosen in zip(tokenizer.tokens, plain, strict=True) if chosen} == {
        token for token in tokenizer.tokens if token and set(token) <= set("ACGU")
    }


def test_fingerprints_tell_tokenizers_apart(tokenizers: dict[str, Path]) -> None:
    other = Alphabet("rinalmo", RINALMO.tokens[:-1])
    every: list[Tokenizer] = [RINALMO, other, *(SentencePieceTokenizer.load(path) for path in tokenizers.values())]
    found = [fingerprint(each) for each in every]
    assert len(set(found)) == 4
    assert all(len(digits) == 64 for digits in found)


def test_planned_lengths_are_hardly_ever_exceeded(tokenizer: SentencePieceTokenizer, synthetic_corpus: Path) -> None:
    letters = Corpus.open(synthetic_corpus).letters(np.arange(1000))
    nucleotides = np.array([len(sequence) for sequence in letters])
    tokens = np.array([len(tokenizer.encode(sequence)) for sequence in letters])
    planned = tokenizer.planned_length(nucleotides)
    assert (tokens > planned).mean() < 0.02
    assert (planned <= nucleotides).all()
    assert planned.sum() < 2 * tokens.sum()
    assert tokenizer.planned_length(np.array([0, 1])).tolist() == [0, 1]


# transformers


def hard_texts() -> list[str]:
    """Ties and near-ties without end, stretches, letters out of the ordinary."""
    return [
        *random_texts("ACGU", 800, 400),
        *random_texts("ACGTacgtu", 300, 300),
        *random_texts(LETTERS + LETTERS.lower(), 300, 200),
        *random_texts("ACGUXx-. nN?E<é", 200, 80),
        *random_texts("AU", 200, 1500),
        *random_texts("AAAAAAAAAG", 300, 300),
        *("A" * n for n in (*range(1, 120), STRETCH - 1, STRETCH, STRETCH + 1, 5 * STRETCH)),
        *("N" * n for n in (1, 2, STRETCH + 1)),
        *(unit * 1500 for unit in ("AAG", "GGC", "AUAU", "GCGCC")),
    ]


def disagreements(directory: Path, texts: list[str]) -> list[str]:
    from transformers import AutoTokenizer

    ours, theirs = SentencePieceTokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    expected = theirs(texts)["input_ids"]
    return [text for text, row in zip(texts, expected, strict=True) if [0, *ours.encode(text).tolist(), 2] != row]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(kind: str, tokenizers: dict[str, Path], synthetic_corpus: Path) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    letters = Corpus.open(synthetic_corpus).letters(np.arange(1000))
    assert disagreements(tokenizers[kind], [*hard_texts(), *(x.tobytes().decode() for x in letters)]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_finds_special_tokens_pads_and_decodes(kind: str, tokenizers: dict[str, Path]) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(tokenizers[kind]), SentencePieceTokenizer.load(tokenizers[kind])
    assert len(theirs) == len(ours)
    found = [theirs.cls_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.mask_token_id]
    assert found == [0, 1, 2, 3, 4]
    acgu, g = ours.encode("ACGU").tolist(), ours.encode("G").tolist()
    assert theirs("acgt<mask>ACGU")["input_ids"] == [0, *acgu, 4, *acgu, 2]
    padded = theirs(["ACGU", "G"], padding=True)["input_ids"]
    assert padded == [[0, *acgu, 2], [0, *g, 2, *[1] * (len(acgu) - 1)]]
    assert theirs.decode(theirs("ACGTNN")["input_ids"], skip_special_tokens=True) == "ACGUNN"
    assert theirs("AC", "GU")["input_ids"] == [0, *ours.encode("AC"), 2, *ours.encode("GU"), 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids_on_real_rna(kind: str, tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("transformers", reason="the optional extra `test` is not installed")
    from data.corpus import prepare
    from tests.data.corpora import config

    prepare(config(tmp_path / "corpus", shared_data / "sequences" / "nrc_train_6320_13classes.fasta.gz"))
    corpus = Corpus.open(tmp_path / "corpus")
    train_tokenizer(corpus, tmp_path / "tokenizer", kind, vocabulary=512, sequences=2000, seed=0)
    texts = [x.tobytes().decode() for x in corpus.letters(np.arange(corpus.count))]
    assert len(texts) > 4000
    assert disagreements(tmp_path / "tokenizer", texts + [text.replace("U", "T").lower() for text in texts]) == []


def test_the_last_merge_of_a_piece() -> None:
    scores = {"AA": 0.0, "AAA": -1.0, "GA": -2.0, "GAA": -3.0, "CC": -4.0, "UCCU": -5.0}
    assert last_merge("AA", scores) == ["A", "A"]
    assert last_merge("AAA", scores) == ["AA", "A"]
    assert last_merge("GAA", scores) == ["G", "AA"]
    assert last_merge("UCCU", scores) is None  # U CC U: no two neighbours make up a piece


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


# Training


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


# A directory that is not intact


def change_settings(directory: Path, **changes: object) -> None:
    path = directory / SETTINGS
    path.write_bytes(canonical({**json.loads(path.read_bytes()), **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (shutil.rmtree, "does not exist"),
    "no settings": (lambda d: (d / SETTINGS).unlink(), "is no tokenizer, it has no sentencepiece.json"),
    "no model": (lambda d: (d / MODEL).unlink(), "sentencepiece.model: is missing"),
    "model changed": (lambda d: flip(d / MODEL), "sentencepiece.model: does not match its hash"),
    "tokenizer.json changed": (lambda d: flip(d / "tokenizer.json"), "tokenizer.json: does not match its hash"),
    "settings cut": (lambda d: (d / SETTINGS).write_bytes((d / SETTINGS).read_bytes()[:50]), "is not valid JSON"),
    "settings reformatted": (lambda d: (d / SETTINGS).write_text("{}"), "is no description of a rnafoundry-tokenizer"),
    "later version": (lambda d: change_settings(d, format_version=2), "format version 2, this program reads 1"),
    "no statistics": (lambda d: change_settings(d, spread=None), "lacks one of"),
    "other kind": (lambda d: change_settings(d, kind="words"), "was changed"),
    "file elsewhere": (lambda d: change_settings(d, files={MODEL: {}, "../x": {}}), "was changed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_directory_is_refused_with_its_name(damage: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(tokenizers["bpe"], directory)
    action, message = DAMAGE[damage]
    action(directory)
    with pytest.raises(DataError) as error:
        SentencePieceTokenizer.load(directory)
    assert str(directory) in str(error.value)
    assert message in str(error.value)
    assert "launch/prepare.py tokenizer" in str(error.value)


@pytest.mark.parametrize(
    ("options", "texts", "message"),
    [
        ({}, ["ACGU"] * 20, "its first tokens are not"),
        ({"letters": "ACGU"}, ["ACGU"] * 20, "has no piece for the letters B D"),
        ({"letters": "ACGUNRYKMSWBDHVIé"}, ["ACGU"] * 20, "holds the piece 'é'"),
        ({"letters": "ACGUNRYKMSWBDHVI", "add_dummy_prefix": True}, ["ACGU"] * 20, "which is not made of letters"),
    ],
)
def test_other_peoples_models_are_refused(
    options: dict[str, object], texts: list[str], message: str, tmp_path: Path
) -> None:
    import io

    import sentencepiece

    options = dict(options)
    letters = str(options.pop("letters", ""))
    ours = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "control_symbols": ["<mask>"]}
    names = {"bos_piece": "<cls>", "eos_piece": "<eos>"}
    fixed = {"add_dummy_prefix": False, "character_coverage": 1.0, "hard_vocab_limit": False, "minloglevel": 2}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*letters, *texts]),
        model_writer=written,
        vocab_size=40,
        **(fixed | (ours | names if letters else {}) | options),
    )
    settings = {"kind": "unigram", "files": {MODEL: {"sha256": "0"}}}
    with pytest.raises(DataError, match=message):
        SentencePieceTokenizer(written.getvalue(), settings, tmp_path / MODEL)


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no SentencePiece model"):
        SentencePieceTokenizer(b"\0\1\2 no model", {"kind": "bpe"}, tmp_path / MODEL)
