"""Attention with dropout on CPU: the same function and gradients as written out naively, for the weights it kept."""

import pytest
import torch

from models.layers import dropout_attention as module
from models.layers.attention import attention

LENGTHS = (7, 5, 5, 3)
P = 0.25


def packed(lengths, dtype=torch.float64):
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 2, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def naive(q, k, v, is_key_BL, kept, share):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if is_key_BL is not None:
        scores = scores.masked_fill(~is_key_BL[:, None, None, :], -torch.inf)
    return (scores.softmax(-1) * kept / share) @ v


@pytest.mark.parametrize("cached", [1, 100, 2**19])  # one row of N at a time, a few, all
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients_are_those_of_the_kept_weights(monkeypatch, cached, padded):
    monkeypatch.setattr(module, "CACHED", cached)
    torch.manual_seed(1)
    mine = [torch.randn(3, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs = [x.detach().clone().requires_grad_() for x in mine]
    is_key_BL = torch.arange(6) < torch.tensor([6, 4, 1])[:, None] if padded else None
    kept = []
    draw = module.draw_kept

    def recorded(*given):
        kept.append(draw(*given))
        return kept[-1].clone()

    monkeypatch.setattr(module, "draw_kept", recorded)
    out = module.DropoutAttention.apply(*mine, is_key_BL, P)
    expected = naive(*theirs, is_key_BL, torch.cat(kept).view(3, 2, 6, 6), 1 - P)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert not torch.cat(kept).all()
    torch.testing.assert_close(out, expected)
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_the_seed_decides_and_half_precision_keeps_its_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, cu = packed(LENGTHS, dtype)
        outs = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            outs.append(attention(q, k, v, cu, max(LENGTHS), dropout=P, kernel="sdpa"))
        assert outs[0].dtype == dtype
        assert torch.equal(outs[0], outs[1])
        assert not torch.equal(outs[0], outs[2])
        outs[0].float().sum().backward()
        assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in (q, k, v))


def test_autocast_does_not_reach_the_weights():
    q, k, v, cu = packed(LENGTHS, torch.float32)
    torch.manual_seed(0)
    plain = attention(q, k, v, cu, max(LENGTHS), dropout=P, kernel="sdpa")
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, attention(q, k, v, cu, max(LENGTHS), dropout=P, kernel="sdpa"))
