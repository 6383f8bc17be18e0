"""What the rest of the system asks of a vocabulary, whether a token is one nucleotide or several.

Two kinds satisfy `Tokenizer`: `data.alphabet.Alphabet` (one nucleotide per token, one table lookup) and
`data.sentencepiece_tokenizer.SentencePieceTokenizer` (pieces of several nucleotides, learned from a corpus). Whatever
follows from the list of tokens alone is a function here, the same for both.

Tokens written `<...>` or `[...]` are special; every other token is the letters that it stands for. U and T are one.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data.manifest import canonical

Letters = str | bytes | npt.NDArray[np.uint8]


class Tokenizer(Protocol):
    """``tokens[id]`` is the token and ``ids[token]`` its id; ``cls`` to ``mask`` name the special tokens."""

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> dict[str, int]: ...
    @property
    def cls(self) -> str: ...
    @property
    def eos(self) -> str: ...
    @property
    def pad(self) -> str: ...
    @property
    def unk(self) -> str: ...
    @property
    def mask(self) -> str: ...

    def __len__(self) -> int: ...

    def encode(self, sequence: Letters) -> npt.NDArray[np.integer]:
        """Letters in either case, spelled with U or T -> ids [n], without `<cls>` and `<eos>`.

        Every letter that the vocabulary lacks is one `<unk>`, also where several follow each other.
        """
        ...


def is_special(token: str) -> bool:
    return token[0] in "<["


def widths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """[V] nucleotides that each token stands for: 1 for the unknown letter's, 0 for the other special tokens."""
    return np.array(
        [(token == tokenizer.unk) if is_special(token) else len(token) for token in tokenizer.tokens], dtype=np.int64
    )


def made_of(tokenizer: Tokenizer, letters: str | None = None) -> npt.NDArray[np.bool_]:
    """[V] is this token made of nothing but ``letters`` (of any, unless given)? Special tokens never are.

    Nor are letters that no sequence gives, such as the U of a vocabulary that reads U as T.
    """
    allowed = None if letters is None else set(_with_u(letters))
    table: npt.NDArray[np.uint8] | None = getattr(tokenizer, "lookup", None)
    read = None if table is None else set(table.tolist())
    return np.array(
        [
            not is_special(token)
            and (allowed is None or allowed >= set(_with_u(token)))
            and (read is None or i in read)
            for i, token in enumerate(tokenizer.tokens)
        ]
    )


def spans(tokenizer: Tokenizer, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """[n, 2] first nucleotide and the one after the last of each token, counted from the first token of ``ids``."""
    ends = np.cumsum(widths(tokenizer)[ids])
    return np.stack([np.concatenate([[0], ends[:-1]]) if len(ends) else ends, ends], axis=1)


def decode(tokenizer: Tokenizer, ids: npt.NDArray[np.integer]) -> str:
    """The letters that ids stand for, spelled with U; `?` for `<unk>`, nothing for the other special tokens."""
    texts = [("?" if token == tokenizer.unk else "") if is_special(token) else token for token in tokenizer.tokens]
    return _with_u("".join(texts[i] for i in np.asarray(ids).tolist()))


def fingerprint(tokenizer: Tokenizer) -> str:
    """64 hex digits that differ wherever two tokenizers could give different ids."""
    own: str | None = getattr(tokenizer, "fingerprint", None)
    return own or hashlib.sha256(canonical({"kind": "nucleotide", "tokens": list(tokenizer.tokens)})).hexdigest()


def _with_u(letters: str) -> str:
    return letters.upper().replace("T", "U")
