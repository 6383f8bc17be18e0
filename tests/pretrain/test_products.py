"""Which library multiplies fp32 matrices on a CPU, and that the products stay those of fp32."""

from __future__ import annotations

import pytest
import torch

from models.rinalmo import RiNALMo, RiNALMoConfig
from models.rnamsm import RNAMSM, RNAMSMConfig
from pretrain import products

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Make this machine look like another one."""

    def describe(text: str) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(products, "CPU", path)

    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    return describe


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(AMD.replace("AuthenticAMD", "GenuineIntel"), id="MKL's own maker"),
        pytest.param(AMD.replace("avx512f ", ""), id="no AVX-512"),
        pytest.param(AMD.replace("avx512_bf16", "amx_bf16"), id="AMX, where factors would be rounded"),
        pytest.param("", id="unknown"),
    ],
)
def test_mkl_multiplies_where_onednn_is_no_faster_or_would_round(cpu, text) -> None:
    cpu(text)
    products.try_onednn()
    assert (products.products_by(), torch.backends.mkldnn.matmul.fp32_precision) == ("MKL", "ieee")


def test_onednn_multiplies_where_mkl_is_slow(cpu, monkeypatch) -> None:
    cpu(AMD + AMD.replace("AuthenticAMD", "GenuineIntel"))  # the first core counts
    monkeypatch.setattr(products, "_error", lambda: 4e-7)
    products.try_onednn()
    assert products.products_by() == "oneDNN"


def test_models_whose_products_are_large_and_have_few_shapes_take_onednn(cpu) -> None:
    cpu(AMD)
    with torch.device("meta"):
        small, large = RNAMSM(RNAMSMConfig(layers=1, width=128, heads=2, ffn=256)), RNAMSM(RNAMSMConfig.named("base"))
        packed = RiNALMo(RiNALMoConfig.named("micro"))
    chosen = []
    for model in (small, packed, large):
        products.choose_products(model)
        chosen.append(products.products_by())
    assert chosen == ["MKL", "MKL", "oneDNN"]


def test_a_processor_that_rounds_all_the_same_is_found_out(cpu, monkeypatch) -> None:
    cpu(AMD)
    monkeypatch.setattr(products, "_error", lambda: 1e-3)
    products.try_onednn()
    assert (products.products_by(), torch.backends.mkldnn.matmul.fp32_precision) == ("MKL", "ieee")


def test_the_error_tells_fp32_from_bfloat16(monkeypatch) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert products._error() < products.ROUNDING / 5
    matmul = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return matmul(a, b) if a.dtype == torch.float64 else matmul(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert products._error() > 10 * products.ROUNDING


@pytest.mark.parametrize("shape", [(3, 5, 7), (177, 64, 320), (640, 300, 31)])
def test_products_and_their_gradients_are_those_of_fp32_on_this_machine(shape) -> None:
    """Of all layouts that layers use; whichever library this machine was given."""
    products.try_onednn()
    m, k, n = shape
    generator = torch.Generator().manual_seed(1)
    a, b, grad = (torch.randn(s, generator=generator) for s in ((m, k), (n, k), (m, n)))
    wide_a, wide_b, wide_grad = a.double(), b.double(), grad.double()
    out, total = torch.empty(n, m), torch.ones(n, k)
    torch.addmm(torch.ones(n), a, b.t(), out=out.t())
    for found, expected in (
        (a @ b.t(), wide_a @ wide_b.t()),
        (out.t(), wide_a @ wide_b.t() + 1),
        (grad @ b, wide_grad @ wide_b),
        (total.addmm_(grad.t(), a), wide_grad.t() @ wide_a + 1),
        (torch.bmm(a.expand(4, m, k), b.expand(4, n, k).mT)[3], wide_a @ wide_b.t()),
    ):
        assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


def test_a_gpu_computes_fp32_in_fp32_sums_in_fp32_and_plans_no_attention_for_every_batch(monkeypatch) -> None:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cudnn.allow_tf32, cuda.matmul.allow_bf16_reduced_precision_reduction, cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        assert products.device_at_hand(torch.nn.Linear(1, 1)) == torch.device("cuda")
        assert not cudnn.allow_tf32
        assert not cuda.matmul.allow_tf32
        assert not cuda.matmul.allow_bf16_reduced_precision_reduction
        assert not cuda.cudnn_sdp_enabled()
    finally:
        cudnn.allow_tf32, cuda.matmul.allow_bf16_reduced_precision_reduction = before[:2]
        cuda.enable_cudnn_sdp(before[2])


def test_fp64_products_stay_those_of_fp64() -> None:
    products.try_onednn()
    a = torch.full((64, 64), 1 / 3, dtype=torch.float64)
    assert float((a @ a)[0, 0]) == pytest.approx(64 / 9, rel=1e-14)
