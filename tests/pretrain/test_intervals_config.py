"""The keys of the objective `intervals`: presets, what every key does, and what is refused (specs: rnaernie 4.4)."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from data import structured
from data.errors import DataError
from data.loader import Moment
from pretrain.errors import PretrainError
from pretrain.objectives.intervals import Intervals, Sample
from pretrain.objectives.intervals_config import PRESETS, IntervalsConfig, with_presets
from tests.pretrain.test_mlm import keys, letters, per_sample, random_letters

MOMENT = Moment(3, 0.6, 12345)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("motifs")
    generator = np.random.default_rng(0)
    words = ["".join(w) for n in (4, 5, 6, 7, 8) for w in generator.choice(list("ACGU"), (60, n))]
    table = "Motif\tMutated\tOrganism\n" + "".join(f"{w}\tno\t{'ab'[i % 2]}\n" for i, w in enumerate(words))
    pwm = "".join(f">{i}\t6\n" + "0.6\t0.3\t0.1\t0\n0.1\t0.2\t0.7\t0\n" * 3 for i in range(2))
    content = {"words": "\n".join(words), "mined": "\n".join(words[::3]), "table": table, "pwm": pwm, "wide": "NNNNN"}
    for name, text in content.items():
        (folder / name).write_text(text)
    return {name: str(folder / name) for name in content}


def batch_of(config: dict[str, Any], alphabet_type: str = "[miRNA]") -> list[tuple]:
    own = Intervals(IntervalsConfig.of(**config))
    type_id = own.alphabet.ids.get(alphabet_type, -1)
    structure = b"(" * 80 + b"." * 40 + b")" * 80
    given = [Sample(s, type_id, structure) for s in random_letters(60, 200, of="ACGUACGUACGUNR")]
    given += [Sample(s, own.alphabet.ids.get("[tRNA]", -1)) for s in random_letters(20, 600)]
    return per_sample(own.collate(given, keys(80), MOMENT))


# key -> (the other keys that both have, value of one, value of the other)
def changes(files: dict[str, str]) -> dict[str, tuple[dict[str, Any], Any, Any]]:
    motif = {"files": [files["words"]], "min_len": 4}
    base: dict[str, Any] = {"motif": motif}
    words = {"levels": {"base": 0, "span": 0, "motif": 1}, "motif": motif}
    npmi = {"levels": {"base": 0, "span": 0, "motif": 0, "npmi": 1}, "npmi": motif}
    span = {"levels": {"base": 0, "span": 1, "motif": 0}}
    table = {**words, "motif": {**motif, "files": [files["table"]]}}
    staged = {**base, "schedule": "staged", "stages": [{"until": 0.5, "base": 1}, {"until": 1, "span": 1}]}
    ramp = {**base, "schedule": "ramp"}
    found: dict[str, tuple[dict[str, Any], Any, Any]] = {
        "preset": (base, None, "rnaernie2"),
        "alphabet": (base, "rnaernie", "rnaernie_iupac"),
        "max_tokens": (base, 512, 300),
        "crop": (base, "first", "random"),
        "masked_fraction": (base, 0.15, 0.3),
        "mask_share": (base, 0.8, 0.5),
        "random_share": (base, 0.1, 0.2),
        "corrupt_unit": (base, "token", "span"),
        "random_letters": (base, "ACGU", "AC"),
        "random_differs": (base, False, True),
        "eligible": (base, "all", "letters"),
        "choose_per": (base, "sample", "batch"),
        "schedule": ({**base, "stages": staged["stages"]}, "mix", "staged"),
        "stages": (staged, staged["stages"], [{"until": 0.7, "base": 1}, {"until": 1, "span": 1}]),
        "ramp.start": (ramp, 0.15, 0.4),
        "ramp.end": (ramp, 0.85, 0.65),
        "ramp.max": (ramp, 0.5, 0.9),
        "span.min": (span, 4, 6),
        "span.max": (span, 8, 12),
        "span.distribution": (span, "inv_rank", "uniform"),
        "span.p": ({**span, "span": {"distribution": "geometric"}}, 0.2, 0.6),
        "span.tail": (span, 0, 9),
        "topup": (words, "base", "span"),
        "type_token.append": (base, True, False),
        "type_token.drop_prob": (base, 0.5, 0.2),
        "type_token.mask_prob": (base, 0.15, 0.5),
        "type_token.types": (base, [], ["tRNA"]),
    }
    for level in ("base", "span", "motif", "npmi", "pair"):
        found[f"levels.{level}"] = ({**base, "npmi": {"files": [files["mined"]]}, "levels": {"span": 2}}, 0, 5)
    for level, only in (("motif", words), ("npmi", npmi)):
        with_table = {**only, level: table["motif"]}
        with_mined = {**only, level: {**motif, "mined": [files["mined"], files["words"]], "files": [files["pwm"]]}}
        found |= {
            f"{level}.files": (only, [files["words"]], [files["words"], files["pwm"]]),
            f"{level}.mined": (only, [], [files["pwm"]]),
            f"{level}.organism": (with_table, None, "a"),
            f"{level}.min_len": (only, 4, 6),
            f"{level}.max_len": (only, 50, 5),
            f"{level}.order": (with_mined, "shuffle", "db_first"),
            f"{level}.threshold": ({**only, level: {"files": [files["pwm"]]}}, 0.25, 0.65),
        }
    return found


def leaves(config: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        found += leaves(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


def with_key(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.merge(base, _nested(key, value)))


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: _nested(rest, value) if rest else value}


def test_the_changes_above_cover_every_key(files):
    # `name` selects this objective; `expansions` only refuses: below; `types` is tested where samples are read
    assert set(leaves(IntervalsConfig())) == {"name", "motif.expansions", "npmi.expansions", *changes(files)}


KEYS = [key for key in leaves(IntervalsConfig()) if key not in ("name", "motif.expansions", "npmi.expansions")]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "type_token.types"])
def test_every_key_changes_the_batch(key, files):
    base, one, other = changes(files)[key]
    assert batch_of(with_key(base, key, one)) != batch_of(with_key(base, key, other))
    assert batch_of(with_key(base, key, one)) == batch_of(with_key(base, key, one))


def test_expansions_is_the_cap_of_one_motif(files):
    wide = {"motif": {"files": [files["wide"]], "min_len": 4}}
    assert Intervals(IntervalsConfig.of(**wide)).words["motif"][0].read == 1
    with pytest.raises(DataError, match="stands for 1,024 words, more than expansions = 1000"):
        Intervals(IntervalsConfig.of(**with_key(wide, "motif.expansions", 1000)))


# Presets


def test_presets_are_those_of_the_specification():
    code = IntervalsConfig.of(preset="rnaernie-code")
    assert (code.levels.base, code.levels.span, code.levels.motif, code.levels.npmi, code.levels.pair) == (
        1,
        1,
        1,
        0,
        0,
    )
    assert (code.schedule, code.choose_per, code.masked_fraction) == ("mix", "sample", 0.15)
    assert (code.span.min, code.span.max, code.span.distribution, code.span.tail) == (5, 8, "inv_rank", 9)
    assert (code.motif.min_len, code.motif.order, code.topup) == (4, "db_first", "none")
    assert (code.random_letters, code.random_differs, code.corrupt_unit) == ("ACGU", False, "token")
    assert (code.type_token.drop_prob, code.type_token.mask_prob) == (0, 0)
    card = IntervalsConfig.of(preset="rnaernie-card")
    assert (card.span.min, card.span.max, card.topup, card.schedule) == (4, 8, "base", "staged")
    assert [(s.until, s.base, s.span, s.motif) for s in card.stages] == [
        (1 / 3, 1, 0, 0),
        (2 / 3, 0, 1, 0),
        (1, 0, 0, 1),
    ]
    second = IntervalsConfig.of(preset="rnaernie2")
    assert list(asdict(second.levels).values()) == [1, 0, 0, 0, 0]
    assert not second.type_token.append


def test_our_defaults_are_those_of_the_specification():
    ours = IntervalsConfig()
    assert (ours.span.min, ours.span.max, ours.motif.min_len, ours.motif.max_len) == (4, 8, 6, 50)
    assert (ours.motif.order, ours.topup, ours.choose_per, ours.schedule) == ("shuffle", "base", "sample", "mix")
    assert (ours.mask_share, ours.random_share, ours.random_differs) == (0.8, 0.1, False)
    assert (ours.type_token.append, ours.type_token.drop_prob, ours.type_token.mask_prob) == (True, 0.5, 0.15)
    assert (ours.ramp.start, ours.ramp.end, ours.ramp.max) == (0.15, 0.85, 0.5)


def test_single_keys_override_a_preset_of_an_earlier_layer_or_the_same():
    config = IntervalsConfig.of(preset="rnaernie-code", topup="base", span={"min": 6})
    assert (config.topup, config.span.min, config.span.max, config.span.tail) == ("base", 6, 8, 9)
    layers = [("file", OmegaConf.create({"topup": "span", "preset": "rnaernie-code"}))]
    layers += [("command line", OmegaConf.create({"masked_fraction": 0.3}))]
    merged = structured.merge(IntervalsConfig(), with_presets(layers), prefix="objective.")
    assert (merged.topup, merged.masked_fraction, merged.motif.min_len) == ("span", 0.3, 4)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_complete_configuration_read_back_is_equal(preset):
    config = IntervalsConfig.of(preset=preset, masked_fraction=0.2, motif={"files": ["a"], "min_len": 7})
    assert IntervalsConfig.of(**asdict(config)) == config


# Refusals


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("alphabet", "dna", "one of rinalmo"),
        ("max_tokens", 4, "at least 5"),
        ("crop", "last", "one of first, random"),
        ("masked_fraction", 0.0, "above 0"),
        ("masked_fraction", float("nan"), "above 0"),
        ("mask_share", 0.95, r"objective\.random_share = 0\.1"),
        ("random_share", -0.1, "between 0 and 1"),
        ("corrupt_unit", "word", "one of token, span"),
        ("random_letters", "A", "two or more different letters"),
        ("random_letters", "ACGN", "letters of rnaernie"),
        ("eligible", "some", "one of all, letters, nucleotides"),
        ("choose_per", "epoch", "one of sample, batch"),
        ("schedule", "cosine", "one of mix, staged, ramp"),
        ("topup", "motif", "one of base, span, none"),
        ("levels.span", -1.0, "a weight of 0 or more"),
        ("levels.base", float("inf"), "a weight of 0 or more"),
        ("ramp.start", 1.0, "below 1"),
        ("ramp.end", 0.1, r"above objective\.ramp\.start = 0\.15"),
        ("ramp.max", 1.5, "between 0 and 1"),
        ("span.min", 0, "at least 1"),
        ("span.max", 3, r"at least objective\.span\.min = 4"),
        ("span.distribution", "normal", "one of inv_rank, uniform, geometric"),
        ("span.p", 1.0, "below 1"),
        ("span.tail", -1, "0 or more"),
        ("motif.min_len", 0, "at least 1"),
        ("motif.max_len", 5, r"at least objective\.motif\.min_len = 6"),
        ("motif.order", "random", "one of shuffle, longest, db_first"),
        ("npmi.threshold", 0.0, "a probability above 0"),
        ("npmi.expansions", 0, "at least 1"),
        ("type_token.drop_prob", 0.1, r"0, or from 0\.15 to 0\.5"),
        ("type_token.mask_prob", 0.6, r"0, or from 0\.15 to 0\.5"),
    ],
)
def test_a_mistake_is_refused_with_the_key_what_was_found_and_what_is_expected(key, value, expected, files):
    given = with_key({"motif": {"files": [files["words"]]}}, key, value)
    with pytest.raises(PretrainError, match=expected) as caught:
        Intervals(IntervalsConfig.of(**given))
    assert str(caught.value).startswith(f"objective.{key} is {value!r}, but must be ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preset": "rnaernie3"}, "objective.preset is 'rnaernie3', but must be one of rnaernie-code, rnaernie-card"),
        ({}, "use the level motif, but objective.motif.files is empty; name files of words"),
        ({"levels": {"motif": 0, "npmi": 1}}, "use the level npmi, but objective.npmi.files is empty"),
        ({"levels": {"base": 0, "span": 0, "motif": 0}}, "objective.levels gives every level the weight 0"),
        ({"schedule": "staged"}, "objective.schedule is staged, but objective.stages is empty"),
        ({"stages": [{"until": 0.5}]}, "objective.stages.0 gives every level the weight 0"),
        ({"stages": [{"until": 0.5, "base": 1}]}, "objective.stages.0.until is 0.5, but must be 1 in the last stage"),
        (
            {"stages": [{"until": 0.5, "base": 1}, {"until": 0.4, "span": 1}]},
            "objective.stages.1.until is 0.4, but must be above 0.5 and at most 1",
        ),
        ({"schedule": "ramp", "levels": {"span": 0, "motif": 0}}, "no level other than base has a weight"),
        (
            {"alphabet": "rnaernie_28", "levels": {"motif": 0}},
            "the alphabet rnaernie_28 has no type tokens; set it to false",
        ),
        (
            {"type_token": {"types": ["miRNA", "riboswitch"]}, "levels": {"motif": 0}},
            "objective.type_token.types is 'riboswitch', but must be RNA types that the alphabet rnaernie has: RNase",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(config, message):
    with pytest.raises(PretrainError) as caught:
        Intervals(IntervalsConfig.of(**config))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"spans": 3}, "there is no key objective.spans; the nearest valid key is objective.span"),
        ({"span": {"mini": 3}}, "there is no key objective.span.mini; the nearest valid key is objective.span.min"),
        ({"stages": [{"unti": 3}]}, "there is no key objective.stages[0].unti"),
        ({"span": 4}, "objective.span must be a section"),
    ],
)
def test_unknown_keys_are_refused_by_name(config, message):
    with pytest.raises(DataError) as caught:
        IntervalsConfig.of(**config)
    assert message in str(caught.value)


def test_a_missing_motif_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        Intervals(IntervalsConfig.of(motif={"files": [str(tmp_path / "none.txt")]}))


def test_without_types_rows_hold_two_nucleotides_more(files):
    options = {"motif": {"files": [files["words"]]}}
    typed, plain = (Intervals(IntervalsConfig.of(**options, type_token={"append": a})) for a in (True, False))
    long = [Sample(letters("ACGU" * 200))]
    assert typed.collate(long, keys(1)).nucleotides.tolist() == [508]
    assert plain.collate(long, keys(1)).nucleotides.tolist() == [510]
    assert typed.token_lengths(np.array([10, 800])).tolist() == [14, 512]
    assert plain.token_lengths(np.array([10, 800])).tolist() == [12, 512]
