"""The options of the objective of alignments, and the checks of their values."""

from __future__ import annotations

from dataclasses import dataclass

from data.alphabet import NUCLEOTIDES
from data.msa_alphabet import LETTERS
from pretrain.objectives.masked import check_shares, refuse


@dataclass
class MSAConfig:
    name: str = "msa"
    max_columns: int = 1024  # `<cls>` included; longer alignments are cut to a random window
    max_rows: int = 1024  # drawn of an alignment, the query among them
    max_tokens: int = 16384  # of one alignment; rows are drawn so that rows x columns stay within
    query: str = "first"  # the row that is always drawn: first, or random, another one each time (docs/rnamsm.md)
    with_replacement: bool = False  # draw rows as the original does, so that some repeat
    deleted_blocks: int = 0  # runs of rows left out before drawing, as AlphaFold does (5); 0 switches it off
    deleted_fraction: float = 0.3  # of the alignment's rows, in each run
    masked_fraction: float = 0.15  # of all tokens but `<cls>`
    select: str = "tokens"  # tokens: each on its own; columns: all rows of a selected column
    mask_share: float = 0.8  # of selected tokens: becomes `<mask>`
    random_share: float = 0.1  # of selected tokens: becomes a random letter
    profile_share: float = 0.0  # of selected tokens: becomes what a random row has in that column; the rest stays
    random_letters: str = NUCLEOTIDES + "-"  # the pool of random letters
    random_differs: bool = False  # a random letter is never the original one
    parity: bool = False  # random tokens from the original's 12, `<pad>` among them, which hides a token from attention
    average: str = "alignments"  # alignments: every alignment counts alike; tokens: every target does


def check(config: MSAConfig) -> None:
    """Raises PretrainError that names the key of a value that cannot work."""
    if config.max_columns < 2:
        refuse("max_columns", config.max_columns, "at least 2: <cls> and a letter")
    if config.max_rows < 1:
        refuse("max_rows", config.max_rows, "at least 1")
    if config.max_tokens < config.max_columns:
        refuse("max_tokens", config.max_tokens, f"at least max_columns = {config.max_columns}, which is one row")
    if config.query not in ("first", "random"):
        refuse("query", config.query, "first or random")
    if config.deleted_blocks < 0:
        refuse("deleted_blocks", config.deleted_blocks, "0 or more")
    if not 0 < config.deleted_fraction < 1:
        refuse("deleted_fraction", config.deleted_fraction, "between 0 and 1")
    if not 0 < config.masked_fraction <= 1:
        refuse("masked_fraction", config.masked_fraction, "above 0 and at most 1")
    if config.select not in ("tokens", "columns"):
        refuse("select", config.select, "tokens or columns")
    if config.average not in ("alignments", "tokens"):
        refuse("average", config.average, "alignments or tokens")
    check_shares(config.mask_share, config.random_share)
    rest = 1 - config.mask_share - config.random_share
    if not 0 <= config.profile_share <= rest + 1e-9:
        refuse("profile_share", config.profile_share, f"between 0 and {rest:.3g}, what mask and random shares leave")
    pool = set(config.random_letters)
    if not pool <= set(LETTERS) or len(pool) != len(config.random_letters) or len(pool) < 2:
        refuse("random_letters", config.random_letters, f"two or more different letters of {LETTERS}")
    if config.parity and config.random_differs:
        refuse("random_differs", config.random_differs, "false with objective.parity: the original may keep a token")
