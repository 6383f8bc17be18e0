"""What a trained RNA-MSM gives of alignments: a representation and row-attention maps of each, and contacts.

Of every alignment of the files one NAME.npz:

    representation [L, d]    of row 0, after the final layer norm; 768 wide in the base size
    maps           [L, L, C] row-attention probabilities, layer by layer; 120 in the base size
    contacts       [L, L]    probability that two columns pair, where a probe was asked for (pretrain/contacts.py)
    partners       [L]       which column each one pairs with by the file's own SS_cons, or -1; where it has one

and families.json: of each alignment its name, file, query, columns, rows used of how many, and, where the file knows
the structure and contacts were asked for, their precision. Columns and row 0 are made as `launch/prepare.py` makes
them. Memory is that of one alignment: at most 1,024 rows of it, a keyed random draw, as the model has no more.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data import dot_bracket
from data.alignment_columns import ColumnRules, clean
from data.alignment_config import AlignmentSource, files_of
from data.alignment_families import family_of
from data.alignment_scan import shuffled
from data.alignments import AlignmentCorpus
from data.errors import DataError
from data.formats.alignment import read_alignments
from data.formats.raw_alignment import RawAlignment
from models.rnamsm import MAX_ROWS, RNAMSM
from pretrain import contacts, recipe
from pretrain.errors import PretrainError
from pretrain.initialise import locate, own_checkpoint, read_weights
from pretrain.products import device_at_hand
from pretrain.release_check import model_of
from pretrain.validation_alignments import PROBE_KNOWN, maps_of, probe_tokens, tokens_of, with_structure

MODEL = "rnamsm"
FAMILIES = "families.json"


@dataclass
class Options:
    rules: ColumnRules = dataclasses.field(default_factory=ColumnRules)
    format: str = "auto"
    rows: int = MAX_ROWS  # most rows of an alignment that are read by the model
    seed: int = 0  # of the draw of rows
    contacts: str | None = None  # a corpus whose training structures the probe is fitted on; "" for that of the run
    overwrite: bool = False


def extract(source: str, files: Sequence[Path], to: Path, options: Options) -> Iterator[dict[str, Any]]:
    """Writes ``to``, which appears whole or not at all; yields the record of each alignment when it is computed.

    ``source`` is what `init_from` takes: a run, a checkpoint, a release, the authors' file. An alignment wider than the
    model's table of positions is left out, which its record says under "skipped". Raises DataError, ModelError or
    PretrainError with one sentence.
    """
    if not 1 <= options.rows <= MAX_ROWS:
        raise PretrainError(f"--rows is {options.rows}, but the model reads 1 to {MAX_ROWS:,} rows of an alignment")
    paths = _files(files, options.format)
    if to.exists() and not (options.overwrite and (to / FAMILIES).is_file()):
        how = "give --overwrite to replace it" if (to / FAMILIES).is_file() else "it was not made by this command"
        raise PretrainError(f"{to} exists already; choose another --to ({how})")
    model = _model(source)
    device = device_at_hand(model)
    model.to(device)
    probe = None if options.contacts is None else _probe(model, device, options.contacts or _corpus_of(source))
    partial = to.parent / f".{to.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        records = []
        for raw in _alignments(paths, options.format):
            records.append(_one(raw, model, device, probe, partial, options))
            yield records[-1]
        if all("skipped" in record for record in records):
            raise DataError(f"no alignment was narrow enough for the model; the first: {records[0]['skipped']}.")
        content = {"model": source, "contacts": options.contacts, "alignments": records}
        (partial / FAMILIES).write_text(json.dumps(content, indent=1) + "\n")
        if to.exists():
            shutil.rmtree(to)
        partial.replace(to)
    except OSError as error:
        raise PretrainError(f"{to} cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _one(
    raw: RawAlignment, model: RNAMSM, device: torch.device, probe: contacts.Probe | None, to: Path, options: Options
) -> dict[str, Any]:
    """Computes and writes one alignment; returns its record."""
    found, name = clean(raw, options.rules), family_of(raw)
    record: dict[str, Any] = {"name": name, "file": raw.path.name, "query": found.query}
    depth, columns = found.letters.shape
    record |= {"columns": columns, "rows": depth}
    most = model.config.max_positions - 1
    if not found.letters.size:
        raise DataError(f"{raw.where}: no column is left of it; set --columns all, or leave it out.")
    if columns > most:
        return record | {"skipped": f"{raw.where} has {columns:,} columns, the model reads {most:,}"}
    file = to / f"{name}.npz"
    if file.exists():
        raise DataError(f"{raw.where}: another alignment is called {name} too; give the files one by one.")
    letters = shuffled(found.letters, options.seed, name, options.rows)
    representation, maps = model.extract(tokens_of(letters)[0].to(device))
    arrays = {"representation": representation.float().cpu().numpy(), "maps": maps.float().cpu().numpy()}
    partners = None if found.structure is None else dot_bracket.partners(found.structure)
    if partners is not None:
        arrays["partners"] = partners
    if probe is not None:
        probabilities = probe.probabilities(arrays["maps"].transpose(2, 0, 1))
        arrays["contacts"] = probabilities.astype(np.float32)
        if partners is not None and (partners >= 0).any():
            record |= contacts.precision(probabilities, partners)
    np.savez(file, allow_pickle=False, **arrays)
    return record | {"rows_used": len(letters)}


def _files(given: Sequence[Path], kind: str) -> list[Path]:
    """Files, and what lies in folders of alignments; each once, in the order given."""
    found: dict[Path, None] = {}
    for path in given:
        found |= dict.fromkeys(files_of(AlignmentSource("ALIGNMENT", str(path), kind)))
    return list(found)


def _alignments(paths: Iterable[Path], kind: str) -> Iterator[RawAlignment]:
    for path in paths:
        yield from read_alignments(path, kind)


def _model(source: str) -> RNAMSM:
    """The model in fp32, in evaluation mode."""
    name, config, state = read_weights(locate(source))
    if name != MODEL:
        raise PretrainError(f"{source} holds a {name} model, which reads no alignments; give one of {MODEL}")
    model = model_of(name, config, state)
    assert isinstance(model, RNAMSM)
    return model


def _probe(model: RNAMSM, device: torch.device, corpus: str) -> contacts.Probe:
    """Fitted on the first structures of the corpus's training split, as validation does while a model trains."""
    training = AlignmentCorpus.open(corpus, "train")
    known = with_structure(training, np.arange(training.count), PROBE_KNOWN)
    if not known:
        raise PretrainError(
            f"no alignment of {corpus} has a structure, so contacts have nothing to be fitted on; give --contacts a "
            "corpus made of Stockholm files with SS_cons lines"
        )
    examples: list[contacts.Example] = []
    for alignment in known:
        partners: npt.NDArray[np.int64] | None = alignment.partners
        assert partners is not None
        examples.append((maps_of(model, probe_tokens(alignment).to(device)), partners))
    training.close()
    return contacts.fit(examples)


def _corpus_of(source: str) -> str:
    """The first corpus that a run was trained on. Raises PretrainError if nothing here says which it was."""
    path = Path(source)
    own = own_checkpoint(path) if path.exists() else None
    written = own.recipe_path if own else path / "recipe.yaml"
    if not written.is_file():
        raise PretrainError(f"{source} does not say what it was trained on; give --contacts the directory of a corpus")
    data = recipe.read_resolved(written).data
    return str(data.corpus or data.mixture[0].corpus)
