"""Small RNAErnie models with telling weights, and rows for them, for the tests of this folder."""

import torch

from models.rnaernie import RNAErnie, RNAErnieConfig
from tests.models.conftest import telling_weights

SMALL = {"layers": 3, "width": 48, "heads": 4, "ffn": 96}


def small(**overrides):
    """3 blocks, width 48, 4 heads, 57 tokens, in evaluation mode; keyword arguments override the configuration."""
    return telling_weights(RNAErnie(RNAErnieConfig(**SMALL | overrides))).eval()


def rows(tokens=57):
    """Token rows <cls> letters <eos> of several lengths, with masks, <unk> and, if there are any, type tokens."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (2, 9, 31, 9, 17):
        row = torch.randint(6, 10, (length,), generator=generator)
        row[0], row[-1] = 1, 2
        row[1 : length - 1 : 6] = 4
        row[3 : length - 1 : 7] = 3
        if tokens > 28 and length > 10:
            row[-3], row[-2] = 28, 29 + length % 28
        made.append(row)
    return made
