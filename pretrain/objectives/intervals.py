"""Masked language modelling by intervals: single nucleotides, spans, motifs, NPMI words or base pairs (RNAErnie).

Every sequence, or every global batch, draws a level; the level offers intervals; they are taken greedily while they fit
into a budget of 15 %; what is left may be topped up; selected tokens become `<mask>`, a random letter, or stay
(data/masking). Rows are `<cls>` nucleotides `[IND]` `[type]` `<eos>` (data/framed_rows.py), the type being dropped or
masked now and then. Original, its quirks and our defaults: specs rnaernie 2.5, 3 and 4.

A masked type is a target like any other, but always shown as `<mask>`. It counts for no nucleotide: its `target_width`
is 0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data import randomness
from data.alphabet import ALPHABETS, NUCLEOTIDES
from data.formats.motifs import MotifWords, read_motifs
from data.framed_rows import INDICATOR, FramedRowMaker, FramedRows
from data.loader import Moment
from data.masking.corruption import Corruption
from data.masking.engine import Engine, Packed
from data.masking.levels import LevelChoice
from data.masking.options import MIX, LevelWeights, WordOptions
from data.masking.pairs import partners
from data.masking.statistics import describe
from data.masking.words import WordScanner
from data.sentencepiece_tokenizer import FOLD
from data.tokenizer import made_of
from pretrain.objectives.intervals_config import IntervalsConfig, check, type_token, weights_in_use
from pretrain.objectives.masked import MaskedBatch, MaskedObjective, check_random_letters

log = logging.getLogger("rnafoundry")

DESCRIBED = 2000  # sequences of a corpus that `describe` looks at


@dataclass(frozen=True)
class Sample:
    letters: npt.NDArray[np.uint8]  # ASCII
    type_id: int = -1  # token of its RNA type; -1: it has none
    structure: bytes | None = None  # dot-bracket of the whole sequence, where the corpus has it


class Intervals(MaskedObjective):
    """The objective: rows and targets out of samples (`collate`), and the loss of a model on them (`loss`)."""

    def __init__(self, config: IntervalsConfig):
        check(config)
        self.config = config
        super().__init__(ALPHABETS[config.alphabet])
        check_random_letters(config.random_letters, self.alphabet)
        alphabet = ALPHABETS[config.alphabet]
        frame = 4 if config.type_token.append else 2
        self._rows = FramedRowMaker(alphabet, config.max_tokens, config.crop, frame)
        if config.eligible == "all":
            self._eligible = np.ones(len(alphabet), dtype=bool)
        else:
            self._eligible = made_of(alphabet, NUCLEOTIDES if config.eligible == "nucleotides" else None)
        self._corruption = Corruption(
            self._mask_id,
            np.flatnonzero(made_of(alphabet, config.random_letters)),
            len(alphabet),
            config.mask_share,
            config.random_share,
            config.random_differs,
        )
        used = {level for level in ("motif", "npmi") if any(getattr(w, level) > 0 for w in weights_in_use(config))}
        self._uses_pairs = any(weights.pair > 0 for weights in weights_in_use(config))
        options = {level: getattr(config, level) for level in sorted(used)}
        self.words = {level: _read_words(own) for level, own in options.items()}  # (database, mined)
        self.engine = Engine(
            LevelChoice(config.levels, config.schedule, config.stages, config.ramp, config.choose_per),
            config.masked_fraction,
            config.max_tokens,
            config.span,
            options,
            {level: WordScanner(words.words, mined.words) for level, (words, mined) in self.words.items()},
            config.topup,
        )

    @classmethod
    def without_files(cls, config: IntervalsConfig) -> Intervals:
        """Without motif files, which may be gone when a run is released: with the rows, tokens and description of
        ``config``, but only single bases are masked."""
        objective = cls(replace(config, levels=LevelWeights(base=1, span=0, motif=0), schedule=MIX, stages=[]))
        objective.config = config
        return objective

    def token_lengths(self, nucleotides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[n] tokens that sequences of these lengths are planned with: with a type, which some of them will lack."""
        return self._rows.planned_lengths(nucleotides)

    def plain(self, letters: list[npt.NDArray[np.uint8]]) -> list[Sample]:
        """Samples without types and structures."""
        return [Sample(one) for one in letters]

    def read(self, corpus: Any, ids: npt.NDArray[np.int64]) -> list[Sample]:
        """The samples that `collate` takes. Types and structures are read only where the configuration uses them."""
        letters = corpus.letters(ids)
        types = np.full(len(letters), -1)
        if self.config.type_token.append and len(letters):
            types = self.type_tokens(corpus.type_names)[corpus.types(ids)]
        structures: list[bytes | None] = [None] * len(letters)
        if self._uses_pairs and getattr(corpus, "has_structures", False):
            structures = corpus.structures(ids)
        return [Sample(*content) for content in zip(letters, types.tolist(), structures, strict=True)]

    def type_tokens(self, names: list[str]) -> npt.NDArray[np.int64]:
        """[types] the token of each type of a corpus, -1 for a type that has none or is not asked for."""
        allowed = {type_token(name) for name in self.config.type_token.types}
        tokens = [type_token(name) for name in names]
        ids = [self.alphabet.ids.get(token, -1) if not allowed or token in allowed else -1 for token in tokens]
        return np.array(ids, dtype=np.int64)

    def collate(self, samples: list[Sample], keys: npt.NDArray[np.uint64], moment: Moment | None = None) -> MaskedBatch:
        """A micro-batch from samples and one key each. Empty lists give one row without targets.

        The ``moment`` decides the weights of levels that change in time, and the level where it is chosen per batch;
        without one it is the end of the run.
        """
        moment = moment or Moment.last()
        types = np.array([sample.type_id for sample in samples], dtype=np.int64)
        if len(samples):
            dropped = self._draw("drop type", keys) < self.config.type_token.drop_prob
            types = np.where(dropped, -1, types)
        rows = self._rows.rows([sample.letters for sample in samples], keys, types)
        if not samples:
            keys = np.zeros(1, dtype=np.uint64)
        selected = self.engine.select(self._packed(samples, rows), keys, moment.fraction, moment.key)
        chosen = rows.letter_token[selected.place]
        sample = rows.sample[chosen]
        place = rows.positions[chosen] - 1  # from the first nucleotide of the row
        units = selected.unit if self.config.corrupt_unit == "span" else None
        shown = self._corruption.replace(rows.tokens[chosen], place, keys[sample], units)
        hidden = rows.type_token[
            (rows.type_token >= 0) & (self._draw("mask type", keys) < self.config.type_token.mask_prob)
        ]
        order = np.argsort(np.concatenate([chosen, hidden]), kind="stable")
        return self._batch(
            rows,
            np.concatenate([chosen, hidden])[order],
            np.concatenate([shown, np.full(len(hidden), self._mask_id)])[order],
        )

    @property
    def asks_types(self) -> bool:
        """Whether training asks for types, so that the model's answer at the type's place means something."""
        return self.config.type_token.append and self.config.type_token.mask_prob > 0

    @property
    def type_ids(self) -> npt.NDArray[np.int64]:
        """The tokens of types that are trained on, in the order of their ids; none where no types are appended."""
        tokens, indicator = self.alphabet.tokens, len(self.alphabet)
        if self.config.type_token.append:
            indicator = self.alphabet.ids[INDICATOR]
        allowed = {type_token(name) for name in self.config.type_token.types} or set(tokens)
        return np.array([i for i in range(indicator + 1, len(tokens)) if tokens[i] in allowed], dtype=np.int64)

    def ask_types(self, samples: list[Sample], keys: npt.NDArray[np.uint64]) -> MaskedBatch:
        """Rows `<cls>` nucleotides `[IND]` `<mask>` `<eos>`: the type is the only target of each. Letters stay.

        Samples of unknown type (-1) are asked all the same; what stands as their target means nothing. Empty lists
        give one row without targets, as in `collate`.
        """
        types = np.array([sample.type_id for sample in samples], dtype=np.int64)
        types = np.where(types < 0, self._mask_id, types)
        rows = self._rows.rows([sample.letters for sample in samples], keys, types)
        asked = rows.type_token[rows.type_token >= 0]
        return self._batch(rows, asked, np.full(len(asked), self._mask_id))

    def describe(self, corpus: Any, sequences: int = DESCRIBED) -> dict[str, Any]:
        """What the levels do to ``sequences`` of a corpus or mixture, spread over all of it.

        Warnings are logged as well.

        {sequences, nucleotides, composition, levels: {level: {hits_per_kilobase, enrichment, coverage,
        masked_fraction, without_targets, targets, composition}}, words: {level: {words, fingerprint, read,
        left out by reason}}, warnings}. The numbers always come from the same sequences and masks, so those of runs on
        one corpus compare.
        """
        n = min(sequences, corpus.count)
        ids = np.arange(n) * corpus.count // n  # spread, so that every corpus of a mixture is seen
        keys = randomness.keys(randomness.key("describe"), ids)
        samples = self.read(corpus, ids)
        rows = self._rows.rows([sample.letters for sample in samples], keys, np.full(len(ids), -1))
        report = describe(self.engine, self._packed(samples, rows), keys)
        report["words"] = {
            level: {
                "words": len(words.words) + len(mined.words),
                "fingerprint": _fingerprint(words, mined),
                "read": words.read + mined.read,
                **(words.left_out + mined.left_out),
            }
            for level, (words, mined) in self.words.items()
        }
        for warning in report["warnings"]:
            log.warning("%s", warning)
        return report

    @property
    def data_fingerprint(self) -> str:
        """Identifies the words of motif and NPMI levels; empty without any."""
        words = [f"{level} {_fingerprint(*words)}" for level, words in sorted(self.words.items())]
        return " ".join(words)

    def described(self) -> dict[str, object]:
        """For the model card: what it is trained to do, in words."""
        config = self.config
        shares = [{k: v for k, v in vars(weights).items() if v} for weights in weights_in_use(config)]
        levels = "; then ".join(", ".join(f"{k} {v:.3g}" for k, v in weights.items()) for weights in shares)
        types = config.type_token
        return {
            "Tokens": "single nucleotides" + ", and the RNA type after `[IND]`" * types.append,
            "Tokens per sequence in training, frame included": config.max_tokens,
            "Objective": f"masked intervals ({levels}; {config.schedule}): {config.masked_fraction:.0%} of every "
            f"sequence, of these {config.mask_share:.0%} `{self.alphabet.mask}`, {config.random_share:.0%} a random "
            "nucleotide, the rest unchanged",
            **({"RNA type left out, masked": f"{types.drop_prob:.0%}, {types.mask_prob:.0%}"} if types.append else {}),
        }

    def _packed(self, samples: list[Sample], rows: FramedRows) -> Packed:
        known = None
        if self._uses_pairs and any(sample.structure is not None for sample in samples):
            known = [
                None if sample.structure is None else partners(sample.structure, start, length)
                for sample, start, length in zip(samples, rows.starts.tolist(), rows.nucleotides.tolist(), strict=True)
            ]
        return Packed(FOLD[rows.letters], rows.nucleotides, self._eligible[rows.tokens[rows.letter_token]], known)

    @staticmethod
    def _draw(name: str, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        return randomness.uniform(randomness.keys(randomness.key(name), keys), np.zeros(len(keys)))


def _fingerprint(words: MotifWords, mined: MotifWords) -> str:
    return xxhash.xxh3_64_hexdigest("\n".join([*words.words, "", *mined.words]).encode())


def _read_words(options: WordOptions) -> tuple[MotifWords, MotifWords]:
    """Of the database and mined. Raises DataError as `read_motifs`."""
    lengths = (options.min_len, options.max_len)
    database = read_motifs(options.files, *lengths, options.organism, options.threshold, options.expansions)
    mined = read_motifs(options.mined, *lengths, None, options.threshold, options.expansions)
    return database, mined
