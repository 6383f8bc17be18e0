"""All attention kernels give the softmax of every sequence by itself, and refuse what they cannot do."""

import math
import subprocess
import sys

import pytest
import torch

from models.errors import ModelError
from models.layers import attention as module
from models.layers.attention import KERNELS, attention, length_groups, resolve_kernel
from models.layers.packing import sequence_of_token
from tests.ranks import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = {"one pair": [2], "equal": [7, 7, 7], "unequal": [2, 30, 11, 1, 29, 30], "long tail": [3, 3, 64]}


def naive(q, k, v, lengths):
    outs, start = [], 0
    for n in lengths:
        q_HLD, k_HLD, v_HLD = (x[start : start + n].transpose(0, 1) for x in (q, k, v))
        weights = torch.softmax(q_HLD @ k_HLD.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        outs.append((weights @ v_HLD).transpose(0, 1))
        start += n
    return torch.cat(outs)


def inputs(lengths, heads=3, dim=16, device=CPU, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(sum(lengths), heads, dim, generator=generator) for _ in range(4)]
    cu = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return [x.to(device, dtype) for x in qkv], cu


def compare(name, lengths, device, dtype, tolerance, run=None):
    (q, k, v, weight), cu = inputs(lengths, device=device, dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out = (run or attention)(*leaves, cu, max(lengths), **({} if run else {"kernel": name}))
    expected = naive(*exact, lengths)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    (out * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for ours, theirs in zip(leaves, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=3 * tolerance, rtol=0)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
def test_cpu_kernels_agree_with_softmax_per_sequence(kernel, lengths):
    if kernel in ("flash", "varlen"):
        with pytest.raises(ModelError, match=kernel):
            resolve_kernel(kernel, CPU, torch.float32, 0.0, 16)
        return
    compare(kernel, lengths, CPU, torch.float32, 2e-6)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_padded_sdpa_agrees_with_softmax_per_sequence(lengths):
    """The path of GPUs and of torch.compile, which does not cut into groups."""
    compare("sdpa", lengths, CPU, torch.float32, 2e-6, run=lambda q, k, v, cu, n: module._sdpa(q, k, v, cu, n, 0.0))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("dim", [16, 24, 32, 64])
@pytest.mark.parametrize("kernel", [*KERNELS, "auto"])
def test_cuda_kernels_agree_with_softmax_per_sequence(kernel, dim, lengths):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        resolve_kernel(kernel, CUDA, torch.bfloat16, 0.0, dim)
    except ModelError as e:
        pytest.skip(str(e))
    compare(kernel, lengths, CUDA, torch.bfloat16, 3e-2)


def test_half_precision_on_cpu():
    compare("sdpa", LENGTHS["unequal"], CPU, torch.bfloat16, 3e-2)


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "tolerance"),
    [
        ("sdpa", CPU, torch.float32, 1e-5),
        ("sdpa", CUDA, torch.bfloat16, 2e-2),
        ("flash", CUDA, torch.bfloat16, 2e-2),
    ],
)
def test_dropout_drops_attention_weights(kernel, device, dtype, tolerance):
    """With values one-hot per key the output is the dropped weight matrix: entries are 0 or weight / (1 - p)."""
    if device == CUDA and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    lengths, p = [40, 40, 24], 0.25
    try:
        resolve_kernel(kernel, device, dtype, p, 64)
    except ModelError as e:
        pytest.skip(str(e))
    cu = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    q = torch.zeros(sum(lengths), 1, 64, device=device, dtype=dtype)
    v = torch.cat([torch.eye(n, 64) for n in lengths])[:, None].to(device, dtype)
    out = attention(q, q, v, cu, max(lengths), dropout=p, kernel=kernel)[:, 0].float()
    dropped = 0
    for a, n in zip(cu.tolist(), lengths, strict=False):
        weights = out[a : a + n, :n] * n * (1 - p)
        assert torch.all((weights.abs() < tolerance) | ((weights - 1).abs() < tolerance))
        dropped += int((weights.abs() < tolerance).sum())
    assert dropped / sum(n * n for n in lengths) == pytest.approx(p, abs=0.03)
    assert torch.all(attention(q, q, v, cu, max(lengths), kernel=kernel).sum(-1) > 0.98)


def test_kernel_choice(monkeypatch):
    """What the automatic choice takes, as a table, on a machine that is imagined to have every kernel."""
    monkeypatch.setattr(module, "flash_attn_varlen_func", object())
    monkeypatch.setattr(module, "varlen_attn", object())
    monkeypatch.setattr(module, "_compute_capability", lambda index: (9, 0))
    half, single = torch.bfloat16, torch.float32
    assert resolve_kernel("auto", CUDA, half, 0.1, 64) == "flash"
    assert resolve_kernel("auto", CUDA, single, 0.1, 64) == "sdpa"
    assert resolve_kernel("auto", CPU, half, 0.0, 64) == "sdpa"
    assert resolve_kernel("auto", CUDA, half, 0.0, 20) == "sdpa"
    assert resolve_kernel("varlen", CUDA, half, 0.0, 24) == "varlen"
    monkeypatch.setattr(module, "flash_attn_varlen_func", None)
    assert resolve_kernel("auto", CUDA, half, 0.0, 64) == "varlen"
    assert resolve_kernel("auto", CUDA, half, 0.1, 64) == "sdpa"  # never silently without dropout
    with pytest.raises(ModelError, match=r"no attention dropout and the recipe asks for 0\.1"):
        resolve_kernel("varlen", CUDA, half, 0.1, 64)
    with pytest.raises(ModelError, match="not installed"):
        resolve_kernel("flash", CUDA, half, 0.1, 64)
    with pytest.raises(ModelError, match="float16 or bfloat16"):
        resolve_kernel("varlen", CUDA, single, 0.0, 64)
    monkeypatch.setattr(module, "_compute_capability", lambda index: (7, 5))
    assert resolve_kernel("auto", CUDA, half, 0.0, 64) == "sdpa"
    with pytest.raises(ModelError, match="unknown"):
        resolve_kernel("fast", CPU, single, 0.0, 64)


def test_length_groups_hold_similar_lengths_and_every_sequence_once():
    lengths = [5, 100, 98, 7, 91, 89, 5]
    groups = length_groups(lengths, shortest=0.9)
    assert sorted(b for group in groups for b in group) == list(range(7))
    assert [[lengths[b] for b in group] for group in groups] == [[100, 98, 91], [89], [7], [5, 5]]


def test_sequence_of_token():
    cu = torch.tensor([0, 2, 3, 7], dtype=torch.int32)
    assert sequence_of_token(cu, 7).tolist() == [0, 0, 1, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for CUDA")
def test_without_cuda_commands_start_without_the_tracer_of_torch_compile():
    """It takes as long to import as all the rest."""
    check = "import sys, pretrain.trainer, pretrain.evaluate; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
