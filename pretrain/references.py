"""What a validation loss is worth: trivial models on the same targets, and the bound of a synthetic corpus.

The trivial models score the targets that are A, C, G or U; other letters are too rare to be worth modelling. They are
per nucleotide: where tokens are pieces, compare them with the validation's loss per nucleotide.
Letter frequencies and an order-2 Markov chain are fitted on the training split. Where the corpus was made by
data/synthetic.py, the bound is the loss of a reader who knows the generator, each sequence's family and its alignment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from data.alphabet import Alphabet
from data.baselines import MarkovModel
from data.errors import DataError
from data.index import Corpus
from data.synthetic import SyntheticCorpus, SyntheticSequence, parse_accession
from data.synthetic_bound import MASKED, MaskRates, oracle_loss
from data.synthetic_family import PRESETS
from pretrain.objectives.masked import perplexity
from pretrain.objectives.mlm import MLM
from pretrain.validation import Validation

FIT_NUCLEOTIDES = 50_000_000  # enough for 64 probabilities; a corpus is shuffled, so its beginning is a sample


def reference_losses(training: Corpus, validation: Validation) -> dict[str, Any]:
    """{"letter_frequencies": {loss, perplexity}, "markov_2": ..., "generator_bound": ... where it is known}."""
    letters, positions = [], []
    for sequence, chosen, _ in _scored(validation):
        letters.append(sequence)
        positions.append(chosen)
    report = {}
    for name, order in (("letter_frequencies", 0), ("markov_2", 2)):
        nats, count = MarkovModel.fit(_sample(training), order).nll(letters, positions)
        report[name] = {"loss": nats / max(count, 1), "perplexity": perplexity(nats, count)}
    bound = _generator_bound(validation)
    if bound is not None:
        report["generator_bound"] = bound
    return report


def _sample(corpus: Corpus) -> Iterator[npt.NDArray[np.uint8]]:
    taken = 0
    for start in range(0, corpus.count, 4096):
        for sequence in corpus.letters(np.arange(start, min(start + 4096, corpus.count))):
            yield sequence
            taken += len(sequence)
        if taken >= FIT_NUCLEOTIDES:
            return


def _scored(
    validation: Validation,
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[int, npt.NDArray[np.int64]]]]:
    """Per validation sequence: true letters, selected nucleotides, and (place in ids, tokens seen at the selected)."""
    for chosen, batch in validation.micro_batches(0, 1):
        seen = batch.tokens.numpy()[batch.target_index.numpy()]
        ends = np.searchsorted(batch.target_sample, np.arange(len(chosen) + 1))
        for i, (place, letters) in enumerate(
            zip(chosen.tolist(), validation.corpus.letters(validation.ids[chosen]), strict=True)
        ):
            mine = slice(ends[i], ends[i + 1])
            widths = batch.target_width[mine]
            within = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
            yield letters, np.repeat(batch.target_nucleotide[mine], widths) + within, (place, seen[mine])


def _generator_bound(validation: Validation) -> dict[str, float] | None:
    """None unless every validation sequence is synthetic and whole, and the masking is the one the bound is for."""
    objective = validation.objective
    if not isinstance(objective, MLM):  # the bound is for tokens that are selected one by one
        return None
    config = objective.config
    if not isinstance(objective.alphabet, Alphabet):
        return None
    if not config.random_differs or set(config.random_letters) not in (set("ACGU"), set("ACGT")):
        return None
    if int(validation.corpus.lengths[validation.ids].max()) + 2 > config.max_tokens:
        return None
    accessions = validation.corpus.accessions(validation.ids)
    try:
        seed, label, _, _ = parse_accession(accessions[0])
        corpus = SyntheticCorpus(seed, PRESETS[label])
        members = [corpus.sequence_of(accession) for accession in accessions]
    except (DataError, KeyError):  # not a synthetic corpus, or not wholly: there is no known bound
        return None
    nats, count = oracle_loss(
        corpus,
        *_observed(validation, members),
        MaskRates(config.masked_fraction, config.mask_share, config.random_share),
    )
    return {"loss": nats / max(count, 1), "perplexity": perplexity(nats, count)} if count else None


def _observed(
    validation: Validation, members: list[SyntheticSequence]
) -> tuple[list[SyntheticSequence], list[npt.NDArray[np.uint8]], list[npt.NDArray[np.bool_]]]:
    """The rows that the model sees, as letters: members, observed letters and selected positions in the same order."""
    alphabet = validation.objective.alphabet
    letter_of = np.array([ord(t.replace("T", "U")) if len(t) == 1 else MASKED for t in alphabet.tokens], dtype=np.uint8)
    sequences, rows, selections = [], [], []
    for letters, positions, (place, seen) in _scored(validation):
        observed, selected = letters.copy(), np.zeros(len(letters), dtype=bool)
        observed[positions] = letter_of[seen]
        selected[positions] = True
        sequences.append(members[place])
        rows.append(observed)
        selections.append(selected)
    return sequences, rows, selections
