"""Which sequences are the validation split: whole units, by a keyed hash, until it is as large as wanted.

A unit is a sequence, a cluster, or an Rfam family together with every cluster that its sequences are in (and the other
families in those clusters, and so on), so that neither a cluster nor a family is on both sides. Units are taken in the
order of their keys; one that would make the split larger than wanted is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.buckets import split_keys
from data.errors import DataError
from data.hash_order import HashOrder
from data.prepare_config import PrepareConfig

_FAMILIES = 1 << 16
_LOOK_AT = 4  # times the wanted size: enough smaller units follow those that are passed over

U32 = npt.NDArray[np.uint32]


def validation_count(config: PrepareConfig, sequences: int) -> int:
    """Sequences wanted in the validation split."""
    if not config.validation_fraction:
        return 0
    return max(round(config.validation_fraction * sequences), min(config.validation_minimum, sequences // 10))


def require_split(config: PrepareConfig, sequences: int, validation: int) -> None:
    """Refuses an empty corpus or split with a sentence."""
    if not sequences:
        raise DataError(
            f"{config.name}: no sequence is left after filtering; check min_length, max_length, the letter policies, "
            "exclude and the sources."
        )
    if (config.validation_fraction or config.held_out) and not validation:
        of_what = {"cluster": "clusters", "family": "families"}.get(config.split_by) if config.grouped else None
        why = f"; the {of_what} may be too large to fit into it" if of_what else ""
        raise DataError(
            f"{config.name}: the validation split would be empty, {sequences} distinct sequences are too few for "
            f"validation_fraction={config.validation_fraction:g}{why}; raise it, or set it to 0 for no validation "
            "split."
        )
    if validation >= sequences:
        raise DataError(
            f"{config.name}: the train split would be empty, all {sequences} distinct sequences went to validation; "
            "lower validation_fraction" + (" or shorten held_out." if config.held_out else ".")
        )


def choose(
    config: PrepareConfig, sequences: HashOrder, first_of_cluster: U32, dropped: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    """(uint8 [count] 1 for validation, what the manifest tells). ``dropped`` [count]: 1 for what is in no split."""
    units, families = _units(config, sequences, first_of_cluster)
    sizes = np.zeros(sequences.count, dtype=np.uint32)
    for part in sequences.chunks():
        np.add.at(sizes, units[part], (1 - dropped[part]).astype(np.uint32))
    kept = int(sizes.sum(dtype=np.int64))
    told: dict[str, Any] = {"by": config.split_by, "units": int(np.count_nonzero(sizes))}
    if config.held_out:
        chosen, told["held_out"] = _listed_units(config, families)
    else:
        chosen = _units_by_key(config, sequences, sizes, validation_count(config, kept))
    marked = sequences.new("marked", np.uint8)
    marked[chosen] = 1
    held_out = sequences.new("held-out", np.uint8)
    for part in sequences.chunks():
        held_out[part] = marked[units[part]] * (1 - dropped[part])
    told["validation_units"] = int(np.count_nonzero(sizes[chosen]))
    require_split(config, kept, int(np.count_nonzero(held_out)))
    return held_out, told


def _units_by_key(config: PrepareConfig, sequences: HashOrder, sizes: U32, wanted: int) -> npt.NDArray[np.int64]:
    """Units in the order of their keys, each taken if it still fits."""
    units = np.empty(0, dtype=np.int64)
    lo = sequences.lo
    for part in sequences.chunks():
        fit = part.start + np.flatnonzero((sizes[part] > 0) & (sizes[part] <= wanted))
        units = np.concatenate([units, fit])
        units = units[np.argsort(split_keys(np.array(lo[units]), config.seed), kind="stable")]
        enough = int(np.searchsorted(np.cumsum(sizes[units], dtype=np.int64), _LOOK_AT * wanted)) + 1
        units = units[:enough]
    taken, left = [], wanted
    for unit, size in zip(units.tolist(), sizes[units].tolist(), strict=True):
        if size <= left:
            taken.append(unit)
            left -= size
        if not left:
            break
    return np.array(taken, dtype=np.int64)


def _units(config: PrepareConfig, sequences: HashOrder, first_of_cluster: U32) -> tuple[U32, npt.NDArray[np.int64]]:
    """(unit of each sequence: the number of one of its members; unit of each family, -1 for those not here)."""
    nowhere = np.full(_FAMILIES, -1, dtype=np.int64)
    if config.split_by == "sequence":
        units = sequences.new("units", np.uint32)
        for part in sequences.chunks():
            units[part] = np.arange(part.start, part.stop)
        return units, nowhere
    if config.split_by == "cluster":
        return first_of_cluster, nowhere
    edges = sequences.families()
    clusters, at = np.unique(first_of_cluster[edges["number"]], return_inverse=True)
    pairs = np.unique((at.astype(np.uint64) << np.uint64(16)) | edges["family"].astype(np.uint64))
    cluster, family = (pairs >> np.uint64(16)).astype(np.int64), (pairs & np.uint64(0xFFFF)).astype(np.int64)
    label = clusters.astype(np.int64)  # the smallest cluster number that a chain of families and clusters leads to
    of_family = np.full(_FAMILIES, np.iinfo(np.int64).max)
    while True:
        np.minimum.at(of_family, family, label[cluster])
        before = label.copy()
        np.minimum.at(label, cluster, of_family[family])
        if np.array_equal(before, label):
            break
    joined = sequences.new("joined", np.uint32)
    for part in sequences.chunks():
        joined[part] = np.arange(part.start, part.stop)
    joined[clusters] = label
    units = sequences.new("units", np.uint32)
    for part in sequences.chunks():
        units[part] = joined[first_of_cluster[part]]
    present = np.unique(family)
    nowhere[present] = of_family[present]
    return units, nowhere


def _listed_units(
    config: PrepareConfig, families: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
    """The units of the families in the file ``held_out``, and which other families they take along."""
    wanted = []
    lines = Path(config.held_out).read_text(errors="replace").splitlines()
    for i, line in enumerate(lines, 1):
        name = line.split("#")[0].strip()
        if not name:
            continue
        digits = name.removeprefix("RF")
        if len(name) != 7 or not digits.isdigit():
            raise DataError(f"{config.held_out}, line {i}: {name!r} is no Rfam family; write one per line, as RF00001.")
        if families[int(digits)] < 0:
            raise DataError(f"{config.held_out}, line {i}: no sequence of the corpus is of family {name}; remove it.")
        wanted.append(int(digits))
    if not wanted:
        raise DataError(f"{config.held_out}: lists no family; write one per line, as RF00001.")
    units = np.unique(families[wanted])
    along = np.setdiff1d(np.flatnonzero(np.isin(families, units)), wanted)
    told = {
        "families": [f"RF{n:05d}" for n in sorted(set(wanted))],
        "taken_along": [f"RF{n:05d}" for n in along.tolist()],
    }
    return units, told
