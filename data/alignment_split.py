"""Which alignments are the validation split: whole families, or whole clans, by a keyed hash until enough are found."""

from __future__ import annotations

from typing import Any

from data import randomness
from data.alignment_config import AlignmentConfig
from data.alignment_families import by_family, read_families
from data.alignment_scan import Entry
from data.errors import DataError


def choose(config: AlignmentConfig, entries: list[Entry]) -> tuple[list[bool], dict[str, Any]]:
    """(which entries are validation, what the manifest tells). Raises DataError where a split would be empty.

    Units are taken in the order of their keys; one that would make the split larger than wanted is passed over.
    """
    if not entries:
        raise DataError(
            f"{config.name}: no alignment is left after filtering; check min_depth, min_columns, max_columns, exclude "
            "and the sources."
        )
    units = [unit_of(config, entry) for entry in entries]
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    told: dict[str, Any] = {"by": config.split_by, "units": len(sizes)}
    if config.held_out:
        chosen = _listed(config, entries, units)
    elif config.validation_fraction:
        chosen = _by_key(config, sizes, max(1, round(config.validation_fraction * len(entries))))
    else:
        return [False] * len(entries), {**told, "validation_units": 0}
    held_out = [unit in chosen for unit in units]
    if not any(held_out) or all(held_out):
        which = "train" if any(held_out) else "validation"
        raise DataError(
            f"{config.name}: the {which} split would be empty with {len(entries)} alignments in {len(sizes)} "
            f"{'clans and families' if config.split_by == 'clan' else 'families'}; change validation_fraction (0 for "
            "no validation split) or held_out."
        )
    return held_out, {**told, "validation_units": len(chosen)}


def unit_of(config: AlignmentConfig, entry: Entry) -> str:
    """What must not be in both splits."""
    return f"clan {entry.clan}" if config.split_by == "clan" and entry.clan else f"family {entry.family}"


def _by_key(config: AlignmentConfig, sizes: dict[str, int], wanted: int) -> set[str]:
    chosen, left = set(), wanted
    for unit in sorted(sizes, key=lambda unit: (randomness.key(config.seed, "split", unit), unit)):
        if sizes[unit] <= left:
            chosen.add(unit)
            left -= sizes[unit]
        if not left:
            break
    return chosen


def _listed(config: AlignmentConfig, entries: list[Entry], units: list[str]) -> set[str]:
    listed = read_families(config.held_out)
    lines: set[int] = set()
    chosen = set()
    for entry, unit in zip(entries, units, strict=True):
        line = by_family(listed, entry.family, entry.name)
        if line is not None:
            lines.add(line)
            chosen.add(unit)
    for family, line in listed.items():
        if line not in lines:
            raise DataError(
                f"{config.held_out}, line {line}: no alignment of the corpus is of family {family}; remove it."
            )
    return chosen
