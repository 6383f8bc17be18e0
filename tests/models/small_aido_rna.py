"""A small AIDO.RNA with telling weights, and rows of its vocabulary, for the tests of this folder."""

import torch

from models.aido_rna import AidoRNA, AidoRNAConfig
from tests.models.conftest import telling_weights

SMALL = {"layers": 3, "width": 48, "heads": 4, "ffn": 128}
LIKE_1M = {"norm": "rms", "bias": False}


def build(**overrides):
    """3 blocks, width 48, 4 heads; keyword arguments override the configuration."""
    return telling_weights(AidoRNA(AidoRNAConfig(**SMALL | overrides))).eval()


def rows():
    """Token rows [CLS] letters [SEP] of several lengths: A, G, C, T, N and [MASK]."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.tensor([5, 6, 7, 8, 10])
    found = []
    for length in (2, 9, 31, 9, 17):
        row = letters[torch.randint(5, (length,), generator=generator)]
        row[1 : length - 1 : 6] = 1
        row[0], row[-1] = 2, 3
        found.append(row)
    return found


def padded(found):
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)  # [PAD] is 0
