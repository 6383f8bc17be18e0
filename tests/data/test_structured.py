"""Configuration files against a schema: precedence, and one sentence for every mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from data import structured
from data.errors import DataError


@dataclass
class Section:
    sequences: int = 3
    share: float = 0.5
    letters: list[str] = field(default_factory=lambda: ["A"])


@dataclass
class Schema:
    name: str = MISSING
    section: Section = field(default_factory=Section)
    extra: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


def merged(*layers: tuple[str, list[str]]) -> Schema:
    return structured.merge(Schema(), [(origin, structured.read_overrides(keys)) for origin, keys in layers])


def refusal(*keys: str) -> str:
    with pytest.raises(DataError) as caught:
        merged(("file.yaml", ["name=x"]), ("the command line", list(keys)))
    return str(caught.value)


def test_later_layers_win_and_defaults_fill_the_rest():
    config = merged(("a", ["name=x", "section.sequences=5", "limit=4"]), ("b", ["section.sequences=7", "limit=null"]))
    assert config == Schema(name="x", section=Section(sequences=7), limit=None)
    assert isinstance(config.section, Section)


def test_lists_and_free_sections_are_read_as_yaml():
    config = merged(("a", ["name=x", "section.letters=[C,G]", "extra.deep.key=1e-3"]))
    assert config.section.letters == ["C", "G"]
    assert config.extra == {"deep": {"key": 1e-3}}


def test_the_schema_given_is_not_changed():
    schema = Schema()
    structured.merge(schema, [("a", structured.read_overrides(["name=x", "section.letters=[C]"]))])
    assert schema.section.letters == ["A"]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("nam=3", "name"), ("sektion.share=1", "section"), ("section.sequence=1", "section.sequences")],
)
def test_an_unknown_key_is_named_with_its_layer_and_the_nearest_key(key, nearest):
    assert refusal(key).startswith("the command line: there is no key " + key.split("=")[0].split(".share")[0])
    assert refusal(key).endswith(f"the nearest valid key is {nearest}")


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("section.sequences=many", "section.sequences"),
        ("section.sequences=1.5", "section.sequences"),
        ("section.share=[1]", "section.share"),
        ("section.sequences=null", "section.sequences"),
        ("section=5", "section"),
        ("section=null", "section"),
        ("extra=[1]", "extra"),
        ("name=${nowhere}", "name"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_layer_and_key(argument, key):
    sentence = refusal(argument)
    assert "the command line" in sentence
    assert f" {key}" in sentence
    assert "\n" not in sentence


def test_a_mandatory_key_that_no_layer_gives_is_named():
    with pytest.raises(DataError, match=r"file\.yaml: name must be given"):
        merged(("file.yaml", []))


@pytest.mark.parametrize("argument", ["word", "=3", "0.a=3", "--name=x"])
def test_an_argument_that_is_no_setting_is_quoted(argument):
    with pytest.raises(DataError, match=r"given as section\.key=value") as caught:
        structured.read_overrides([argument])
    assert repr(argument) in str(caught.value)


@pytest.mark.parametrize("argument", ["name='x", "name={", "extra=[1"])
def test_a_value_that_is_no_yaml_is_quoted(argument):
    with pytest.raises(DataError, match="cannot be read") as caught:
        structured.read_overrides([argument])
    assert argument in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1\nb: 2", "a: b: c", "\tx: 1", "- 1\n- 2"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"broken\.yaml"):
        structured.read_yaml(path)


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path):
    path = tmp_path / "empty.yaml"
    path.write_text("# only a comment\n")
    assert len(structured.read_yaml(path)) == 0


def test_a_configuration_is_found_as_a_path_or_in_configs_with_or_without_suffix(tmp_path: Path, monkeypatch):
    assert structured.find("rinalmo") == structured.find("rinalmo.yaml") == structured.CONFIGS / "rinalmo.yaml"
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine.yaml"
    own.write_text("a: 1")
    assert structured.find(str(own)) == own
    assert structured.find("mine").resolve() == own


def test_an_unknown_configuration_suggests_the_nearest():
    with pytest.raises(DataError, match=r"rinalmoo, neither .* did you mean rinalmo\.yaml\?"):
        structured.find("rinalmoo")


def test_all_keys_lists_nested_names():
    expected = ["name", "section", "section.sequences", "section.share", "section.letters", "extra", "limit"]
    assert structured.all_keys(Schema()) == expected


@dataclass
class Inner_:
    corpus: str | None = None


@dataclass
class Optional_:
    data: Inner_ = field(default_factory=Inner_)
    init_from: str | None = None


def test_a_key_left_open_by_a_file_must_be_given_even_where_the_schema_has_a_default(tmp_path):
    file = ("mine.yaml", OmegaConf.create({"init_from": "???", "data": {"corpus": "???"}}))
    with pytest.raises(DataError, match=r"data\.corpus, init_from must be given"):
        structured.merge(Optional_(), [file])
    with pytest.raises(DataError, match="init_from must be given"):
        structured.merge(Optional_(), [file, ("the command line", OmegaConf.create({"data": {"corpus": "x"}}))])
    given = OmegaConf.create({"data": {"corpus": "x"}, "init_from": "y"})
    assert structured.merge(Optional_(), [file, ("the command line", given)]) == Optional_(Inner_("x"), "y")
