"""The keys of the objective `intervals`, its presets, and the checks of both (specs: rnaernie 4.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from data import structured
from data.alphabet import ALPHABETS, NUCLEOTIDES
from data.framed_rows import CROPS, INDICATOR
from data.masking.options import (
    BASE,
    CHOOSE_PER,
    LEVELS,
    MIX,
    RAMP,
    SAMPLE,
    SCHEDULES,
    SPAN_DISTRIBUTIONS,
    STAGED,
    TOP_UPS,
    WORD_ORDERS,
    LevelWeights,
    Ramp,
    SpanOptions,
    Stage,
    TypeTokenOptions,
    WordOptions,
)
from pretrain.errors import PretrainError
from pretrain.objectives.masked import check_shares, refuse

ELIGIBLE = ("all", "letters", "nucleotides")
UNITS = ("token", "span")


@dataclass
class IntervalsConfig:
    """Defaults are ours; `preset` sets several keys at once, and keys beside it override it."""

    name: str = "intervals"
    preset: str | None = None  # rnaernie-code, rnaernie-card or rnaernie2: docs/rnaernie.md
    alphabet: str = "rnaernie"  # see data/alphabet.py; with type tokens one that has them
    max_tokens: int = 512  # per sequence; 508 nucleotides with type tokens, 510 without
    crop: str = "first"  # of longer sequences: first, the first nucleotides; random, a window
    masked_fraction: float = 0.15  # of a sequence; the budget is rounded, and at most this fraction of max_tokens
    mask_share: float = 0.8  # of selected tokens: becomes `<mask>`
    random_share: float = 0.1  # of selected tokens: becomes a random letter; the rest stays as it is
    corrupt_unit: str = "token"  # what is masked, random or kept as one: token, or span (the interval)
    random_letters: str = NUCLEOTIDES  # the pool of random letters
    random_differs: bool = False  # a random letter is never the original one
    eligible: str = "all"  # all: also letters that are `<unk>`, as the original; letters: not those; nucleotides: ACGU
    levels: LevelWeights = field(default_factory=LevelWeights)
    choose_per: str = SAMPLE  # the level is chosen per sample, or per (global) batch
    schedule: str = MIX  # mix: `levels`; staged: `stages`; ramp: `levels`, all but base together rising as in `ramp`
    stages: list[Stage] = field(default_factory=list)  # until (fraction of the steps) and the weights until then
    ramp: Ramp = field(default_factory=Ramp)
    span: SpanOptions = field(default_factory=SpanOptions)
    motif: WordOptions = field(default_factory=WordOptions)
    npmi: WordOptions = field(default_factory=lambda: WordOptions(min_len=4))
    topup: str = BASE  # what the level leaves of the budget goes to single nucleotides (base), spans, or is left
    type_token: TypeTokenOptions = field(default_factory=TypeTokenOptions)

    @classmethod
    def of(cls, **keys: Any) -> IntervalsConfig:
        """The configuration that a recipe with these keys under `objective` has, preset included."""
        config: IntervalsConfig = structured.merge(
            cls(), with_presets([("the keys", OmegaConf.create(keys))]), prefix="objective."
        )
        return config


PRESETS: dict[str, dict[str, Any]] = {
    # As the authors' published code does it, but for words and sequences being spelled alike and keyed draws (4.2).
    # Motifs of SpliceAid have up to 200 nt.
    "rnaernie-code": {
        "levels": {"base": 1, "span": 1, "motif": 1, "npmi": 0, "pair": 0},
        "choose_per": "sample",
        "schedule": "mix",
        "masked_fraction": 0.15,
        "mask_share": 0.8,
        "random_share": 0.1,
        "corrupt_unit": "token",
        "random_letters": NUCLEOTIDES,
        "random_differs": False,
        "eligible": "all",
        "span": {"min": 5, "max": 8, "distribution": "inv_rank", "tail": 9},
        "motif": {"min_len": 4, "max_len": 200, "order": "db_first"},
        "topup": "none",
        "type_token": {"append": True, "drop_prob": 0.0, "mask_prob": 0.0},
    },
    # As the model card says; equal thirds of the steps are our choice, no source gives them.
    "rnaernie-card": {
        "schedule": "staged",
        "stages": [
            {"until": 1 / 3, "base": 1},
            {"until": 2 / 3, "span": 1},
            {"until": 1.0, "motif": 1},
        ],
        "span": {"min": 4, "max": 8, "distribution": "inv_rank", "tail": 0},
        "topup": "base",
    },
    # The authors' second model: single nucleotides, no type tokens (2.2, 4.3).
    "rnaernie2": {
        "levels": {"base": 1, "span": 0, "motif": 0, "npmi": 0, "pair": 0},
        "schedule": "mix",
        "type_token": {"append": False},
    },
}


def with_presets(layers: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Layers of keys, (origin, mapping) each, with what a preset sets put before the layer that names it.

    Raises PretrainError for an unknown preset.
    """
    found = []
    for origin, layer in layers:
        preset = layer.get("preset")
        if preset is not None:
            if preset not in PRESETS:
                refuse("preset", preset, f"one of {', '.join(PRESETS)}")
            found.append((f"the preset {preset}", OmegaConf.create(PRESETS[preset])))
        found.append((origin, layer))
    return found


def check(config: IntervalsConfig) -> None:
    """Raises PretrainError for values that cannot work, naming the key."""
    _choice("alphabet", config.alphabet, tuple(ALPHABETS))
    _choice("crop", config.crop, CROPS)
    _choice("corrupt_unit", config.corrupt_unit, UNITS)
    _choice("eligible", config.eligible, ELIGIBLE)
    _choice("choose_per", config.choose_per, CHOOSE_PER)
    _choice("schedule", config.schedule, SCHEDULES)
    _choice("topup", config.topup, TOP_UPS)
    frame = 4 if config.type_token.append else 2
    if config.max_tokens < frame + 1:
        refuse("max_tokens", config.max_tokens, f"at least {frame + 1}: a nucleotide and its frame")
    if not 0 < config.masked_fraction <= 1:
        refuse("masked_fraction", config.masked_fraction, "above 0 and at most 1")
    check_shares(config.mask_share, config.random_share)
    _check_weights(config)
    span = config.span
    if span.min < 1:
        refuse("span.min", span.min, "at least 1")
    if span.max < span.min:
        refuse("span.max", span.max, f"at least objective.span.min = {span.min}")
    _choice("span.distribution", span.distribution, SPAN_DISTRIBUTIONS)
    if not 0 < span.p < 1:
        refuse("span.p", span.p, "above 0 and below 1")
    if span.tail < 0:
        refuse("span.tail", span.tail, "0 or more")
    for key in ("motif", "npmi"):
        _check_words(key, getattr(config, key), used=any(getattr(w, key) > 0 for w in weights_in_use(config)))
    _check_type_token(config)


def weights_in_use(config: IntervalsConfig) -> list[LevelWeights]:
    return list(config.stages) if config.schedule == STAGED else [config.levels]


def _check_weights(config: IntervalsConfig) -> None:
    named: list[tuple[str, LevelWeights]] = [("levels", config.levels)]
    if config.schedule == STAGED and not config.stages:
        raise PretrainError("objective.schedule is staged, but objective.stages is empty; list the stages")
    named += [(f"stages.{number}", stage) for number, stage in enumerate(config.stages)]
    for key, weights in named:
        values = {level: getattr(weights, level) for level in LEVELS}
        for level, value in values.items():
            if not 0 <= value < math.inf:
                refuse(f"{key}.{level}", value, "a weight of 0 or more")
        if not sum(values.values()):
            raise PretrainError(f"objective.{key} gives every level the weight 0; one must be above 0")
    before = 0.0
    for number, stage in enumerate(config.stages):
        if not before < stage.until <= 1:
            refuse(f"stages.{number}.until", stage.until, f"above {before} and at most 1")
        before = stage.until
    if config.stages and before != 1:
        refuse(f"stages.{len(config.stages) - 1}.until", before, "1 in the last stage, the end of the run")
    ramp = config.ramp
    if not 0 <= ramp.start < 1:
        refuse("ramp.start", ramp.start, "a fraction of the run, below 1")
    if not ramp.start < ramp.end <= 1:
        refuse("ramp.end", ramp.end, f"above objective.ramp.start = {ramp.start} and at most 1")
    if not 0 <= ramp.max <= 1:
        refuse("ramp.max", ramp.max, "a share between 0 and 1")
    if config.schedule == RAMP and not sum(getattr(config.levels, level) for level in LEVELS[1:]):
        raise PretrainError("objective.schedule is ramp, but no level other than base has a weight in objective.levels")


def _check_words(key: str, words: WordOptions, used: bool) -> None:
    if used and not words.files and not words.mined:
        raise PretrainError(
            f"objective.levels or objective.stages use the level {key}, but objective.{key}.files is empty; name files "
            f"of words, or set the weights of {key} to 0"
        )
    if words.min_len < 1:
        refuse(f"{key}.min_len", words.min_len, "at least 1")
    if words.max_len < words.min_len:
        refuse(f"{key}.max_len", words.max_len, f"at least objective.{key}.min_len = {words.min_len}")
    _choice(f"{key}.order", words.order, WORD_ORDERS)
    if not 0 < words.threshold <= 1:
        refuse(f"{key}.threshold", words.threshold, "a probability above 0")
    if words.expansions < 1:
        refuse(f"{key}.expansions", words.expansions, "at least 1")


def _check_type_token(config: IntervalsConfig) -> None:
    options, tokens = config.type_token, ALPHABETS[config.alphabet].ids
    if options.append and INDICATOR not in tokens:
        raise PretrainError(
            f"objective.type_token.append is true, but the alphabet {config.alphabet} has no type tokens; set it to "
            "false, or objective.alphabet=rnaernie"
        )
    for key in ("drop_prob", "mask_prob"):
        value = getattr(options, key)
        if value != 0 and not 0.15 <= value <= 0.5:
            refuse(f"type_token.{key}", value, "0, or from 0.15 to 0.5")
    for name in options.types:
        if options.append and type_token(name) not in tokens:
            known = ", ".join(token[1:-1] for token in tokens if token.startswith("[") and token != INDICATOR)
            refuse("type_token.types", name, f"RNA types that the alphabet {config.alphabet} has: {known}")


def type_token(name: str) -> str:
    """The token of an RNA type in RNAcentral's spelling: no underscores, in brackets."""
    return f"[{name.replace('_', '')}]"


def _choice(key: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        refuse(key, found, f"one of {', '.join(allowed)}")
