"""Tokenizers of several nucleotides: letters survive, transformers agrees, the same inputs give the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.alphabet import IUPAC, RINALMO, Alphabet
from data.errors import DataError
from data.index import Corpus
from data.manifest import canonical
from data.sentencepiece_tokenizer import MODEL, SETTINGS, SPECIALS, STRETCH, SentencePieceTokenizer
from data.tokenizer import Tokenizer, decode, fingerprint, made_of, spans, widths

LETTERS = IUPAC + "I"
KINDS = ("bpe", "unigram")


def random_texts(of: str, count: int, longest: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(of), generator.integers(1, longest))) for _ in range(count)]


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
