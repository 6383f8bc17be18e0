"""RNA-MSM's layouts: round trips bit for bit, rows that were never trained, and files that nobody should execute."""

import contextlib
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from models import MODELS
from models.errors import ModelError
from models.layouts import rnamsm as layout
from models.layouts.detect import LAYOUTS, read_checkpoint
from models.layouts.releasing import WriteOptions
from models.layouts.rnamsm_rows import never_trained
from models.rnamsm import ANSWERS, NEVER, RNAMSM, RNAMSMConfig
from tests.models.conftest import telling_weights

CONFIG = RNAMSMConfig(layers=2, width=24, heads=3, ffn=40)
TRAINED = [layout.TOKENS.index(t) for t in ("<cls>", "<mask>", *"ACGUX-")]


def fresh(seed=0):
    torch.manual_seed(seed)
    return RNAMSM(CONFIG)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def original_state(seed=2):
    """As the authors' checkpoint: every one of the 12 rows trained, the contact head fitted."""
    generator = torch.Generator().manual_seed(seed)
    state = layout.to_original(telling_weights(fresh()).state_dict(), CONFIG)
    state = {name: torch.randn(x.shape, generator=generator) for name, x in state.items()}
    state["lm_head.weight"] = state["embed_tokens.weight"].clone()
    return state


def test_the_model_is_known_everywhere():
    assert MODELS["rnamsm"] == (RNAMSMConfig, RNAMSM)
    assert LAYOUTS["rnamsm"] is layout
    assert layout.tokens(CONFIG)[22] == "X"
    assert [layout.TOKENS[i] for i in ANSWERS] == list("ACGUX-")


@pytest.mark.parametrize(("kind", "path"), [("multimolecule", "."), ("original", "our-run.ckpt")])
def test_round_trip_is_bit_for_bit(tmp_path, kind, path):
    state = telling_weights(fresh()).state_dict()
    if kind == "original":  # it has 12 tokens
        state = layout.from_original(original_state(), 3)[1]
    written = layout.RELEASES[kind].write(tmp_path, state, CONFIG, WriteOptions("our-run"))
    assert written == tmp_path / path
    name, config, read = read_checkpoint(written, CONFIG.heads)
    assert (name, config) == ("rnamsm", CONFIG)
    if kind == "original":
        assert same(read, state)
    else:
        assert same(read, state)
        assert same(read_checkpoint(written)[2], layout.released(read))


def test_original_to_multimolecule_to_original_is_bit_for_bit(tmp_path):
    state = original_state()
    config, ours = layout.from_original(state, 3)
    layout.write_multimolecule(tmp_path, ours, config, WriteOptions("x"))
    back = layout.to_original(layout.from_directory(tmp_path)[1], config)
    assert back.keys() == state.keys()
    assert [n for n in state if not torch.equal(back[n], state[n])] == [
        "contact_head.regression.weight",
        "contact_head.regression.bias",
    ]


def test_names_of_the_authors_checkpoint():
    """Spec 7.2 and 12: 275 tensors, 95,911,301 parameters with the contact head."""
    config = RNAMSMConfig.named("base")
    with torch.device("meta"):
        state = RNAMSM(config).state_dict()
    state["embed.weight"] = torch.ones(28, 768)
    state["head.out.bias"] = torch.ones(28)
    state = {name: x if x.device.type == "cpu" else torch.zeros(()).expand(x.shape) for name, x in state.items()}
    written = layout.to_original(state, config)
    assert len(written) == 275
    assert sum(x.numel() for name, x in written.items() if name != "lm_head.weight") == 95_911_301
    assert written["msa_position_embedding"].shape == (1, 1024, 1, 1)
    assert layout.recognises_original(set(written))
    assert not any(other.recognises_original(set(written)) for n, other in LAYOUTS.items() if n != "rnamsm")


def test_rows_that_were_never_trained_are_filled_and_never_random():
    """Spec 7.4: N <- X, IUPAC letters <- the mean of their bases, . <- -, the rest <- X; padding stays zero."""
    state = fresh().state_dict()
    zero = {layout.TOKENS[i] for i in range(28) if not state["embed.weight"][i].any()}
    assert zero == {*layout.TOKENS} - {layout.TOKENS[i] for i in TRAINED}
    filled = layout.released(state)
    embed = dict(zip(layout.TOKENS, filled["embed.weight"], strict=True))
    bias = dict(zip(layout.TOKENS, filled["head.out.bias"].tolist(), strict=True))
    for token in ("N", "I", "|", "*", "?", "<null>", "<eos>", "<unk>"):
        assert torch.equal(embed[token], embed["X"]), token
    assert torch.equal(embed["."], embed["-"])
    torch.testing.assert_close(embed["R"], (embed["A"] + embed["G"]) / 2)
    torch.testing.assert_close(embed["B"], (embed["C"] + embed["G"] + embed["U"]) / 3)
    assert not embed["<pad>"].any()
    assert {token for token, x in bias.items() if x == 0} == set("ACGUX-")
    assert {x for token, x in bias.items() if token not in "ACGUX-"} == {NEVER}
    assert torch.equal(filled["embed.weight"][TRAINED], state["embed.weight"][TRAINED])
    assert same(layout.released(filled), filled)


FILLED = {  # Markdown on a release of our own training
    "multimolecule": "- Rows of tokens that training never showed are filled: `<eos> <unk> <null> N I | * ?` as `X`, "
    "`.` as `-`, `R` the mean of `A G`, `Y` the mean of `C U`, `S` the mean of `C G`, `W` the mean of `A U`, "
    "`K` the mean of `G U`, `M` the mean of `A C`, `B` the mean of `C G U`, `D` the mean of `A G U`, "
    "`H` the mean of `A C U`, `V` the mean of `A C G`. Their output bias is -30, so that they are never predicted.\n",
    "original": "- `original/`: Rows of tokens that training never showed are filled: `<eos> <unk> N` as `X`. Their "
    "output bias is -30, so that they are never predicted.\n",
}


@pytest.mark.parametrize("kind", FILLED)
def test_filled_rows_are_told(kind):
    """Spec 7.4; what stands there is checked above, and here that the telling is of the same tokens."""
    tell, options = layout.RELEASES[kind].filled, WriteOptions("x")
    state = fresh().state_dict()
    assert tell(state, options) == FILLED[kind]
    filled = layout.released(state)["embed.weight"]
    differ = {layout.TOKENS[i] for i in range(28) if not torch.equal(filled[i], state["embed.weight"][i])}
    assert differ == set(never_trained(state))
    older = tell(state, WriteOptions("x", vocabulary=26))
    assert ("|" in older, "?" in older) == (False, False)
    theirs = layout.from_original(original_state(), 3)[1]  # N, <eos> and <unk> were trained
    assert ("<null> I | * ?` as `X`" in tell(theirs, options)) == (kind == "multimolecule")
    assert tell(layout.released(theirs), options) == ""


def test_vocabulary_of_26_and_bf16(tmp_path):
    state = telling_weights(fresh()).state_dict()
    options = WriteOptions("x", torch.bfloat16, shard_bytes=20_000, vocabulary=26)
    layout.write_multimolecule(tmp_path, state, CONFIG, options)
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, read = layout.from_directory(tmp_path)
    assert config == CONFIG
    lost = [layout.TOKENS.index(token) for token in "|?"]
    kept = [i for i in range(28) if i not in lost]
    assert torch.equal(read["embed.weight"][kept], state["embed.weight"][kept].bfloat16().float())
    assert not read["embed.weight"][lost].any()
    assert read["head.out.bias"][lost].tolist() == [NEVER, NEVER]


def lightning_file(path: Path) -> None:
    """A checkpoint as Lightning writes it: hyper-parameters pickled as objects of a class of the script."""
    module = types.ModuleType("authors_script")

    class OptimizerConfig:
        def __init__(self):
            self.betas, self.extra = (0.9, 0.999), {"max_steps": 500000}

    OptimizerConfig.__module__, OptimizerConfig.__qualname__ = "authors_script", "OptimizerConfig"
    module.OptimizerConfig = OptimizerConfig
    sys.modules["authors_script"] = module
    try:
        content = {"epoch": 3, "hyper_parameters": {"optimizer_config": OptimizerConfig()}}
        torch.save(content | {"state_dict": original_state()}, path)
    finally:
        del sys.modules["authors_script"]


def test_a_lightning_checkpoint_is_read_without_its_classes(tmp_path):
    lightning_file(tmp_path / "RNA_MSM_pretrained.ckpt")
    name, config, state = read_checkpoint(tmp_path / "RNA_MSM_pretrained.ckpt", 3)
    assert (name, config) == ("rnamsm", CONFIG)
    assert same(state, layout.from_original(original_state(), 3)[1])


class Malicious:
    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return Path.touch, (Path(self.where),)


class SystemCall:
    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.where}",)


@pytest.mark.parametrize("kind", [Malicious, SystemCall])
def test_nothing_in_a_checkpoint_runs(tmp_path, kind):
    proof = tmp_path / "ran"
    torch.save({"state_dict": original_state(), "hyper_parameters": kind(str(proof))}, tmp_path / "bad.ckpt")
    with contextlib.suppress(ModelError):  # refused, or read with the object left out
        read_checkpoint(tmp_path / "bad.ckpt", 3)
    assert not proof.exists()
    content = pickle.dumps(kind(str(proof)))
    pickle.loads(content)
    assert proof.exists()  # it would have run


def test_refusals(tmp_path):
    state = original_state()
    with pytest.raises(ModelError, match=r"embed_positions\.weight"):
        layout.from_original({n: x for n, x in state.items() if n != "embed_positions.weight"}, 3, "file.ckpt")
    with pytest.raises(ModelError, match="untied"):
        layout.from_original(state | {"lm_head.weight": state["lm_head.weight"] + 1}, 3, "file.ckpt")
    with pytest.raises(ModelError, match=r"layers\.0\.extra"):
        layout.from_original(state | {"layers.0.extra": torch.zeros(1)}, 3, "file.ckpt")
    with pytest.raises(ModelError, match="12"):
        layout.from_original(state | {"embed_tokens.weight": torch.zeros(11, 24)}, 3, "file.ckpt")
    ours = layout.from_original(state, 3)[1]
    layout.write_multimolecule(tmp_path, ours, CONFIG, WriteOptions("x"))
    content = json.loads((tmp_path / "config.json").read_text())
    older = content | {"layer_type": "standard", "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert layout.from_directory(tmp_path)[0] == CONFIG
    (tmp_path / "config.json").write_text(json.dumps(content | {"embed_positions_msa": False}))
    with pytest.raises(ModelError, match="embed_positions_msa"):
        layout.from_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "vocab.txt").write_text((tmp_path / "vocab.txt").read_text().replace("X\n", "Z\n"))
    with pytest.raises(ModelError, match="lacks X"):
        layout.from_directory(tmp_path)
    short = RNAMSMConfig(layers=1, width=8, heads=2, ffn=8, max_positions=64)
    with pytest.raises(ModelError, match="as many positions as rows"):
        layout.to_multimolecule(RNAMSM(short).state_dict(), short)
