"""A small RiNALMo with telling weights, and packed rows, for the tests of this folder."""

import pytest
import torch

from models.rinalmo import RiNALMo, RiNALMoConfig

SMALL = {"layers": 3, "width": 80, "heads": 4, "ffn": 213}


def telling_weights(model, seed=1):
    """Matrices N(0, 0.2), vectors N(0, 0.5) (spec 11.2): a swapped branch or a forgotten beta shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2 if p.dim() > 1 else 0.5, generator=generator)
    return model


@pytest.fixture
def small():
    """Builds RiNALMo of 3 blocks, width 80, 4 heads; keyword arguments override the configuration."""

    def build(**overrides):
        return telling_weights(RiNALMo(RiNALMoConfig(**SMALL | overrides))).eval()

    return build


@pytest.fixture
def sequences():
    """Token rows <cls> letters <eos> of several lengths, with masks and letters outside A, C, G, T."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (2, 9, 31, 9, 17):
        row = torch.randint(5, 21, (length,), generator=generator)
        row[0], row[-1] = 0, 2
        row[1 : length - 1 : 6] = 4
        rows.append(row)
    return rows


def pack(rows):
    """(tokens [T], cu_seqlens [B+1], positions [T], max_seqlen) of token rows."""
    lengths = [len(row) for row in rows]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return torch.cat(list(rows)), cu_seqlens, torch.cat([torch.arange(n) for n in lengths]), max(lengths)


@pytest.fixture(name="pack")
def pack_fixture():
    return pack
