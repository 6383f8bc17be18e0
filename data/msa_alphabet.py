"""RNA-MSM's vocabulary: MultiMolecule's 28 ids, of which a cleaned alignment uses A, C, G, U, X and the gap.

A cleaned alignment has X for every ambiguity code (specs: rnamsm 3.1), so X is what any other letter is read as. The
original's 12 tokens matter only where its random replacements are reproduced.
"""

from __future__ import annotations

from data.alphabet import NUCLEOTIDES, Alphabet

GAP, UNKNOWN = "-", "X"
LETTERS = NUCLEOTIDES + UNKNOWN + GAP  # of a cleaned alignment; also what is ever predicted

RNAMSM = Alphabet(
    "rnamsm",
    ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>", *"ACGUNRYSWKMBDHVIX|.*-?"),
    unk=UNKNOWN,
    reads=NUCLEOTIDES + GAP,
)
ORIGINAL_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"AGCUXN-", "<mask>")  # specs: rnamsm 2
