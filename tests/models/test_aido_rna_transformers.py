"""Our released directory under plain transformers: its own modelling code, same outputs, padding, tokenizer, masks.

specs/aido_rna 2.2, 8 (c), 11.3. Every load here executes the code that lies in the directory, as users do.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from models.layouts import aido_rna as layout
from models.layouts.aido_rna_table import UNTRAINED
from models.layouts.detect import read_checkpoint
from models.layouts.releasing import WriteOptions
from tests.models.small_aido_rna import LIKE_1M, build, padded, rows

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install .[test])")
TRAINED = [i for i in range(16) if i not in UNTRAINED]


@pytest.fixture(autouse=True)
def modules_of_this_test_alone(tmp_path, monkeypatch):
    """transformers copies remote code into a cache, which must not be the user's."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def release(tmp_path):
    """Builds a model, releases it, and returns both model and directory."""

    def make(options=None, **overrides):
        model, directory = build(**overrides), tmp_path / "aido-release"
        directory.mkdir()
        layout.RELEASES["transformers"].write(directory, model.state_dict(), model.config, options or WriteOptions("x"))
        return model, directory

    return make


def load(directory, kind="AutoModelForMaskedLM", **options):
    model, info = getattr(transformers, kind).from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True, **options
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval(), info


@pytest.mark.parametrize("kind", [{}, LIKE_1M])
def test_logits_and_representations_of_a_padded_batch(release, pack, kind):
    model, directory = release(**kind)
    theirs, info = load(directory)
    assert not info["unexpected_keys"]
    encoder, _ = load(directory, "AutoModel")
    found = rows()
    ids = padded(found)
    mask = (ids != 0).long()
    assert not mask.all()
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        bare = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        logits, hidden = model(*pack(found)), model.hidden(*pack(found))
    real = mask.bool()
    assert (out.logits[real] - logits)[:, TRAINED].abs().max() <= 2e-5
    assert (out.hidden_states[-1][real] - hidden).abs().max() <= 1e-5
    assert torch.equal(bare, out.hidden_states[-1])
    assert len(out.hidden_states) == 4


def test_u_reads_as_t_and_is_never_predicted(release):
    _, directory = release()
    theirs, _ = load(directory)
    with torch.no_grad():
        t, u = (theirs(input_ids=torch.tensor([[2, 5, i, 6, 1, 3]])).logits for i in (8, 9))
    assert torch.equal(t, u)
    assert (t[..., 9] < t[..., 8] - 25).all()


def test_tokenizer(release):
    _, directory = release()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    for text, ids in {  # specs/aido_rna 2.2 and 11.3
        "ACGT": [2, 5, 7, 6, 8, 3],
        "acgu": [2, 5, 7, 6, 8, 3],
        "ACRYG": [2, 5, 7, 10, 10, 6, 3],
        "A C R Y G\n": [2, 5, 7, 10, 10, 6, 3],
        "AC[MASK]TtUu": [2, 5, 7, 1, 8, 8, 8, 8, 3],
        "ß.-*NN": [2, *[10] * 6, 3],
        "": [2, 3],
    }.items():
        assert tokenizer(text)["input_ids"] == ids, text
    assert len(tokenizer) == 16
    assert tokenizer.convert_ids_to_tokens(list(range(16))) == list(layout.TOKENS)
    batch = tokenizer(["ACGU", "GGGGGGN"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0].tolist() == [2, 5, 7, 6, 8, 3, 0, 0, 0]
    assert batch["attention_mask"].sum(1).tolist() == [6, 9]
    assert tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True) == "GGGGGGN"


def test_padding_changes_nothing(release):
    _, directory = release()
    model, _ = load(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        alone = model(**tokenizer("ACG[MASK]U", return_tensors="pt")).logits[0]
        together = model(**tokenizer(["ACG[MASK]U", "A" * 40], padding=True, return_tensors="pt")).logits[0]
    assert (together[: len(alone)] - alone).abs().max() <= 2e-5


def test_fill_mask_returns_trained_tokens_only(release):
    _, directory = release()
    fill = transformers.pipeline("fill-mask", model=str(directory), trust_remote_code=True)
    answers = fill("ACGU[MASK]GCAU", top_k=len(TRAINED))
    assert {answer["token"] for answer in answers} == set(TRAINED)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)
    letters = fill("ACGU[MASK]GCAU", targets=["A", "C", "G", "T"])
    assert {answer["sequence"] for answer in letters} == {f"ACGT{letter}GCAT" for letter in "ACGT"}


@pytest.mark.parametrize("kind", [{}, LIKE_1M])
def test_saved_again_by_its_class_it_is_still_read(release, tmp_path, kind):
    model, directory = release(**kind)
    theirs, _ = load(directory)
    theirs.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_aido_rna.py").is_file()
    name, config, state = read_checkpoint(tmp_path / "again")
    assert (name, config) == ("aido_rna", model.config)
    released = read_checkpoint(directory)[2]
    assert all(torch.equal(state[key], x) for key, x in released.items())
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())


def test_bf16_and_sharded_directories_load(release):
    model, directory = release(WriteOptions("x", torch.bfloat16, shard_bytes=50_000))
    theirs, info = load(directory, dtype="auto")
    assert not info["unexpected_keys"]
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.model.blocks[2].ffn.down.weight, model.blocks[2].ffn.down.weight.bfloat16())
    with torch.no_grad():
        assert torch.isfinite(theirs(input_ids=torch.tensor([[2, 5, 1, 3]])).logits).all()


def test_fine_tuning_with_recomputed_blocks(release):
    """Loss only where labels are not -100; gradient checkpointing gives the same gradients."""
    _, directory = release()
    theirs, _ = load(directory)
    ids = padded(rows())
    labels = torch.where(ids == 1, torch.full_like(ids, 5), torch.full_like(ids, -100))
    gradients = []
    for on in (False, True):
        theirs.train().zero_grad()
        theirs.gradient_checkpointing_enable() if on else theirs.gradient_checkpointing_disable()
        out = theirs(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels)
        out.loss.backward()
        gradients.append({name: p.grad.clone() for name, p in theirs.named_parameters()})
    expected = -out.logits.log_softmax(-1)[ids == 1][:, 5].mean()
    torch.testing.assert_close(out.loss, expected)
    assert all(torch.equal(gradients[0][name], x) for name, x in gradients[1].items())


ALONE = """
import sys
class Refuse:  # of everything that a user of the release may not have
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"models", "data", "pretrain", "launch", "multimolecule", "deepspeed"}:
            raise ImportError(name + " was imported")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
with torch.no_grad():
    print(model(**tokenizer("acgu[MASK]N", return_tensors="pt")).logits.double().sum(-1)[0].tolist())
"""


@pytest.mark.slow
def test_only_transformers_and_torch_are_needed(release, pack, tmp_path):
    model, directory = release()
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    model.load_state_dict(read_checkpoint(directory)[2])
    with torch.no_grad():
        expected = model(*pack([torch.tensor([2, 5, 7, 6, 8, 1, 10, 3])])).double().sum(-1)
    printed = torch.tensor(json.loads(done.stdout.splitlines()[-1]), dtype=torch.float64)
    assert (printed - expected).abs().max() <= 1e-3
