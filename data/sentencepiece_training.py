"""Learns the pieces of a SentencePiece tokenizer from the training split of a corpus, and writes its directory.

    sample    sequences drawn by key from the training split; all of them if there are no more
    learn     SentencePiece, on stretches of 2,048 letters (the stretches in which the tokenizer will read)
    measure   how many tokens sequences of the sample have, for planning batches
    publish   rename the finished directory into place

Deterministic: the order of the sample, the number of threads (sums of unigram training are taken per thread) and all
settings are fixed, so the same corpus, sample and seed give the same bytes on every machine. Memory is bounded by the
sample.

Scores of unigram pieces are rounded to 1/256 and not below -32, after training. A stretch then sums up to a multiple
of 1/256 below 2**16 in size, which single precision holds exactly, so that every program that adds them finds the same
best segmentation, whatever its precision.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sentencepiece

from data import randomness
from data.errors import DataError
from data.index import Corpus
from data.manifest import canonical
from data.normalise import LETTERS_ON_DISK
from data.publish import partial_directory, publish
from data.sentencepiece_tokenizer import (
    FOLD,
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    MODEL,
    SETTINGS,
    SPECIALS,
    STRETCH,
    SentencePieceTokenizer,
)
from data.transformers_tokenizer import TOKENIZER, TOKENIZER_CONFIG, tokenizer_config, tokenizer_json

LONGEST_PIECE = 16  # letters
THREADS = 4  # part of the result, see above
SMALLEST = len(SPECIALS) + len(LETTERS_ON_DISK) + 1
LARGEST = 1 << 20
SCORE_STEP, LOWEST_SCORE = 2.0**-8, -32.0


def train_tokenizer(
    corpus: Corpus, output: Path, kind: str, vocabulary: int, sequences: int, seed: int, overwrite: bool = False
) -> SentencePieceTokenizer:
    """Learns ``vocabulary`` tokens (specials and single letters included) and publishes the directory ``output``.

    Raises DataError for settings that cannot work, where ``output`` exists, or where the sample has too little in it.
    """
    if kind not in KINDS:
        raise DataError(f"the kind of tokenizer is {kind!r}, expected one of {', '.join(KINDS)}.")
    if not SMALLEST <= vocabulary <= LARGEST:
        raise DataError(
            f"the vocabulary is {vocabulary}, expected {SMALLEST} to {LARGEST:,}: {len(SPECIALS)} special tokens, "
            f"{len(LETTERS_ON_DISK)} single letters and at least one piece."
        )
    if sequences < 1:
        raise DataError(f"the sample is {sequences} sequences, expected at least 1.")
    settings: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "vocabulary": vocabulary,
        "longest_piece": LONGEST_PIECE,
        "seed": seed,
        "corpus": {"name": corpus.manifest["name"], "fingerprint": corpus.fingerprint},
        "sentencepiece": sentencepiece.__version__,
    }
    with partial_directory(output, canonical({**settings, "sample": sequences}).decode(), overwrite) as partial:
        sample = [FOLD[letters].tobytes() for letters in corpus.letters(draw_sample(corpus.count, sequences, seed))]
        settings["sample"] = {"sequences": len(sample), "nucleotides": sum(map(len, sample))}
        model = _learn(sample, kind, vocabulary)
        model_hash = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
        tokenizer = SentencePieceTokenizer(model, {**settings, "files": {MODEL: model_hash}}, partial / MODEL)
        settings |= length_statistics(tokenizer, sample)
        content = {
            MODEL: model,
            TOKENIZER: canonical(tokenizer_json(tokenizer)),
            TOKENIZER_CONFIG: canonical(tokenizer_config(tokenizer)),
        }
        settings["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in content.items()
        }
        built = partial / "built"
        built.mkdir(exist_ok=True)
        for name, data in (content | {SETTINGS: canonical(settings)}).items():
            (built / name).write_bytes(data)
        publish(built, output)
    return SentencePieceTokenizer.load(output)


def draw_sample(count: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Ascending numbers of ``most`` different sequences out of ``count``, all of them if there are no more."""
    if count <= most:
        return np.arange(count)
    base, drawn, found = randomness.key(seed, "tokenizer"), 0, np.empty(0, dtype=np.int64)
    while len(found) < most:  # in draw order, so that what is cut off at the end is random too
        new = randomness.below(randomness.bits(base, np.arange(drawn, drawn + 2 * most)), count)
        drawn += 2 * most
        every = np.concatenate([found, new])
        found = every[np.sort(np.unique(every, return_index=True)[1])]
    return np.sort(found[:most])


def length_statistics(tokenizer: SentencePieceTokenizer, sequences: list[bytes]) -> dict[str, float]:
    """{"tokens_per_nucleotide": a, "spread": b}: 999 in 1,000 sequences of n letters have at most a*n + b*sqrt(n)."""
    nucleotides = np.array([len(sequence) for sequence in sequences])
    tokens = np.array([len(tokenizer.encode(sequence)) for sequence in sequences])
    mean = round(float(tokens.sum() / nucleotides.sum()), 4)
    excess = (tokens - mean * nucleotides) / np.sqrt(nucleotides)
    return {"tokens_per_nucleotide": mean, "spread": round(max(float(np.quantile(excess, 0.999)), 0.0), 4)}


def _learn(sample: list[bytes], kind: str, vocabulary: int) -> bytes:
    """SentencePiece's model as bytes."""
    stretches = (
        sequence[start : start + STRETCH].decode() for sequence in sample for start in range(0, len(sequence), STRETCH)
    )
    written = io.BytesIO()
    cls, pad, eos, unk, mask = SPECIALS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*LETTERS_ON_DISK, *stretches]),  # each letter once, so that it becomes a piece
            model_writer=written,
            model_type=kind,
            vocab_size=vocabulary,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            bos_id=SPECIALS.index(cls),
            pad_id=SPECIALS.index(pad),
            eos_id=SPECIALS.index(eos),
            unk_id=SPECIALS.index(unk),
            bos_piece=cls,
            pad_piece=pad,
            eos_piece=eos,
            unk_piece=unk,
            control_symbols=[mask],
            max_sentencepiece_length=LONGEST_PIECE,
            max_sentence_length=2 * STRETCH,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            # Candidates that unigram training starts from and prunes; the default of a million is for words.
            seed_sentencepiece_size=max(16 * vocabulary, 1 << 14),
            num_threads=THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        most = re.search(r"value <= (\d+)", str(error))
        if most:
            raise DataError(
                f"a vocabulary of {vocabulary} is more than the sample supports ({most.group(1)}); ask for a smaller "
                "one, or for a larger sample with --sequences."
            ) from error
        raise DataError(f"SentencePiece could not learn from the sample ({error}); try a larger one.") from error
    return _with_exact_sums(written.getvalue()) if kind == "unigram" else written.getvalue()


def _with_exact_sums(model: bytes) -> bytes:
    """The model with rounded scores, see the module.

    The scores are overwritten where they stand: a model is a protobuf message with its pieces in field 1, a piece
    being the message {1: text, 2: score as a 4-byte float, 3: type}. SentencePiece's own protobuf module demands a
    protobuf runtime at least as new as the one it was built with, which other packages may not allow.
    """
    rounded = bytearray(model)
    for piece in _fields(model, 0, len(model)):
        if piece.number != 1:
            continue
        for field in _fields(model, piece.start, piece.stop):
            if field.number == 2:
                (score,) = struct.unpack_from("<f", model, field.start)
                struct.pack_into("<f", rounded, field.start, max(round(score / SCORE_STEP) * SCORE_STEP, LOWEST_SCORE))
    return bytes(rounded)


class _Field(NamedTuple):
    number: int
    start: int  # of the content
    stop: int


def _fields(message: bytes, start: int, stop: int) -> Iterator[_Field]:
    """The fields of a protobuf message that lies at [start, stop)."""
    while start < stop:
        tag, start = _varint(message, start)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            end = _varint(message, start)[1]
        elif wire_type == 2:
            length, start = _varint(message, start)
            end = start + length
        else:
            end = start + {1: 8, 5: 4}[wire_type]
        yield _Field(number, start, end)
        start = end


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """(number, where it ends): seven bits per byte, the lowest first; the eighth says that more follow."""
    number = shift = 0
    while True:
        number |= (message[start] & 0x7F) << shift
        shift, start = shift + 7, start + 1
        if message[start - 1] < 0x80:
            return number, start
