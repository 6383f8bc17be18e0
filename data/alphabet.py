"""Letters on disk are upper-case ASCII with U for uracil; a model's ids come from them by one 256-entry lookup.

`Alphabet` is the vocabulary of a single-nucleotide model: special tokens and letters with their ids. Both T and U map
to the same id whichever of the two the vocabulary spells, in either case; any letter it lacks maps to `<unk>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

NUCLEOTIDES = "ACGU"
IUPAC = "ACGURYKMSWBDHVN"  # the letters that a nucleic-acid sequence may hold, spelled with U
INOSINE = "I"


@dataclass(frozen=True)
class Alphabet:
    """A single-nucleotide vocabulary: ``tokens[id]`` is the token; letters are one character, specials are `<...>`."""

    name: str
    tokens: tuple[str, ...]
    cls: str = "<cls>"
    eos: str = "<eos>"
    pad: str = "<pad>"
    unk: str = "<unk>"
    mask: str = "<mask>"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        """token -> id"""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def lookup(self) -> npt.NDArray[np.uint8]:
        """[256] ASCII code -> id. Case-insensitive; T and U are one letter."""
        table = np.full(256, self.ids[self.unk], dtype=np.uint8)
        for token, i in self.ids.items():
            if len(token) == 1:
                spellings = "TU" if token in "TU" else token
                for letter in spellings + spellings.lower():
                    table[ord(letter)] = i
        return table

    def encode(self, sequence: str | bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Letters -> ids, without `<cls>` and `<eos>`. Non-ASCII characters become `<unk>`."""
        if isinstance(sequence, str):
            sequence = sequence.encode("ascii", "replace")
        if isinstance(sequence, bytes):
            sequence = np.frombuffer(sequence, dtype=np.uint8)
        return self.lookup[sequence]

    def encode_row(self, sequence: str | bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """`<cls>` letters `<eos>`, the row that a model reads."""
        body = self.encode(sequence)
        return np.concatenate([[self.ids[self.cls]], body, [self.ids[self.eos]]]).astype(np.uint8)

    def letter_id(self, letter: str) -> int:
        """Id of one letter, U and T being the same letter; KeyError if the vocabulary lacks it."""
        i = int(self.lookup[ord(letter)])
        if i == self.ids[self.unk]:
            raise KeyError(f"the alphabet {self.name} has no letter {letter!r}")
        return i


# lbcb-sci/RiNALMo, rinalmo/data/alphabet.py: 22 tokens, U spelled T (specs: rinalmo 2.1).
RINALMO = Alphabet("rinalmo", ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ACGTIRYKMSWBDHVN-"))

ALPHABETS = {a.name: a for a in (RINALMO,)}
