"""Lists of sequence motifs -> distinct words of A, C, G and U, and an account of what was left out.

Recognised by their content, plain or gzip:

    plain list      one motif per line; `#` begins a comment (so what data/motif_mining.py writes is such a list)
    ATtRACT         a table with tabs; Mutated = no, and one Organism if asked for
    ATtRACT's pwm   `>matrix_id<TAB>length`, then one row of probabilities of A, C, G, U per position
    MEME            `MEME version 4` with ALPHABET= ACGU or ACGT and letter-probability matrices

Words are normalised by the same function as sequences (data/normalise.py): upper case, U for T. Ambiguity codes and
matrices are written out, up to a cap. A file that spells uracil both ways is refused: one of the two spellings is a
mistake, and which one decides what is searched (specs: rnaernie 0.1, 3.3).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.alphabet import IUPAC
from data.errors import DataError
from data.formats.motif_matrices import IUPAC_LETTERS, Matrix, consensus, read_meme, read_pwm
from data.formats.text import read_lines
from data.normalise import LetterPolicy, Normaliser

_TABLE_COLUMNS = ("Motif", "Mutated", "Organism")
_SPELLED = frozenset(IUPAC + "T" + IUPAC.lower() + "t")
_NORMALISE = Normaliser(LetterPolicy(inosine="drop"))


@dataclass
class MotifWords:
    """``words``: distinct, in the order in which they were met. ``left_out``: how many motifs or words, by reason."""

    words: list[str] = field(default_factory=list)
    read: int = 0  # motifs in the files
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Motif:
    line: int
    text: str  # as it stands in the file, or the consensus of a matrix


def read_motifs(
    paths: Sequence[str | Path],
    min_len: int = 1,
    max_len: int = 10_000,
    organism: str | None = None,
    threshold: float = 0.25,
    expansions: int = 4096,
) -> MotifWords:
    """The words of all files together, those of min_len to max_len letters.

    ``organism`` chooses among the rows of ATtRACT tables; lists and matrices name no organism and are taken whole.
    ``threshold``: letters of a matrix with at least this probability belong to their position. ``expansions``: the most
    words that one motif may stand for. ``left_out`` counts too_short, too_long, duplicate, mutated, other_organism.

    Raises DataError naming file and line for whatever cannot be a motif, for an empty file, for T and U in one file,
    for a table without its columns, and for a motif that stands for too many words.
    """
    found = MotifWords()
    seen: set[str] = set()
    for path in map(Path, paths):
        motifs = list(_read(path, organism, threshold, found))
        if not motifs:
            if organism is not None and found.left_out["other_organism"]:
                raise DataError(f"{path}: holds no motif of the organism {organism}; check its spelling in the table.")
            raise DataError(f"{path}: holds no motif; check the file, or leave it out.")
        found.read += len(motifs)
        _require_one_spelling(path, motifs)
        for motif, word in zip(motifs, _normalised(path, motifs), strict=True):
            size = len(word)
            if size < min_len or size > max_len:
                found.left_out["too_short" if size < min_len else "too_long"] += 1
                continue
            for plain in _written_out(word, path, motif.line, expansions):
                if plain in seen:
                    found.left_out["duplicate"] += 1
                else:
                    seen.add(plain)
                    found.words.append(plain)
    return found


def _read(path: Path, organism: str | None, threshold: float, found: MotifWords) -> Iterator[_Motif]:
    lines = _lines(path)
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if first.startswith("MEME version"):
        yield from (_of_matrix(path, matrix, threshold) for matrix in read_meme(path, lines))
    elif first.startswith(">"):
        yield from (_of_matrix(path, matrix, threshold) for matrix in read_pwm(path, lines))
    elif "\t" in first:
        yield from _table(path, lines, organism, found)
    else:
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if text:
                yield _Motif(number, text)


def _lines(path: Path) -> list[str]:
    try:
        return [line.decode("ascii") for lines in read_lines(path) for line in lines]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text file of motifs (it has bytes that are not ASCII); check it.") from error


def _table(path: Path, lines: list[str], organism: str | None, found: MotifWords) -> Iterator[_Motif]:
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    header = [name.strip() for name in rows[0][1]]
    missing = [name for name in _TABLE_COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path}, line {rows[0][0]}: the table has no column {' and no column '.join(missing)}, expected ATtRACT's "
            f"{', '.join(_TABLE_COLUMNS)}; give its header line, or a plain list of motifs."
        )
    motif, mutated, species = (header.index(name) for name in _TABLE_COLUMNS)
    for number, fields in rows[1:]:
        if len(fields) <= max(motif, mutated, species):
            raise DataError(
                f"{path}, line {number}: has {len(fields)} fields, but the header has {len(header)}; get the table "
                "again."
            )
        if fields[mutated].strip() not in ("yes", "no"):
            raise DataError(
                f"{path}, line {number}: Mutated is {fields[mutated]!r}, expected yes or no; correct the line."
            )
        if fields[mutated].strip() != "no":
            found.left_out["mutated"] += 1
        elif organism is not None and fields[species].strip() != organism:
            found.left_out["other_organism"] += 1
        else:
            yield _Motif(number, fields[motif].strip())


def _of_matrix(path: Path, matrix: Matrix, threshold: float) -> _Motif:
    return _Motif(matrix.line, consensus(matrix, threshold))


def _require_one_spelling(path: Path, motifs: list[_Motif]) -> None:
    with_t = next((m for m in motifs if "T" in m.text.upper()), None)
    with_u = next((m for m in motifs if "U" in m.text.upper()), None)
    if with_t and with_u:
        raise DataError(
            f"{path}: spells uracil T in line {with_t.line} and U in line {with_u.line}; spell it one way throughout."
        )


def _normalised(path: Path, motifs: list[_Motif]) -> list[str]:
    for motif in motifs:
        wrong = next((letter for letter in motif.text if letter not in _SPELLED), None)
        if wrong is not None or not motif.text:
            what = f"the motif {motif.text!r} has {wrong!r}" if wrong else "the motif is empty"
            raise DataError(
                f"{path}, line {motif.line}: {what}, expected A, C, G, U (or T) and IUPAC codes; correct the line."
            )
    normalised = _NORMALISE([motif.text.encode() for motif in motifs], str(path))
    return [sequence.decode() for sequence in normalised.sequences]


def _written_out(word: str, path: Path, line: int, expansions: int) -> Iterator[str]:
    """Every word of A, C, G and U that ``word`` stands for."""
    choices = [IUPAC_LETTERS[letter] for letter in word]
    count = 1
    for letters in choices:
        count *= len(letters)
    if count > expansions:
        raise DataError(
            f"{path}, line {line}: the motif {word} stands for {count:,} words, more than expansions = {expansions}; "
            "raise expansions, raise the threshold of matrices, or leave the motif out."
        )
    return ("".join(letters) for letters in itertools.product(*choices))
