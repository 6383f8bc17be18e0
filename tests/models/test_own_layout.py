"""Our own layout: what is written reads back as the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.errors import ModelError
from models.layouts import own
from models.rinalmo import RiNALMo, RiNALMoConfig

CONFIG = RiNALMoConfig(layers=2, width=32, heads=2, ffn=40, vocab=60)
CLASSES = {"rinalmo": RiNALMoConfig}
TOKENS = [f"<{i}>" for i in range(60)]


@pytest.mark.parametrize("shard_bytes", [None, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_reads_back(shard_bytes: int | None, dtype: torch.dtype, tmp_path: Path) -> None:
    state = RiNALMo(CONFIG).state_dict()
    own.write(tmp_path, "rinalmo", state, CONFIG, TOKENS, dtype, shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_bytes is not None)
    name, config, read = own.read(tmp_path, CLASSES)
    assert (name, config) == ("rinalmo", CONFIG)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key].to(dtype).float()) for key in state)
    assert (tmp_path / "vocab.txt").read_text().split() == TOKENS


def test_refusals(tmp_path: Path) -> None:
    state = RiNALMo(CONFIG).state_dict()
    with pytest.raises(ModelError, match="the vocabulary has 3 tokens, but the model 60"):
        own.write(tmp_path, "rinalmo", state, CONFIG, TOKENS[:3])
    own.write(tmp_path, "rinalmo", state, CONFIG, TOKENS)
    content = json.loads((tmp_path / "config.json").read_text())
    for changed, message in (
        ({**content, "model": "x"}, "the model is 'x', but must be one of rinalmo"),
        ({**content, "config": {**content["config"], "later": 1}}, "rinalmo has no later"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=message):
            own.read(tmp_path, CLASSES)
