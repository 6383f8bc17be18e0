"""Checks that the configurations of all models share; each raises a ModelError of one sentence that names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from models.errors import ModelError

T = TypeVar("T")


def published(model: str, sizes: Mapping[str, T], size: str) -> T:
    """What ``sizes`` holds under this name."""
    if size not in sizes:
        raise ModelError(f"{model} has no size {size!r}; choose one of {', '.join(sizes)}")
    return sizes[size]


def whole_numbers(model: str, config: Any, names: Sequence[str], least: int = 1) -> None:
    """Every one of these fields is an int of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < least:
            raise ModelError(f"{model}: {name} must be a whole number of at least {least}, not {value!r}")


def dropouts(model: str, config: Any, names: Sequence[str]) -> None:
    """Every one of these fields is a probability below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ModelError(f"{model}: {name} must be in [0, 1), not {getattr(config, name)!r}")


def one_of(model: str, config: Any, name: str, choices: Sequence[str]) -> None:
    """The field has one of these values."""
    if getattr(config, name) not in choices:
        named = ", ".join(choices[:-1]) + f" or {choices[-1]}"
        raise ModelError(f"{model}: {name} must be {named}, not {getattr(config, name)!r}")


def heads(model: str, config: Any, *, rotary: bool = False) -> None:
    """The width can be cut into the heads; ``rotary``: and each of them into halves."""
    if rotary and config.width % (2 * config.heads):
        raise ModelError(
            f"{model}: width {config.width} must be a multiple of twice the {config.heads} heads, because rotary "
            "positions pair the two halves of each head"
        )
    if config.width % config.heads:
        raise ModelError(f"{model}: width {config.width} must be a multiple of the {config.heads} heads")


def special_tokens(model: str, vocab: int, last: int) -> None:
    """The vocabulary holds the special tokens, which are its first."""
    if vocab <= last:
        raise ModelError(f"{model}: vocab {vocab} leaves out the special tokens, whose ids are 0 to {last}")
