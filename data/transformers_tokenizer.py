"""A SentencePiece tokenizer as the two files from which transformers makes a fast tokenizer with the same ids.

Written as plain JSON, so nothing of transformers is needed to write it; tests hold it against `AutoTokenizer`.

- Unigram: both programs look for the best sum of scores from left to right and keep the first best. Ours have scores
  whose sums are exact (`data.sentencepiece_training`), so single and double precision cannot disagree.
- BPE: SentencePiece merges the neighbours whose union has the best score, the leftmost first; the other program looks
  up pairs in a list. Of all pairs that make up a piece exactly one is ever merged: within the letters of a piece that
  is going to stand, merges happen in the order in which they happen in the piece alone. So the list has one pair per
  piece, found by merging the piece alone, and no two pairs tie.
"""

from __future__ import annotations

from typing import Any

from data.normalise import LETTERS_ON_DISK
from data.sentencepiece_tokenizer import SPECIALS, STRETCH, SentencePieceTokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The content of tokenizer.json: folding of U, T and case, stretches, model, `<cls>` and `<eos>`."""
    cls, eos = tokenizer.ids[tokenizer.cls], tokenizer.ids[tokenizer.eos]
    single = [_special(tokenizer.cls), _sequence("A"), _special(tokenizer.eos)]
    spellings = {letter.lower(): letter for letter in LETTERS_ON_DISK} | {"T": "U", "t": "U"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(SPECIALS)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": spelling}, "content": letter}
                for spelling, letter in spellings.items()
            ],
        },
        # Each letter that the vocabulary lacks stands alone, so that neighbours do not become one <unk>.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"[{LETTERS_ON_DISK}]{{1,{STRETCH}}}|[^{LETTERS_ON_DISK}]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, _sequence("B"), _special(tokenizer.eos)],
            "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]}
                for token, i in ((tokenizer.cls, cls), (tokenizer.eos, eos))
            },
        },
        "decoder": {"type": "Fuse"},
        "model": _unigram(tokenizer) if tokenizer.settings["kind"] == "unigram" else _bpe(tokenizer),
    }


def tokenizer_config(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "bos_token": tokenizer.cls,
        "cls_token": tokenizer.cls,
        "eos_token": tokenizer.eos,
        "sep_token": tokenizer.eos,
        "pad_token": tokenizer.pad,
        "unk_token": tokenizer.unk,
        "mask_token": tokenizer.mask,
    }


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _unigram(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": tokenizer.ids[tokenizer.unk],
        "vocab": [[token, score] for token, score in zip(tokenizer.tokens, tokenizer.scores, strict=True)],
        "byte_fallback": False,
    }


def _bpe(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    scores = dict(zip(tokenizer.tokens, tokenizer.scores, strict=True))
    pieces = [token for token in tokenizer.tokens[len(SPECIALS) :] if len(token) > 1]
    pieces.sort(key=lambda piece: -scores[piece])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokenizer.unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": tokenizer.ids,
        "merges": [pair for pair in (last_merge(piece, scores) for piece in pieces) if pair is not None],
    }


def last_merge(piece: str, scores: dict[str, float]) -> list[str] | None:
    """The two parts that ``piece`` is merged from last; None if its letters merge into something else."""
    parts = list(piece)
    while len(parts) > 2:
        found = [
            (scores[parts[i] + parts[i + 1]], -i) for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in scores
        ]
        if not found:
            return None
        at = -max(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
