"""docs/keys.md out of the dataclasses and their comments: `python -m tests.keys` writes it, a test compares it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import alignment_config, prepare_config, reactivity_config
from models import MODELS
from pretrain.config import Recipe
from pretrain.objectives import OBJECTIVES
from pretrain.recipe import STAGE_KEYS, STAGE_SECTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "keys.md"
HEAD = """# Every key

Of recipes (`launch/pretrain.py`, `plan.py`, `benchmark.py`) and of corpora (`launch/prepare.py`), with its default and
what it does; `-` where there is no default. A key is set in the YAML file or as `section.key=value` behind the command;
lists are written `[a, b]`, sections of a list entry `sources.0.path=...`. The recipe of a run with every value that it
had is `runs/NAME/recipe.yaml`. Published values and their sources are the comments of `configs/`.

This page is made from the comments in the code: `python -m tests.keys`."""
_SPEC = re.compile(r" ?\((?:specs?\b[^)]*|\d[\d.]*)\)")  # references to notes that are no part of the project


def page() -> str:
    parts = [HEAD, "## Recipes"]
    recipe = Recipe()
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            parts += [f"### {field.name}", *_about(type(value)), _table(type(value), f"{field.name}.")]
    rest = [row for row in _rows(Recipe, "") if row[0] in ("stages", "init_from")]
    parts += ["### stages and init_from", _lines(rest)]
    some = [f"`{section}.{key}`" for section, keys in STAGE_KEYS.items() for key in keys]
    whole = [section for section in STAGE_SECTIONS if section not in STAGE_KEYS]
    parts.append(f"A stage may set any key of {', '.join(whole)}, and of the others {', '.join(some)}.")
    for name, (config, _) in MODELS.items():
        sizes = ", ".join(inspect.getmodule(config)._SIZES)  # type: ignore[union-attr]
        parts += [f"### model, name: {name}"]
        parts += [f"`model.size` ({sizes}) sets what has no default here; keys beside it override it."]
        parts += [*_about(config), _table(config, "model.")]
    for name, (config, _) in OBJECTIVES.items():
        parts += [f"### objective, name: {name}", *_about(config), _table(config, "objective.")]
    parts.append("## Corpora")
    for title, config in (
        ("Sequences: `prepare.py`", prepare_config.PrepareConfig),
        ("Alignments: `prepare.py alignments`", alignment_config.AlignmentConfig),
        ("Reactivity: `prepare.py reactivity`", reactivity_config.ReactivityConfig),
    ):
        parts += [f"### {title}", *_about(config), _table(config, "")]
    return "\n\n".join(parts) + "\n"


def _about(config: type) -> list[str]:
    text = inspect.cleandoc(config.__doc__ or "")
    if text.startswith(f"{config.__name__}("):  # what dataclass writes where there is none
        return []
    return [_plain(text).replace("``", "`").replace(" Raises ModelError if the numbers do not describe one.", "")]


def _table(config: type, prefix: str) -> str:
    return _lines(list(_rows(config, prefix)))


def _lines(rows: list[tuple[str, str, str]]) -> str:
    body = [f"| `{key}` | {default} | {what} |" for key, default, what in rows]
    return "\n".join(["| key | default | |", "|---|---|---|", *body])


def _rows(config: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    comments = _comments(config)
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, _default(field)
        entry = _entry(config, field)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            about = " ".join(_about(type(value)))
            if about:
                yield key, "", _cell(about)
            yield from _rows_of(value, f"{key}.")
        elif entry is not None:
            yield key, "`[]`", _cell(comments.get(field.name) or " ".join(_about(entry)))
            yield from _rows(entry, f"{key}.0.")
        else:
            yield key, _shown(value), _cell(comments.get(field.name, ""))


def _rows_of(value: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    """With the values that this instance has, which may be others than the defaults of its class."""
    for key, default, what in _rows(type(value), prefix):
        name = key.removeprefix(prefix)
        yield key, _shown(getattr(value, name)) if hasattr(value, name) else default, what


def _entry(config: type, field: dataclasses.Field[Any]) -> type | None:
    """The dataclass that the entries of a list are."""
    found = re.fullmatch(r"list\[(\w+)\]", str(field.type))
    entry = getattr(inspect.getmodule(config), found[1], None) if found else None
    return entry if isinstance(entry, type) and dataclasses.is_dataclass(entry) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING or value == "???":
        return "-"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`".replace(" ", "")
    if value == "":
        return '`""`'
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _comments(config: type) -> dict[str, str]:
    """Field -> the comment behind it, or the lines of comments above it; of its parents too."""
    found: dict[str, str] = {}
    for one in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        source = inspect.getsource(one)
        lines = inspect.cleandoc("\n" + source).split("\n")
        (tree,) = ast.parse("\n".join(lines)).body
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            assert node.end_lineno is not None
            behind = lines[node.end_lineno - 1].partition("  # ")[2].strip()
            above, number = [], node.lineno - 2
            while lines[number].strip().startswith("# "):
                above.insert(0, lines[number].strip().removeprefix("# "))
                number -= 1
            found[node.target.id] = behind or " ".join(above) or found.get(node.target.id, "")
    return found


def _plain(text: str) -> str:
    return re.sub(r"`data\.(\w+)`", r"`data/\1.py`", _SPEC.sub("", text))


def _cell(text: str) -> str:
    """One line of a table, in YAML's words; what looks like HTML outside of code is shown as it is."""
    text = re.sub(r"\b(None|True|False)\b", lambda word: {"None": "null"}.get(word[0], word[0].lower()), _plain(text))
    parts = " ".join(text.replace("|", "\\|").split()).split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
