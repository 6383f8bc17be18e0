"""What the five models would run on a GPU, on fake tensors: see on_fake_cuda.py. CI has no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import MODELS
from tests.ranks import ROOT

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if compiler is None or torch.backends.cuda.is_built():
        pytest.skip("needs a C++ compiler, and torch's CPU build")
    to, of_torch = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so", Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", abi, f"-I{of_torch / 'include'}", SOURCE, "-o", to]
    libraries = of_torch / "lib"
    subprocess.run([*command, f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu"], check=True)
    return to


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_training_and_prediction_fit_a_gpu(model, library) -> None:
    command = [sys.executable, "-m", "tests.pretrain.on_fake_cuda", model]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, text=True, capture_output=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
