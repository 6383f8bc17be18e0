"""The bound of the synthetic corpus: exact against brute force, calibrated, not beaten, and right at its limits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from data.errors import DataError
from data.randomness import key
from data.synthetic import SyntheticCorpus
from data.synthetic_bound import (
    MASKED,
    MaskRates,
    corrupt,
    expected_bound,
    oracle_loss,
    oracle_posterior,
)
from data.synthetic_family import LETTERS, PAIRS, PRESETS, SyntheticConfig, pair_table

DEMO = SyntheticCorpus(7, "demo")
# Far more changes and indels than a preset, so that few sequences show them all.
WILD = SyntheticCorpus(
    3, SyntheticConfig(3, 30, 60, stem_substitution=0.4, loop_substitution=0.5, insertion=0.2, deletion=0.3)
)
RATES = MaskRates()
RIGID = replace(PRESETS["demo"], stem_substitution=0, loop_substitution=0, insertion=0, deletion=0)


def masked_rows(corpus: SyntheticCorpus, count: int, start: int = 0, rates: MaskRates = RATES):
    """(sequence, observed, selected) of ``count`` members."""
    return [(s, *corrupt(s.letters, key("test", start + n), rates)) for n, s in enumerate(corpus.stream(count, start))]


def brute_force(corpus: SyntheticCorpus, s, observed, position: int, rates: MaskRates) -> np.ndarray:
    """P(letter at a selected position | row) by summing over every sequence that the family could have produced here.

    Written from the description of the generator, not from its tables, and with no use of independence.
    """
    config, family = corpus.config, corpus.family(s.family)
    partner = pair_table(s.structure)

    def changed(options, frequencies, consensus, rate):
        rest = sum(f for o, f in zip(options, frequencies, strict=True) if o != consensus)
        for o, f in zip(options, frequencies, strict=True):
            yield o, (1 - rate if o == consensus else rate * f / rest)

    units, places = [], []
    for i, column in enumerate(s.columns):
        if column < 0:
            units.append(list(zip("ACGU", config.loop_frequencies, strict=True)))
            places.append((i,))
        elif partner[i] < 0:
            consensus = chr(family.consensus[column])
            units.append(list(changed("ACGU", config.loop_frequencies, consensus, config.loop_substitution)))
            places.append((i,))
        elif partner[i] > i:
            consensus = chr(family.consensus[column]) + chr(family.consensus[s.columns[partner[i]]])
            units.append(list(changed(PAIRS, config.pair_frequencies, consensus, config.stem_substitution)))
            places.append((i, partner[i]))

    def seen(i: int, true: str) -> float:
        shown = chr(observed[i])
        actions = [(rates.mask, lambda o: o == "?"), (rates.keep, lambda o: o == true)]
        actions += [(rates.random / 3, lambda o, r=r: o == r) for r in "ACGU" if r != true]
        if_selected = sum(p for p, gives in actions if gives(shown))
        return if_selected if i == position else rates.select * if_selected + (1 - rates.select) * (shown == true)

    posterior = dict.fromkeys("ACGU", 0.0)
    # Weights of each unit's options with what is seen at its places; the product runs over whole sequences.
    options = [
        [(o, p * np.prod([seen(i, o[k]) for k, i in enumerate(where)])) for o, p in unit]
        for unit, where in zip(units, places, strict=True)
    ]
    unit, k = next((u, where.index(position)) for u, where in enumerate(places) if position in where)
    for row in itertools.product(*options):
        weight = 1.0
        for _, w in row:
            weight *= w
        posterior[row[unit][0][k]] += weight
    return np.array(list(posterior.values())) / sum(posterior.values())


class TestBound:
    TINY = SyntheticConfig(1, 11, 11, stem_substitution=0.3, loop_substitution=0.4, insertion=0.0, deletion=0.0)

    @pytest.mark.parametrize("indels", [0.0, 0.15])
    def test_posterior_equals_the_sum_over_all_sequences(self, indels: float) -> None:
        corpus = SyntheticCorpus(5, replace(self.TINY, insertion=indels, deletion=indels))
        rates = MaskRates(select=0.4, mask=0.4, random=0.35)
        checked = set()  # one position of each kind: where it lies, and whether its letter is masked
        for s, observed, selected in masked_rows(corpus, 200, rates=rates):
            inserted = s.columns < 0
            if len(s.letters) > 11 or (indels and not inserted.any()):
                continue
            for p, at in zip(
                oracle_posterior(corpus, s, observed, selected, rates), np.flatnonzero(selected), strict=True
            ):
                kind = ("inserted" if inserted[at] else s.structure[at], observed[at] == MASKED)
                if kind not in checked:
                    checked.add(kind)
                    assert np.allclose(p, brute_force(corpus, s, observed, at, rates), atol=1e-12)
        assert len(checked) == (8 if indels else 6)

    def test_every_case_of_a_position(self) -> None:
        """One base pair in isolation, against Bayes' rule spelled out for each thing that its two ends can show."""
        corpus = SyntheticCorpus(5, self.TINY)
        family, s, rates = corpus.family(0), corpus.sequence(0, 0), MaskRates()
        five, three = family.stems[0]
        selected = np.arange(11) == five
        for own, other in itertools.product("ACGU?", repeat=2):
            observed = s.letters.copy()
            observed[five], observed[three] = ord(own), ord(other)
            weights = dict.fromkeys("ACGU", 0.0)
            for pair, p in zip(PAIRS, family.stem_law[0], strict=True):
                here = 0.8 if own == "?" else 0.1 if own == pair[0] else 0.1 / 3
                there = 0.15 * 0.8 if other == "?" else 0.85 + 0.15 * 0.1 if other == pair[1] else 0.15 * 0.1 / 3
                weights[pair[0]] += p * here * there
            expected = np.array(list(weights.values())) / sum(weights.values())
            assert np.allclose(oracle_posterior(corpus, s, observed, selected, rates)[0], expected, atol=1e-12)

    def test_expected_bound_equals_the_exact_expectation(self) -> None:
        """Without indels the bound is a sum over columns and over all that can be seen there."""
        config = replace(PRESETS["demo"], families=2, insertion=0, deletion=0, stem_substitution=0.3)
        corpus, rates = SyntheticCorpus(11, config), MaskRates()
        own = np.vstack([np.full((4, 4), 0.1 / 3) + (0.1 - 0.1 / 3) * np.eye(4), np.full(4, 0.8)])
        far = 0.15 * own + np.vstack([0.85 * np.eye(4), np.zeros(4)])

        def entropy(joint: np.ndarray) -> float:  # of the letter given what is seen; joint [seen, letter] sums to 1
            conditional = joint / joint.sum(axis=1, keepdims=True)
            return -np.sum(joint * np.log(conditional, out=np.zeros_like(joint), where=joint > 0))

        total, columns = 0.0, 0
        for family in corpus.families:
            for law in family.loop_law:
                total += entropy(own * law)
            for law in family.stem_law:
                joint = np.zeros((4, 4))
                for pair, p in zip(PAIRS, law, strict=True):
                    joint["ACGU".index(pair[0]), "ACGU".index(pair[1])] = p
                for ends in (joint, joint.T):
                    total += entropy(np.einsum("xa,yb,ab->xya", own, far, ends).reshape(25, 4))
            columns += len(family.structure)
        bound = expected_bound(corpus, 3000, 1, rates)
        assert bound.standard_error < 0.02 * bound.nats
        assert abs(bound.nats - total / columns) < 3 * bound.standard_error

    def test_the_oracle_is_calibrated_and_nothing_simple_beats_it(self) -> None:
        rows = masked_rows(WILD, 1500)
        posterior = np.concatenate([oracle_posterior(WILD, *row) for row in rows])
        truth = np.concatenate([np.searchsorted(LETTERS, s.letters[selected]) for s, _, selected in rows])
        seen = np.concatenate([observed[selected] for _, observed, selected in rows])
        every = np.arange(len(truth))
        loss = -np.log(posterior[every, truth])
        entropy = -(posterior * np.log(posterior)).sum(axis=1)
        assert abs(np.mean(loss - entropy)) < 3 * np.std(loss - entropy) / np.sqrt(len(loss))
        # What it calls p happens in a share p of the cases.
        for low in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9):
            cell = (posterior >= low) & (posterior < low + 0.1)
            hit, p = (truth[:, None] == np.arange(4))[cell], posterior[cell]
            assert abs(hit.mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum()) / len(p)

        def nats(probabilities: np.ndarray) -> float:
            probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
            return -np.log(probabilities[every, truth]).mean()

        best = loss.mean()
        assert nats(posterior**0.8) > best
        assert nats(posterior**1.25) > best
        assert nats(0.97 * posterior + 0.03 / 4) > best
        assert nats(np.tile(np.bincount(truth, minlength=4), (len(truth), 1))) > best + 0.1  # even with hindsight
        copied = np.where(seen[:, None] == LETTERS, 0.5, 0.5 / 3)  # trusts visible letters, knows nothing else
        assert nats(copied) > best + 0.1
        tables = [np.stack([(WILD.alignment(f, 800)[0] == x).mean(axis=0) for x in LETTERS]) for f in range(3)]
        columns = np.concatenate([s.columns[selected] for s, _, selected in rows])
        family = np.concatenate([np.full(np.count_nonzero(selected), s.family) for s, _, selected in rows])
        profile = np.array(
            [tables[f][:, c] if c >= 0 else np.full(4, 0.25) for f, c in zip(family, columns, strict=True)]
        )
        assert nats(profile + 1e-3) > best + 0.05  # knows family, alignment and conservation, but not the pairing

    def test_limits(self) -> None:
        assert expected_bound(SyntheticCorpus(1, RIGID), 200, 0).nats < 1e-12
        free = replace(RIGID, loop_substitution=0.75, loops=(0.25,) * 4, pairs=(0.25,) * 4 + (0.0,) * 2)
        free = replace(free, stem_substitution=0.75)
        all_masked = MaskRates(select=1.0, mask=1.0, random=0.0)
        assert expected_bound(SyntheticCorpus(1, free), 50, 0, all_masked).nats == pytest.approx(np.log(4), abs=1e-9)
        # All letters of the loops are uniform, a partner that is seen tells its pair, and a share of loci shows itself.
        assert expected_bound(SyntheticCorpus(1, free), 500, 0).nats < np.log(4)
        more = expected_bound(SyntheticCorpus(1, "standard"), 300, 0)
        assert more.nats > expected_bound(DEMO, 300, 0).nats + 5 * more.standard_error
        assert more.perplexity == pytest.approx(np.exp(more.nats))

    def test_loss_takes_accessions_and_adds_up(self) -> None:
        rows = masked_rows(DEMO, 40)
        sequences, observed, selected = zip(*rows, strict=True)
        total = oracle_loss(DEMO, sequences, observed, selected)
        assert oracle_loss(DEMO, [s.accession for s in sequences], observed, selected) == total
        halves = [oracle_loss(DEMO, sequences[h], observed[h], selected[h]) for h in (slice(0, 15), slice(15, 40))]
        assert sum(h[0] for h in halves) == pytest.approx(total[0])
        assert sum(h[1] for h in halves) == total[1] == sum(map(np.count_nonzero, selected))
        assert oracle_loss(DEMO, [], [], []) == (0.0, 0)

    def test_a_hidden_partner_tells_nothing(self) -> None:
        """A row cut by a crop is passed with MASKED outside: the bound then rises to that of the lone column."""
        family, s = DEMO.family(0), DEMO.sequence(0, 0)
        here = np.flatnonzero(pair_table(s.structure) >= 0)[0]
        selected = np.arange(len(s.letters)) == here
        observed = np.full(len(s.letters), MASKED, dtype=np.uint8)
        posterior = oracle_posterior(DEMO, s, observed, selected)[0]
        expected = [sum(p for pair, p in zip(PAIRS, family.stem_law[0], strict=True) if pair[0] == x) for x in "ACGU"]
        assert np.allclose(posterior, expected)

    def test_corruption_has_its_shares(self) -> None:
        letters = LETTERS[np.arange(40000) % 4]
        observed, selected = corrupt(letters, 5)
        assert abs(selected.mean() - 0.15) < 0.006
        assert np.array_equal(observed[~selected], letters[~selected])
        shown = observed[selected]
        assert abs(np.mean(shown == MASKED) - 0.8) < 0.02
        assert abs(np.mean(shown == letters[selected]) - 0.1) < 0.015
        replaced = (shown != MASKED) & (shown != letters[selected])
        assert abs(np.mean(replaced) - 0.1) < 0.015
        steps = (np.searchsorted(LETTERS, shown[replaced]) - np.searchsorted(LETTERS, letters[selected][replaced])) % 4
        assert np.all(np.bincount(steps, minlength=4)[1:] > 0.25 * replaced.sum())
        assert not np.array_equal(corrupt(letters, 6)[1], selected)

    def test_refuses(self) -> None:
        s, observed, selected = masked_rows(DEMO, 1)[0]
        with pytest.raises(DataError, match="special tokens"):
            oracle_loss(DEMO, [s], [observed[:-1]], [selected])
        with pytest.raises(DataError, match="found 'T'"):
            oracle_loss(DEMO, [s], [np.where(observed == ord("U"), np.uint8(ord("T")), observed)], [selected])
        with pytest.raises(DataError, match="as many sequences"):
            oracle_loss(DEMO, [s, s], [observed], [selected])
        never_random = MaskRates(random=0.0)
        rigid = SyntheticCorpus(7, RIGID)
        s = rigid.sequence(0, 0)
        wrong = np.where(s.letters == ord("A"), np.uint8(ord("C")), s.letters)
        with pytest.raises(DataError, match="impossible"):
            oracle_loss(rigid, [s], [wrong], [s.letters == ord("A")], never_random)
        lying = replace(s, letters=wrong)
        with pytest.raises(DataError, match="does not come from"):
            oracle_loss(rigid, [lying], [s.letters], [s.letters == ord("A")])
        with pytest.raises(DataError, match="two sequences"):
            expected_bound(DEMO, 1, 0)
        with pytest.raises(DataError, match="was selected"):
            expected_bound(DEMO, 2, 0, MaskRates(select=1e-12))
        for wrong_rates in ({"select": 0.0}, {"mask": 0.95}, {"random": -0.1}):
            with pytest.raises(DataError, match="Mask rates"):
                MaskRates(**wrong_rates)
