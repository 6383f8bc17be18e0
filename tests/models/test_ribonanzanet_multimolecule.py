"""Our exported directory, loaded by MultiMolecule's own class: same outputs, no missing keys, no special tokens.

RibonanzaNet spec 8.4 and 9. The library is a dependency of tests alone.
"""

import dataclasses

import pytest
import torch

from models.layouts import ribonanzanet as layout
from models.layouts.releasing import WriteOptions
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig
from tests.models.reference_ribonanzanet import fill

multimolecule = pytest.importorskip("multimolecule", reason="multimolecule is not installed (pip install .[test])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install .[test])")

SMALL = RibonanzaNetConfig(layers=3, width=32, heads=4, ffn=128, pair=16)
SEQUENCES = ["ACGUNACGGAUUC", "ggaatc", "U", "GANUUACGT"]
TOLERANCE = 2e-5


def load(directory, **options):
    model, info = multimolecule.RibonanzaNetForPreTraining.from_pretrained(
        directory, output_loading_info=True, **options
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def small(**overrides):
    config = dataclasses.replace(SMALL, **overrides)
    double = dataclasses.replace(config, attention_residual="double", special_tokens=False)
    shapes = {name: list(x.shape) for name, x in layout.to_original(RibonanzaNet(double).state_dict(), double).items()}
    state = layout.from_original(fill(shapes))[1]
    if config.special_tokens:
        state["embed.weight"] = torch.cat((state["embed.weight"], state["embed.weight"][:2].flip(1)))
    model = RibonanzaNet(config).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def exported(directory, **overrides):
    model = small(**overrides)
    layout.RELEASES["multimolecule"].write(directory, model.state_dict(), model.config, WriteOptions(name="mine"))
    return model


def our_batch(config, encoded):
    """(tokens, is_real) of ours from a padded batch of their ids."""
    ours = {
        theirs: i
        for i, theirs in enumerate(layout.row_of_token(layout.tokens(config), list(layout.vocabulary(28)), "spec"))
    }
    tokens = torch.tensor([[ours.get(int(j), 4) for j in row] for row in encoded["input_ids"]])
    return tokens, encoded["attention_mask"].bool()


def difference(model, theirs, encoded):
    tokens, is_real = our_batch(model.config, encoded)
    with torch.no_grad():
        out = theirs(**encoded)
        expected = torch.cat((out.logits_2a3, out.logits_dms), -1)
        return (model(tokens, is_real) - expected)[is_real].abs().max().item(), expected[is_real].abs().mean().item()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("residual", ["double", "single"])
def test_padded_batches_give_the_same_outputs(tmp_path, residual, triangle, attention):
    model = exported(tmp_path, attention_residual=residual, triangle_attention=triangle)
    theirs = load(tmp_path, attn_implementation=attention)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer(SEQUENCES, return_tensors="pt", padding=True)
    assert encoded["input_ids"][0].tolist() == [6, 7, 8, 9, 10, 6, 7, 8, 8, 6, 9, 9, 7]  # no <cls>, no <eos>
    assert encoded["attention_mask"].sum(1).tolist() == [13, 6, 1, 9]
    found, scale = difference(model, theirs, encoded)
    print(f"{residual}, triangle {triangle}, {attention}: {found:.1e} at a mean of {scale:.2f}")
    assert found <= TOLERANCE
    assert scale > 0.1


@pytest.mark.parametrize("triangle", [False, True])
def test_the_signed_mask_gives_the_same_outputs(tmp_path, triangle):
    model = exported(tmp_path, mask_mode="signed", triangle_attention=triangle)
    theirs = load(tmp_path)
    assert theirs.config._attn_implementation == "eager"
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)(SEQUENCES, return_tensors="pt", padding=True)
    found, _ = difference(model, theirs, encoded)
    assert found <= TOLERANCE
    fixed, _ = difference(small(triangle_attention=triangle), theirs, encoded)
    assert fixed > 0.05


@pytest.mark.parametrize("mode", ["none", "zero_logit"])
def test_modes_that_they_do_not_have_agree_without_padding(tmp_path, mode):
    model = exported(tmp_path, mask_mode=mode)
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)(SEQUENCES[:1], return_tensors="pt")
    assert difference(model, load(tmp_path), encoded)[0] <= TOLERANCE


def test_special_tokens_of_a_model_that_was_trained_with_them(tmp_path):
    model = exported(tmp_path, special_tokens=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("ACGU")["input_ids"]
    assert ids == [1, 6, 7, 8, 9, 2]
    theirs = load(tmp_path)
    tokens = torch.tensor([[5, 0, 1, 2, 3, 6]])
    with torch.no_grad():
        hidden = theirs.model(torch.tensor([ids])).last_hidden_state
        assert (model.states(tokens)[0] - hidden).abs().max() <= TOLERANCE


def test_bf16_export_loads_in_bf16(tmp_path):
    model = small()
    options = WriteOptions(name="mine", dtype=torch.bfloat16)
    layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, options)
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("fixed", [True, False])
def test_directories_written_by_multimolecule_are_read(tmp_path, fixed):
    """The other direction: their class, filled with telling numbers and saved by itself, in ours."""
    torch.manual_seed(0)
    config = multimolecule.RibonanzaNetConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        pairwise_size=16,
        pairwise_attention_size=8,
        pairwise_intermediate_size=64,
        layer_norm_eps=1e-5,
        use_triangular_attention=True,
        fix_attention_mask=fixed,
        attn_implementation="eager",
    )
    theirs = multimolecule.RibonanzaNetForPreTraining(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.2 if p.dim() > 1 else 0.5)
        theirs.model.embeddings.word_embeddings.weight[[0, 10]] = 0  # <pad> and N, as in the published weights
    theirs.save_pretrained(tmp_path)
    tokenizer = multimolecule.RnaTokenizer(bos_token=None, cls_token=None, eos_token=None)
    tokenizer.save_pretrained(tmp_path)
    ours_config, state = layout.from_directory(tmp_path)
    assert ours_config.mask_mode == ("fixed" if fixed else "signed")
    assert ours_config.outer == 8
    ours = RibonanzaNet(ours_config).eval()
    ours.load_state_dict(state)
    encoded = tokenizer(["ACGUACGGAUUC", "GGAAUC"], return_tensors="pt", padding=True)
    assert difference(ours, theirs, encoded)[0] <= TOLERANCE


def test_published_size(tmp_path):
    """Spec 1.4 and 8.4: 11,302,786 parameters with their vocabulary, and the same outputs at the full depth."""
    torch.manual_seed(0)
    model = RibonanzaNet(RibonanzaNetConfig.named("base")).eval()
    layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, WriteOptions(name="mine"))
    theirs = load(tmp_path)
    assert sum(p.numel() for p in theirs.parameters()) == 11_302_786
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)(SEQUENCES, return_tensors="pt", padding=True)
    assert difference(model, theirs, encoded)[0] <= TOLERANCE


def test_their_other_classes_take_our_directory(tmp_path):
    """Spec 1.4 and 9: counts of all their heads, and the backbone of our export under their plain model."""
    model = RibonanzaNet(RibonanzaNetConfig.named("base")).eval()
    layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, WriteOptions(name="mine"))
    config = multimolecule.RibonanzaNetConfig.from_pretrained(tmp_path)
    counts = {
        "RibonanzaNetModel": 11_368_064,  # with a pooler that the authors do not have
        "RibonanzaNetForPreTraining": 11_302_786,
        "RibonanzaNetForTokenPrediction": 11_302_529,
        "RibonanzaNetForSequencePrediction": 11_368_321,
        "RibonanzaNetForSecondaryStructurePrediction": 11_302_851,
        "RibonanzaNetForDegradationPrediction": 11_303_557,
        "RibonanzaNetForSequenceDropoutPrediction": 11_302_786,
    }
    found = {}
    for name in counts:
        with torch.device("meta"):
            found[name] = sum(p.numel() for p in getattr(multimolecule, name)(config).parameters())
    assert found == counts
    backbone, info = multimolecule.RibonanzaNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler"}
    assert {name.split(".")[0] for name in info["unexpected_keys"]} == {"a3c_head", "dms_head"}
    ids, tokens = torch.tensor([[6, 7, 8, 9, 10]]), torch.tensor([[0, 1, 2, 3, 4]])
    with torch.no_grad():
        hidden = backbone.eval()(ids).last_hidden_state
        assert (model.states(tokens)[0] - hidden).abs().max() <= TOLERANCE
