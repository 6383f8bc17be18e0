"""Letters on disk are upper-case ASCII with U for uracil; a model's ids come from them by one 256-entry lookup.

`Alphabet` is the vocabulary of a single-nucleotide model: special tokens and letters with their ids. Both T and U map
to the same id whichever of the two the vocabulary spells, in either case; any letter it lacks maps to its `unk`.
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
    """A single-nucleotide vocabulary: ``tokens[id]`` is the token; letters are one character, specials are longer.

    A vocabulary that spells T and U apart reads both as T: the models that have such a one were trained on DNA.
    """

    name: str
    tokens: tuple[str, ...]
    cls: str = "<cls>"
    eos: str = "<eos>"
    pad: str = "<pad>"
    unk: str = "<unk>"
    mask: str = "<mask>"
    reads: str | None = None  # the only letters that sequences give, all others being `unk`; None: every letter it has

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
        for token, i in sorted(self.ids.items(), reverse=True):  # so T comes after U
            if len(token) == 1 and (self.reads is None or token in self.reads):
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

# GenBio's vocab.txt (specs: aido_rna 2.1). Trained on DNA, so U is read as T and the row of U is never used; letters
# that it lacks are N, one token each (2.2).
AIDO_RNA = Alphabet(
    "aido_rna",
    (
        *("[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *"AGCTUN", "[BOS]", "[EOS]"),
        *("[UNUSED1]", "[UNUSED2]", "[UNUSED3]"),
    ),
    cls="[CLS]",
    eos="[SEP]",
    pad="[PAD]",
    unk="N",
    mask="[MASK]",
)

# MultiMolecule's 28 tokens; then [IND] and the 28 RNA types in the order of the original (specs: rnaernie 2.3, 2.4).
_MULTIMOLECULE = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>", *"ACGUNRYSWKMBDHVIX|.*-?")
RNAERNIE_TYPES = (
    *("RNaseMRPRNA", "RNasePRNA", "SRPRNA", "YRNA", "antisenseRNA", "autocatalyticallysplicedintron", "guideRNA"),
    *("hammerheadribozyme", "lncRNA", "miRNA", "miscRNA", "ncRNA", "other", "piRNA", "premiRNA", "precursorRNA"),
    *("rRNA", "ribozyme", "sRNA", "scRNA", "scaRNA", "siRNA", "snRNA", "snoRNA", "tRNA", "telomeraseRNA", "tmRNA"),
    "vaultRNA",
)
_WITH_TYPES = (*_MULTIMOLECULE, "[IND]", *(f"[{name}]" for name in RNAERNIE_TYPES))
RNAERNIE = Alphabet("rnaernie", _WITH_TYPES, reads=NUCLEOTIDES)  # ambiguity codes are <unk>, as the original reads them
RNAERNIE_IUPAC = Alphabet("rnaernie_iupac", _WITH_TYPES)  # ambiguity codes keep the ids they have
RNAERNIE_28 = Alphabet("rnaernie_28", _MULTIMOLECULE, reads=NUCLEOTIDES)  # without type tokens

# RibonanzaNet's letters, without special tokens; padding is N as well (specs: ribonanzanet 1.2).
RIBONANZANET = Alphabet("ribonanzanet", tuple("ACGUN"), unk="N")

ALPHABETS = {a.name: a for a in (RINALMO, AIDO_RNA, RNAERNIE, RNAERNIE_IUPAC, RNAERNIE_28)}
