"""Alignments of random letters, for tests of what is made of them."""

import numpy as np

from data import randomness
from data.msa_alphabet import LETTERS


class Drawn:
    """An alignment of ``depth`` rows and ``columns``, in memory; notes which rows were read."""

    def __init__(self, depth, columns, seed=0, gaps=0.2):
        rng = np.random.default_rng(seed)
        p = [(1 - gaps - 0.01) / 4] * 4 + [0.01, gaps]
        self.letters = rng.choice(np.frombuffer(LETTERS.encode(), np.uint8), (depth, columns), p=p)
        self.depth, self.columns, self.read = depth, columns, []

    def rows(self, indices):
        self.read.append(np.array(indices))
        return self.letters[indices]


def keys(n, seed=1):
    return randomness.keys(randomness.key(seed, "test"), np.arange(n))
