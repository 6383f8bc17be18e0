"""A vocabulary of pieces of several nucleotides, learned by SentencePiece (BPE or unigram) and read from a directory.

    sentencepiece.model     the pieces and their scores, in SentencePiece's own format
    sentencepiece.json      our settings: kind, corpus, seed, statistics, and the hash of every other file
    tokenizer.json          the same tokenizer for transformers (data/transformers_tokenizer.py)
    tokenizer_config.json   its special tokens

The special tokens have RiNALMo's ids 0 to 4. Pieces are spelled with U, and every letter that a corpus may hold is a
piece by itself, so no letter is ever unknown. A sequence is read in stretches of 2,048 letters and no piece crosses
from one to the next: so training and reading see the same text, and scores of a stretch add up without rounding (see
`data.sentencepiece_training`). Making such a directory is done there.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from data.errors import DataError
from data.manifest import canonical, file_sha256
from data.normalise import LETTERS_ON_DISK
from data.tokenizer import Letters

SPECIALS = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")  # ids 0 to 4, as in RiNALMo's alphabet
STRETCH = 2048  # letters
KINDS = ("bpe", "unigram")
FORMAT = "rnafoundry-tokenizer"
FORMAT_VERSION = 1
MODEL, SETTINGS = "sentencepiece.model", "sentencepiece.json"

_UNKNOWN = 0
_AGAIN = "make it again with launch/prepare.py tokenizer"


def _folding() -> npt.NDArray[np.uint8]:
    """[256] any spelling of a letter of a corpus -> upper case with U; anything else -> 0."""
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    for letter in LETTERS_ON_DISK:
        for spelling in letter + letter.lower() + ("Tt" if letter == "U" else ""):
            table[ord(spelling)] = ord(letter)
    return table


FOLD = _folding()


class SentencePieceTokenizer:
    """A `data.tokenizer.Tokenizer`. ``settings`` is sentencepiece.json; ``fingerprint`` the SHA-256 of the model."""

    cls, pad, eos, unk, mask = SPECIALS

    def __init__(self, model: bytes, settings: dict[str, Any], path: Path) -> None:
        """Raises DataError if the model does not fit what the module says. ``path`` is named in messages."""
        self.settings, self.path = settings, path
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path}: is no SentencePiece model ({error}); {_AGAIN}.") from error
        every = list(range(self._processor.get_piece_size()))
        self.tokens: tuple[str, ...] = tuple(self._processor.id_to_piece(every))
        self.scores: list[float] = self._processor.get_score(every)
        self.name = f"{settings['kind']}-{len(self.tokens)}"
        self.fingerprint: str = settings["files"][MODEL]["sha256"]
        self._check()

    @classmethod
    def load(cls, directory: str | Path) -> SentencePieceTokenizer:
        """Reads a directory made by `launch/prepare.py tokenizer`. Raises DataError if it is not intact."""
        directory = Path(directory)
        settings = _read_settings(directory)
        for name, expected in settings["files"].items():
            if not (directory / name).is_file():
                raise DataError(f"{directory / name}: is missing; copy the tokenizer again or {_AGAIN}.")
            if file_sha256(directory / name) != expected["sha256"]:
                raise DataError(
                    f"{directory / name}: does not match its hash in {SETTINGS}, it was changed; copy the tokenizer "
                    f"again or {_AGAIN}."
                )
        return cls((directory / MODEL).read_bytes(), settings, directory / MODEL)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """token -> id"""
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, sequence: Letters) -> npt.NDArray[np.int64]:
        """As `data.tokenizer.Tokenizer.encode`; 5 to 15 million letters per second."""
        if isinstance(sequence, str):
            sequence = sequence.encode("ascii", "replace")
        if isinstance(sequence, bytes):
            sequence = np.frombuffer(sequence, dtype=np.uint8)
        folded = FOLD[sequence]
        ids = []
        start = 0
        for end in [*np.flatnonzero(folded == _UNKNOWN).tolist(), len(folded)]:
            known = folded[start:end].tobytes()
            ids += [
                self._processor.encode_as_numpy(known[first : first + STRETCH])
                for first in range(0, len(known), STRETCH)
            ]
            if end < len(folded):
                ids.append(np.array([self.ids[self.unk]]))
            start = end + 1
        found: npt.NDArray[np.int64] = np.concatenate([np.empty(0, dtype=np.int64), *ids])
        return found

    def planned_length(self, nucleotides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that sequences of so many nucleotides hardly ever exceed, and never by more than their letters.

        How many tokens a sequence has is known only once it is read. This is what 999 in 1,000 sequences of the corpus
        that the tokenizer was trained on stay within; see `data.sentencepiece_training.length_statistics`.
        """
        mean, spread = self.settings["tokens_per_nucleotide"], self.settings["spread"]
        cautious = np.ceil(mean * nucleotides + spread * np.sqrt(nucleotides)).astype(np.int64)
        planned: npt.NDArray[np.int64] = np.minimum(cautious, nucleotides)
        return planned

    def _check(self) -> None:
        if self.tokens[: len(SPECIALS)] != SPECIALS:
            raise DataError(f"{self.path}: its first tokens are not {' '.join(SPECIALS)}; {_AGAIN}.")
        pieces = self.tokens[len(SPECIALS) :]
        for piece in pieces:
            if not piece or not set(piece) <= set(LETTERS_ON_DISK):
                raise DataError(f"{self.path}: holds the piece {piece!r}, which is not made of letters; {_AGAIN}.")
        missing = set(LETTERS_ON_DISK) - set(pieces)
        if missing:
            raise DataError(f"{self.path}: has no piece for the letters {' '.join(sorted(missing))}; {_AGAIN}.")
        if [self._processor.id_to_piece(i) for i in self._processor.encode("B")] != ["B"]:
            raise DataError(f"{self.path}: adds to the text that it reads; {_AGAIN}.")


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / SETTINGS
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"is no tokenizer, it has no {SETTINGS}" if directory.is_dir() else "does not exist"
        raise DataError(f"{directory}: {what}; {_AGAIN} or mend the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    try:
        settings: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON, it was cut or changed; {_AGAIN}.") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT or canonical(settings) != content:
        raise DataError(f"{path}: is no description of a {FORMAT}, or was changed; {_AGAIN}.")
    if settings.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {settings.get('format_version')!r}, this program reads {FORMAT_VERSION}; {_AGAIN}."
        )
    wanted = {"kind": str, "files": dict, "tokens_per_nucleotide": float, "spread": float}
    if not all(isinstance(settings.get(key), kind) for key, kind in wanted.items()) or MODEL not in settings["files"]:
        raise DataError(f"{path}: lacks one of {', '.join(wanted)}; {_AGAIN}.")
    if settings["kind"] not in KINDS or any(name != Path(name).name for name in settings["files"]):
        raise DataError(f"{path}: was changed; {_AGAIN}.")
    return settings
