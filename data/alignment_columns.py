"""A raw alignment -> letters A C G U X - over its match columns, row 0 the query, and the structure over them.

Letters: T becomes U, IUPAC ambiguity letters and inosine become X, `.` `_` `~` are gaps; any other letter is an error.
So is an alignment of which more than half becomes X: proteins may be spelled so.

Columns: in a3m and a2m, those of the capitals and `-`; the rest was inserted. Stockholm and gapped FASTA mark no query,
so match columns are chosen (by Stockholm's RF line, by the share of gaps, or all of them), and then a row becomes the
query and the columns in which it has a gap go too, or (query none) the consensus frame stays and row 0 may hold gaps.
Rows that have nothing but gaps left are dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data import randomness
from data.alignment_families import family_of
from data.dot_bracket import restricted
from data.errors import DataError
from data.formats.raw_alignment import RawAlignment, decoded

LETTERS = "-ACGUX"  # all that an alignment holds, sorted
COLUMNS = ("rf", "gaps", "all")
QUERIES = ("first", "random", "none")
CHANGE_KINDS = (
    "t_to_u",
    "ambiguity_to_x",
    "inosine_to_x",
    "inserted_letters_removed",
    "rows_without_letters_removed",
    "structures_unreadable",
)

_GAP = ord("-")
_GAPS = b"-._~"
_AMBIGUOUS = b"RYKMSWBDHVN"
# Share of X among the letters of an alignment above which it is none of RNA. Of amino acids, two thirds of those that
# are spelled like a nucleotide or an ambiguity code become X; of the letters of any family of Rfam, at most 3 %.
_MOST_X = 0.5
_INSERTED = bytes(range(ord("a"), ord("z") + 1)) + b".*"
_PART = 1 << 20
_NOT_LOWER_CASE = bytes(code for code in range(256) if not bytes([code]).islower())


def _letter_table() -> npt.NDArray[np.uint8]:
    """[256] what a character becomes; 0 for one that no alignment of RNA holds."""
    table = np.zeros(256, dtype=np.uint8)
    pairs = [(b"ACGUX", b"ACGUX"), (b"T", b"U"), (_AMBIGUOUS + b"I", b"X" * (len(_AMBIGUOUS) + 1))]
    for characters, become in pairs:
        for spelled in (characters, characters.lower()):
            table[np.frombuffer(spelled, dtype=np.uint8)] = np.frombuffer(become, dtype=np.uint8)
    table[np.frombuffer(_GAPS, dtype=np.uint8)] = _GAP
    return table


_TABLE = _letter_table()


@dataclass(frozen=True)
class ColumnRules:
    """``columns`` of COLUMNS; ``max_gaps``: share of gaps up to which a column is kept where gaps decide; ``query`` of
    QUERIES, with ``seed`` for the random one.
    """

    columns: str = "rf"
    max_gaps: float = 0.5
    query: str = "first"
    seed: int = 0


@dataclass
class CleanAlignment:
    """``letters`` uint8 [rows, columns], ASCII of LETTERS; ``query``: name of row 0; ``structure`` [columns] or None.

    ``changes``: how many of each of CHANGE_KINDS.
    """

    letters: npt.NDArray[np.uint8]
    query: str
    structure: str | None
    changes: Counter[str] = field(default_factory=Counter)


def clean(raw: RawAlignment, rules: ColumnRules) -> CleanAlignment:
    """Raises DataError, naming file and row, for rows of unequal length and for letters that RNA does not have."""
    changes: Counter[str] = Counter()
    rows = raw.rows
    if raw.anchored:
        rows = [row.translate(None, _INSERTED) for row in raw.rows]
        shortened = (given for given, row in zip(raw.rows, rows, strict=True) if len(given) != len(row))
        changes["inserted_letters_removed"] = sum(len(given.translate(None, _NOT_LOWER_CASE)) for given in shortened)
    given = _matrix(raw, rows)
    letters = _TABLE[given]
    if not letters.all():
        _refuse_foreign_letters(raw, given, letters)
    _refuse_mostly_ambiguous(raw, given, letters)
    kept = np.arange(letters.shape[1]) if raw.anchored else _match_columns(raw, letters, rules)
    query = _query(raw, letters, kept, rules)
    if not raw.anchored and rules.query != "none":
        kept = kept[letters[query, kept] != _GAP]
    filled = np.flatnonzero((letters[:, kept] != _GAP).any(axis=1))
    changes["rows_without_letters_removed"] = len(letters) - len(filled)
    order = np.concatenate([filled[filled == query], filled[filled != query]])
    _count_changes(given, order, kept, changes)
    if not raw.anchored:
        every = np.count_nonzero(letters != _GAP)
        changes["inserted_letters_removed"] = int(every - np.count_nonzero(letters[:, kept] != _GAP))
    structure = _structure(raw, letters.shape[1], kept, changes)
    return CleanAlignment(letters[np.ix_(order, kept)], decoded(raw.names[query]), structure, changes)


def _matrix(raw: RawAlignment, rows: list[bytes]) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns] of the characters as given."""
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            after = "columns once insertions are removed" if raw.anchored else "columns"
            raise DataError(
                f"{raw.where}: row {i + 1} ({decoded(raw.names[i])}) has {len(row)} {after}, the first row "
                f"({decoded(raw.names[0])}) has {len(rows[0])}; all rows must have the same, so the sequences are not "
                "aligned or the file is damaged."
            )
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), len(rows[0]))


def _refuse_foreign_letters(raw: RawAlignment, given: npt.NDArray[np.uint8], letters: npt.NDArray[np.uint8]) -> None:
    row, column = np.argwhere(letters == 0)[0].tolist()
    raise DataError(
        f"{raw.where}: row {row + 1} ({decoded(raw.names[row])}) holds {chr(given[row, column])!r} in column "
        f"{column + 1}, which is no letter of an RNA alignment; give nucleotide alignments, or mend the row."
    )


def _refuse_mostly_ambiguous(raw: RawAlignment, given: npt.NDArray[np.uint8], letters: npt.NDArray[np.uint8]) -> None:
    """A protein alignment may hold nothing but letters that nucleotides have too: D, H, K, M, N, R, S, V, W, Y."""
    unclear = letters == ord("X")
    count, every = np.count_nonzero(unclear), np.count_nonzero(letters != _GAP)
    if count > _MOST_X * every:
        seen = bytes(np.unique(given[unclear] & 0xDF).tolist()).decode()  # in upper case
        raise DataError(
            f"{raw.where}: {count:,} of its {every:,} letters are ambiguity codes ({seen}), so this is no alignment of "
            "nucleotides but perhaps of proteins; give nucleotides, or leave it out."
        )


def _match_columns(raw: RawAlignment, letters: npt.NDArray[np.uint8], rules: ColumnRules) -> npt.NDArray[np.int64]:
    """The columns that are no insertions: by the RF line, or where there is none (or gaps are asked for) by gaps."""
    columns = letters.shape[1]
    if rules.columns == "all":
        return np.arange(columns)
    reference = raw.marks.get("RF")
    if rules.columns == "rf" and reference is not None:
        if len(reference) != columns:
            raise DataError(
                f"{raw.where}: its RF line has {len(reference)} columns, its rows have {columns}; the file is damaged."
            )
        return np.flatnonzero(~np.isin(np.frombuffer(reference, dtype=np.uint8), np.frombuffer(_GAPS, dtype=np.uint8)))
    return np.flatnonzero(np.count_nonzero(letters == _GAP, axis=0) <= rules.max_gaps * len(letters))


def _query(raw: RawAlignment, letters: npt.NDArray[np.uint8], kept: npt.NDArray[np.int64], rules: ColumnRules) -> int:
    """The row that comes first: the first one with letters in the kept columns, or a random one of those."""
    able = np.flatnonzero((letters[:, kept] != _GAP).any(axis=1))
    if not able.size:
        return 0
    if raw.anchored or rules.query != "random":
        return int(able[0])
    draw = randomness.bits(randomness.key(rules.seed, "query", family_of(raw)), [0])
    return int(able[randomness.below(draw, len(able))[0]])


def _count_changes(
    given: npt.NDArray[np.uint8], order: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], changes: Counter[str]
) -> None:
    counts = character_counts(given[np.ix_(order, kept)])
    for kind, characters in (("t_to_u", b"T"), ("ambiguity_to_x", _AMBIGUOUS), ("inosine_to_x", b"I")):
        both = np.frombuffer(characters + characters.lower(), dtype=np.uint8)
        changes[kind] = int(counts[both].sum())


def character_counts(characters: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """[256] how often each code occurs; in parts, since numpy counts copies of eight bytes per character."""
    flat, counts = characters.reshape(-1), np.zeros(256, dtype=np.int64)
    for start in range(0, len(flat), _PART):
        counts += np.bincount(flat[start : start + _PART], minlength=256)
    return counts


def _structure(raw: RawAlignment, columns: int, kept: npt.NDArray[np.int64], changes: Counter[str]) -> str | None:
    """SS_cons over the kept columns. One that cannot be read costs a probe, not the alignment: it is left out."""
    given = raw.marks.get("SS_cons")
    if given is None:
        return None
    try:
        if len(given) != columns:
            raise ValueError(f"{len(given)} characters for {columns} columns")
        return restricted(decoded(given), kept)
    except ValueError:
        changes["structures_unreadable"] += 1
        return None
