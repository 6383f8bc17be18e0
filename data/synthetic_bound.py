"""The best masked-LM loss on a `SyntheticCorpus`: an oracle's who knows the generator, the family and the alignment.

Objective: each position is selected independently with probability `select`; of the selected ones a share `mask` is
masked, a share `random` becomes one of the other three letters, the rest stays. The loss is the mean cross-entropy
(nats) of the true letters at the selected positions only.

The oracle predicts a selected position from the law of its consensus column and from what the row shows there and at
the base-paired partner: nothing else in the row depends on that letter. It does not know whether the partner was
selected, as no model does. Its prediction is the exact conditional distribution of the true letter given the observed
row, the family, the alignment, and that the position is selected. So (Gibbs' inequality) no function of the observed
row, trained on whatever members and of whatever size, has a lower *expected* loss over fresh members and masks. On a
finite validation set both losses fluctuate, and a model may come out below by chance; one trained on the validation
members may by memory.

A model must recognise the family and align the row by itself, so the bound need not be reachable; with few indels both
are easy. Selecting an exact number of positions per row makes them dependent; the bound is then an approximation.
Nothing here reads a model: callers turn their token rows into letters first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.randomness import below, bits, key, uniform
from data.synthetic import SyntheticCorpus, SyntheticSequence
from data.synthetic_family import LETTERS, PAIR_CLOSE, PAIR_OPEN, pair_table

MASKED = ord("?")  # in an observed row: nothing is known of this letter (masked, or cut off by a crop)


@dataclass(frozen=True)
class MaskRates:
    """Share of positions selected; of those, shares masked and replaced by a random other letter; the rest is kept.

    Raises DataError unless 0 < select <= 1 and mask, random and mask + random are in [0, 1].
    """

    select: float = 0.15
    mask: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.select <= 1 and self.mask >= 0 and self.random >= 0 and self.mask + self.random <= 1):
            raise DataError(
                f"Mask rates must be probabilities, mask + random at most 1 and select above 0; got {self}."
            )

    @property
    def keep(self) -> float:
        """The share of selected positions that stay as they are (0 up to rounding, never below)."""
        return max(0.0, 1.0 - self.mask - self.random)


@dataclass(frozen=True)
class Bound:
    """A Monte-Carlo estimate of the lowest expected loss."""

    nats: float  # per selected position
    standard_error: float  # of nats
    positions: int  # selected positions it comes from

    @property
    def perplexity(self) -> float:
        """exp(nats): 1 when every letter is certain, 4 when none is known."""
        return exp(self.nats)


def corrupt(
    letters: npt.NDArray[np.uint8], mask_key: int, rates: MaskRates = MaskRates()
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """What the objective shows of a sequence [L] of A, C, G, U: observed letters [L] with MASKED, selected [L]."""
    position = np.arange(len(letters))
    selected = uniform(key(mask_key, "select"), position) < rates.select
    action = uniform(key(mask_key, "action"), position)
    other = (_codes(letters) + 1 + below(bits(key(mask_key, "letter"), position), 3)) % 4
    observed = np.where(action < rates.mask + rates.random, LETTERS[other], letters)
    observed = np.where(action < rates.mask, np.uint8(MASKED), observed)
    return np.where(selected, observed, letters), selected


def oracle_posterior(
    corpus: SyntheticCorpus,
    sequence: SyntheticSequence,
    observed: npt.NDArray[np.uint8],
    selected: npt.NDArray[np.bool_],
    rates: MaskRates = MaskRates(),
) -> npt.NDArray[np.float64]:
    """[S, 4]: for each of the S selected positions the probability of A, C, G, U, the most that the row can tell.

    Of ``sequence`` it reads the family, the structure and the columns, never the letters. ``observed`` [L] holds A, C,
    G, U and MASKED; ``selected`` [L] is read as the list of positions to predict, not as evidence on other positions.
    Raises DataError for arrays of another length, other letters, or a row that these rates cannot have produced.
    """
    length = len(sequence.letters)
    if observed.shape != (length,) or selected.shape != (length,):
        raise DataError(
            f"{sequence.accession} has {length} nucleotides, but the observed row has shape {observed.shape} "
            f"and the selection {selected.shape}: pass the letters without special tokens."
        )
    family = corpus.family(sequence.family)
    seen = _codes(observed, masked=True)
    positions = np.flatnonzero(selected)
    column = sequence.columns[positions]
    partner = pair_table(sequence.structure)[positions]

    prior = np.empty((len(positions), 4))
    prior[column < 0] = family.insertion_law
    in_loop = (column >= 0) & (partner < 0)
    prior[in_loop] = family.loop_law[np.searchsorted(family.loops, column[in_loop])]

    # joint[s, a, b]: the probability that stem s has letter a at its 5' end and b at its 3' end in a member.
    joint = np.zeros((len(family.stems), 4, 4))
    joint[:, PAIR_OPEN, PAIR_CLOSE] = family.stem_law
    from_partner = _likelihood(rates, selected=False)
    for end, law in ((0, joint), (1, joint.transpose(0, 2, 1))):
        stem_of = np.full(len(family.structure), -1)
        stem_of[family.stems[:, end]] = np.arange(len(family.stems))
        here = np.flatnonzero((column >= 0) & (stem_of[column] >= 0))
        evidence = from_partner[seen[partner[here]]]
        prior[here] = np.einsum("nab,nb->na", law[stem_of[column[here]]], evidence)

    weight = prior * _likelihood(rates, selected=True)[seen[positions]]
    total = weight.sum(axis=1, keepdims=True)
    if np.any(total <= 0):
        at = positions[np.argmin(total)]
        raise DataError(
            f"The row observed for {sequence.accession} is impossible under {rates}, at nucleotide {at + 1}."
        )
    posterior: npt.NDArray[np.float64] = weight / total
    return posterior


def oracle_loss(
    corpus: SyntheticCorpus,
    sequences: Iterable[SyntheticSequence | str],
    observed: Iterable[npt.NDArray[np.uint8]],
    selected: Iterable[npt.NDArray[np.bool_]],
    rates: MaskRates = MaskRates(),
) -> tuple[float, int]:
    """The oracle's loss on the very rows that a model was scored on: (sum of nats, number of selected positions).

    ``sequences`` are members or their accessions; ``observed`` and ``selected`` hold one array [L] for each, as in
    `oracle_posterior`. A cropped row is passed at full length, MASKED and unselected outside of the crop.
    Raises DataError as `oracle_posterior` does, for an accession of another corpus, and for unequal numbers of rows.
    """
    members, seen_rows, chosen_rows = list(sequences), list(observed), list(selected)
    sizes = len(members), len(seen_rows), len(chosen_rows)
    if len(set(sizes)) != 1:
        raise DataError(f"The oracle needs as many sequences as observed and selected rows; got {sizes}.")
    nats, count = 0.0, 0
    for member, seen, chosen in zip(members, seen_rows, chosen_rows, strict=True):
        sequence = corpus.sequence_of(member) if isinstance(member, str) else member
        posterior = oracle_posterior(corpus, sequence, seen, chosen, rates)
        truth = posterior[np.arange(len(posterior)), _codes(sequence.letters)[chosen]]
        if np.any(truth <= 0):
            raise DataError(f"The row observed for {sequence.accession} does not come from its letters under {rates}.")
        nats -= float(np.log(truth).sum())
        count += len(truth)
    return nats, count


def expected_bound(corpus: SyntheticCorpus, count: int, mask_key: int, rates: MaskRates = MaskRates()) -> Bound:
    """The lowest loss that can be expected on this corpus, from ``count`` members (see `stream`) with keyed masks.

    It averages the entropy of the oracle's posterior, which has the expectation of its loss and less noise. The
    standard error is that of a ratio, over sequences as independent draws.
    Raises DataError when fewer than two sequences, or no position at all, are selected.
    """
    if count < 2:
        raise DataError(f"The bound needs at least two sequences for its standard error; got {count}.")
    sums = np.zeros((count, 2))
    for n, sequence in enumerate(corpus.stream(count)):
        observed, selected = corrupt(sequence.letters, key(mask_key, n), rates)
        posterior = oracle_posterior(corpus, sequence, observed, selected, rates)
        logs = np.log(posterior, out=np.zeros_like(posterior), where=posterior > 0)
        sums[n] = -(posterior * logs).sum(), len(posterior)
    nats, positions = sums.sum(axis=0)
    if positions == 0:
        raise DataError(f"None of the positions of {count} sequences was selected; take more sequences.")
    residual = sums[:, 0] - nats / positions * sums[:, 1]
    error = sqrt(count / (count - 1) * float((residual**2).sum())) / positions
    return Bound(float(nats / positions), float(error), int(positions))


def _likelihood(rates: MaskRates, selected: bool) -> npt.NDArray[np.float64]:
    """[5, 4]: how likely A, C, G, U or MASKED is seen, given the true letter, up to a factor per row.

    MASKED says nothing of the letter, so its row is 1. Where it is not known whether a position is selected, a letter
    is the true one if unselected or kept, another one if replaced.
    """
    same, other = rates.keep, rates.random / 3
    if not selected:
        same, other = 1 - rates.select + rates.select * same, rates.select * other
    return np.vstack([np.full((4, 4), other) + (same - other) * np.eye(4), np.ones(4)])


def _codes(letters: npt.NDArray[np.uint8], masked: bool = False) -> npt.NDArray[np.int64]:
    """A, C, G, U -> 0-3, and MASKED -> 4 where it is allowed. Raises DataError for any other letter."""
    table = np.full(256, -1)
    table[LETTERS] = np.arange(4)
    if masked:
        table[MASKED] = 4
    codes = table[letters]
    if np.any(codes < 0):
        found = chr(letters[np.argmin(codes)])
        raise DataError(f"A synthetic row holds A, C, G, U{' and ?' if masked else ''} only; found {found!r}.")
    return codes
