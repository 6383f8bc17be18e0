"""Which columns pair, read off row-attention maps: a logistic regression on a few known structures, tested on others.

The probe of the original (specs: rnamsm 1.1): every map is symmetrised and corrected for the average product (APC), and
one weight per map says how much it counts. It shows what a model has learned of structure without being told. The
original's regression has an L1 penalty; this one has an L2 penalty on standardised maps, which has one solution that
Newton's method finds in a few steps without any library, the same on every machine.

Arrays only: maps [C, L, L] of C layers and heads over L columns without `<cls>`, and partners [L] (the column that each
one pairs with, or -1, as data/dot_bracket.py reads them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Example = tuple[npt.NDArray[np.floating], I64]  # maps, partners

SEPARATION = 6  # nearest columns that count as a pair, as in the original; hairpins of 3 fill shorter distances
FRACTIONS = {"precision_l": 1, "precision_l2": 2, "precision_l5": 5}  # of how many most probable pairs: L over this


def corrected(maps: npt.NDArray[np.floating]) -> F64:
    """[C, L, L] symmetrised by A + Aᵀ, minus the average product: what rows and columns alone would give."""
    both = maps.astype(np.float64)
    both = both + both.transpose(0, 2, 1)
    sums = both.sum(axis=2)
    total = np.maximum(sums.sum(axis=1), np.finfo(np.float64).tiny)
    expected: F64 = sums[:, :, None] * sums[:, None, :] / total[:, None, None]
    return both - expected


def pairs_of(length: int, separation: int = SEPARATION) -> tuple[I64, I64]:
    """All columns (i, j) with j - i >= separation, in the order of i, then j."""
    i, j = np.triu_indices(length, separation)
    return i.astype(np.int64), j.astype(np.int64)


@dataclass(frozen=True)
class Probe:
    """The logit of a pair is ``maps @ weights + bias`` over its corrected maps."""

    weights: F64  # [C]
    bias: float

    def probabilities(self, maps: npt.NDArray[np.floating]) -> F64:
        """[L, L], symmetric; the diagonal is as good as any other place."""
        logits = np.tensordot(self.weights, corrected(maps), axes=1) + self.bias
        return _sigmoid(logits)


def fit(examples: Sequence[Example], penalty: float = 1.0, separation: int = SEPARATION) -> Probe:
    """The probe with the highest penalised likelihood of the known pairs.

    ``penalty``: half the squared norm of the standardised weights counts so much against the summed log-likelihood.
    Raises ValueError if the examples hold no pair that far apart.
    """
    features, known = [], []
    for maps, partners in examples:
        i, j = pairs_of(len(partners), separation)
        features.append(corrected(maps)[:, i, j].T)
        known.append(partners[i] == j)
    x, y = np.concatenate(features), np.concatenate(known).astype(np.float64)
    if not y.any():
        raise ValueError(
            f"the examples hold no pair of columns at least {separation} apart, so there is nothing to fit"
        )
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0  # a map that is the same everywhere: its weight is 0
    solution = _newton((x - mean) / spread, y, penalty)
    weights = solution[1:] / spread
    return Probe(weights, float(solution[0] - weights @ mean))


def _newton(x: F64, y: F64, penalty: float, most: int = 100) -> F64:
    """[1 + C] intercept and weights; the intercept is not penalised."""
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    ridge = np.full(x.shape[1], penalty)
    ridge[0] = 0.0
    solution = np.zeros(x.shape[1])
    solution[0] = np.log(y.mean() / max(1 - y.mean(), 1e-12))

    def cost(at: F64) -> float:
        logits = x @ at
        return float((np.logaddexp(0, logits) - y * logits).sum() + 0.5 * (ridge * at * at).sum())

    now = cost(solution)
    for _ in range(most):
        p = _sigmoid(x @ solution)
        gradient = x.T @ (p - y) + ridge * solution
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge + 1e-10)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while cost(solution - size * step) > now and size > 1e-8:  # too far: the cost is convex, so less will do
            size /= 2
        solution = solution - size * step
        before, now = now, cost(solution)
        if before - now <= 1e-10 * max(1.0, abs(now)):
            break
    return solution


def precision(scores: npt.NDArray[np.floating], partners: I64, separation: int = SEPARATION) -> dict[str, float]:
    """Share of true pairs among the L, L/2 and L/5 best scored ones that are far enough apart.

    Equal scores are taken in the order of their columns. As every column pairs once, of the L best at most half can
    be true. Fewer pairs than asked for count as they are.
    """
    i, j = pairs_of(len(partners), separation)
    best = np.argsort(-scores[i, j], kind="stable")
    right = (partners[i] == j)[best]
    figures = {}
    for name, part in FRACTIONS.items():
        n = min(max(len(partners) // part, 1), len(right))
        figures[name] = float(right[:n].mean()) if n else 0.0
    return figures


def probe(known: Sequence[Example], held_out: Sequence[Example], penalty: float = 1.0) -> dict[str, float]:
    """Precision on the structures ``held_out`` (mean over them) of a probe that is fitted on the ``known`` ones.

    Raises ValueError if nothing is held out, or as `fit` does.
    """
    if not held_out:
        raise ValueError("there is no held-out structure to test the probe on")
    fitted = fit(known, penalty)
    each = [precision(fitted.probabilities(maps), partners) for maps, partners in held_out]
    return {name: float(np.mean([figures[name] for figures in each])) for name in FRACTIONS}


def _sigmoid(logits: F64) -> F64:
    result: F64 = np.exp(-np.logaddexp(0, -logits))
    return result
