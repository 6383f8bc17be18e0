"""Our exported directory, loaded by MultiMolecule's own class: same outputs, no missing keys, real letters only.

specs/rinalmo 8 and 11.2. The library is a dependency of tests alone.
"""

import pytest
import torch

from models.layouts import rinalmo as layout
from models.layouts.releasing import WriteOptions
from models.rinalmo import RiNALMo, RiNALMoConfig

multimolecule = pytest.importorskip("multimolecule", reason="multimolecule is not installed (pip install .[test])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install .[test])")

SEQUENCES = ["ACGUNRYA", "GG<mask>AUKMSIUCGAU-A", "U", "<mask>ACGUBDHVW<mask>UUGACGUAC", "acgutT<mask>x"]
UNTRAINED = {"<null>", "X", "|", ".", "*", "?"}


def load(directory, dtype=None):
    model, info = multimolecule.RiNALMoForMaskedLM.from_pretrained(directory, output_loading_info=True, dtype=dtype)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def our_rows(theirs_ids, size):
    """Token rows of ours from a padded batch of MultiMolecule's ids."""
    back = {j: i for i, j in enumerate(layout.row_of_token(layout.TOKENS, list(layout.vocabulary(size)), "spec"))}
    return [torch.tensor([back.get(int(j), 3) for j in row if int(j) != 0]) for row in theirs_ids]


@pytest.fixture
def exported(small, tmp_path):
    def export(**options):
        model = small()
        layout.write_multimolecule(tmp_path / "mm", model.state_dict(), model.config, WriteOptions("model", **options))
        return model, tmp_path / "mm"

    return export


@pytest.mark.parametrize("tokens", [28, 26])
def test_same_logits_and_representations(exported, pack, tokens):
    model, directory = exported(vocabulary=tokens)
    theirs = load(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == tokens
    encoded = tokenizer(SEQUENCES[:4], return_tensors="pt", padding=True)
    assert (encoded["input_ids"] == tokenizer.mask_token_id).any()
    assert (encoded["attention_mask"] == 0).any()
    rows = our_rows(encoded["input_ids"], tokens)
    assert 20 in rows[0].tolist()  # a letter outside A, C, G, U: N
    assert all(abs(p.item() - 1) > 0.01 for name, p in model.named_parameters() if name.endswith("beta"))
    mapped = layout.row_of_token(layout.TOKENS, list(layout.vocabulary(tokens)), "spec")
    with torch.no_grad():
        out = theirs(**encoded, output_hidden_states=True)
        batch = pack(rows)
        ours, hidden = model(*batch), model.hidden(*batch)
    real = encoded["attention_mask"].bool()
    logits_difference = (out.logits[real][:, mapped] - ours).abs().max().item()
    hidden_difference = (out.hidden_states[-1][real] - hidden).abs().max().item()
    print(f"{tokens} tokens: logits {logits_difference:.1e}, hidden {hidden_difference:.1e}")
    assert logits_difference <= 2e-5
    assert hidden_difference <= 1e-5
    untrained = [j for j in range(tokens) if j not in mapped]
    assert out.logits[..., untrained].max() < ours.max() - 5


def test_fill_mask_returns_real_tokens_only(tmp_path):
    torch.manual_seed(0)
    model = RiNALMo(RiNALMoConfig(layers=2, width=80, heads=4, ffn=213))
    layout.write_multimolecule(tmp_path, model.state_dict(), model.config, WriteOptions("model"))
    fill = transformers.pipeline("fill-mask", model=str(tmp_path))
    found = fill("ACGU<mask>GCAU", top_k=22)
    assert len(found) == 22
    assert not {answer["token_str"] for answer in found} & UNTRAINED


def test_bf16_and_sharded_exports_load_silently(exported):
    model, directory = exported(shard_bytes=400_000)
    assert not (directory / "model.safetensors").exists()
    sharded = load(directory).state_dict()
    assert torch.equal(sharded["model.encoder.layer.2.output.dense.bias"], model.state_dict()["blocks.2.ffn.down.bias"])
    (directory / "model.safetensors.index.json").unlink()
    model, directory = exported(dtype=torch.bfloat16)
    loaded = load(directory, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    weight = loaded.state_dict()["model.encoder.layer.2.output.dense.bias"]
    assert torch.equal(weight, model.state_dict()["blocks.2.ffn.down.bias"].bfloat16())


@pytest.mark.parametrize("how", ["plain", "bf16", "sharded"])
def test_directories_written_by_multimolecule_are_read(tmp_path, pack, how):
    """The other direction: their class, filled with telling numbers and saved by itself, in ours."""
    torch.manual_seed(0)
    config = multimolecule.RiNALMoConfig(
        hidden_size=80, num_hidden_layers=2, num_attention_heads=4, intermediate_size=320
    )
    theirs = multimolecule.RiNALMoForMaskedLM(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.2 if p.dim() > 1 else 0.5)
    if how == "bf16":
        theirs.bfloat16()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if how == "sharded" else "5GB")
    multimolecule.RnaTokenizer().save_pretrained(tmp_path)
    ours_config, state = layout.from_directory(tmp_path)
    ours = RiNALMo(ours_config).eval()
    ours.load_state_dict(state)
    encoded = multimolecule.RnaTokenizer()(SEQUENCES[:4], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs.float()(**encoded).logits[encoded["attention_mask"].bool()][
            :, layout.row_of_token(layout.TOKENS, list(layout.vocabulary(28)), "spec")
        ]
        assert (ours(*pack(our_rows(encoded["input_ids"], 28))) - expected).abs().max() <= 2e-5


def test_exported_parameter_count_of_the_specification(tmp_path):
    """specs/rinalmo 11.1, last column: with LM head and 28 tokens."""
    counts = {"giga": 650_917_159, "mega": 148_064_658, "micro": 33_496_840, "nano": 7_512_670}
    model = RiNALMo(RiNALMoConfig.named("nano"))
    layout.write_multimolecule(tmp_path, model.state_dict(), model.config, WriteOptions("model"))
    written = sum(p.numel() for name, p in load(tmp_path).named_parameters() if name != "lm_head.decoder.bias")
    assert written == counts["nano"]
    for size, count in counts.items():
        config = RiNALMoConfig.named(size, vocab=28)
        with torch.device("meta"):
            assert sum(p.numel() for p in RiNALMo(config).parameters()) == count
