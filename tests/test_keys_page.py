"""docs/keys.md holds every key of a recipe and a corpus with its default, as the code has them."""

from __future__ import annotations

import re

from data.structured import all_keys
from pretrain.config import Recipe
from tests.keys import PAGE, page

# Names that say it, the shape of a model, and what the row beside it explains.
NEED_NO_WORD = {"name", "kind", "path", "fasta", "layers", "width", "heads", "ffn", "vocab", "dropout"}
NEED_NO_WORD |= {"triangle_heads", "fold"}


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tests.keys"


def test_it_has_every_key_of_a_recipe() -> None:
    written = page()
    for key in all_keys(Recipe()):
        assert "." not in key or f"| `{key}` |" in written, key


def test_every_key_has_a_word_in_its_row_or_above() -> None:
    for section in page().split("\n### ")[1:]:
        for key in re.findall(r"^\| `([^`]+)` \| [^|]* \|  \|$", section, flags=re.MULTILINE):
            leaf = key.rpartition(".")[2]
            assert leaf in NEED_NO_WORD or f"`{leaf}`" in section.replace(f"`{key}`", ""), key
