"""Our exported directories, loaded by MultiMolecule's own class, and the authors' files against its converter.

RNAErnie specification 0.1, 7.4, 8 and 12. The library is a dependency of tests alone.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from models.layouts import rnaernie as layout
from models.layouts.multimolecule import VOCABULARIES
from models.layouts.releasing import WriteOptions
from models.layouts.rnaernie_rows import FULL, ORIGINAL, STRIPPED
from models.rnaernie import RNAErnie, RNAErnieConfig
from tests.models.rnaernie_models import small

multimolecule = pytest.importorskip("multimolecule", reason="multimolecule is not installed (pip install .[test])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install .[test])")

SEQUENCES = ["ACGUNRYA", "GG<mask>AUKMSIUCGAU-A", "U", "<mask>ACGUBDHVW<mask>UUGACGUAC", "acgutT<mask>x"]
TYPED = ["ACG<mask>[IND][miRNA]", "GGAUCCAUGUCUAAGCC<mask>AGU[IND][vaultRNA]", "N<mask>A", "ACGU[IND]<mask>"]
OPTIONS = WriteOptions("model")
AS_IT_IS = WriteOptions("model", letters=None)  # every row is meant


def load(directory, of="RnaErnieForPreTraining", dtype=None):
    model, info = getattr(multimolecule, of).from_pretrained(directory, output_loading_info=True, dtype=dtype)
    unexpected = {"model.pooler.dense.weight", "model.pooler.dense.bias"} if of.endswith("MaskedLM") else set()
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == unexpected
    assert not info["mismatched_keys"]
    return model.eval()


def token_rows(encoded):
    """Our rows of token ids: MultiMolecule's without the padding."""
    return [ids[mask.bool()] for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)]


@pytest.mark.parametrize(("form", "vocab"), [("stripped", 28), ("stripped", 57), ("full", 57), ("26 tokens", 57)])
def test_same_logits_representations_and_pooled_vectors(tmp_path, pack, form, vocab):
    model = small(vocab=vocab, pooler=True)
    state, options = (
        model.state_dict(),
        WriteOptions("model", vocabulary=26 if form == "26 tokens" else 28, letters=None),
    )
    write = layout.write_full if form == "full" else layout.write_stripped
    write(tmp_path, state, model.config, options)
    theirs = load(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    known = FULL if form == "full" else VOCABULARIES[26 if form == "26 tokens" else 28]
    assert len(tokenizer) == len(known)
    assert tokenizer.model_max_length == 512
    encoded = tokenizer(TYPED if form == "full" else SEQUENCES[:4], return_tensors="pt", padding=True)
    assert (encoded["input_ids"] == tokenizer.mask_token_id).any()
    assert (encoded["attention_mask"] == 0).any()
    tokens = layout.tokens(model.config)
    ids = torch.tensor([tokens.index(token) for token in known])  # of ours, by theirs
    batch = pack([ids[row] for row in token_rows(encoded)])
    with torch.no_grad():
        out = theirs(**encoded, output_hidden_states=True)
        pooled = theirs.model(**encoded).pooler_output
        ours, hidden = model(*batch), model.hidden(*batch)
        ours_pooled = model.pooled(hidden, batch[1])
    real = encoded["attention_mask"].bool()
    differences = [
        (out.logits[real] - ours[:, ids]).abs().max().item(),
        (out.hidden_states[-1][real] - hidden).abs().max().item(),
        (pooled - ours_pooled).abs().max().item(),
    ]
    print(form, vocab, *(f"{x:.1e}" for x in differences))
    assert max(differences) <= 2e-5
    assert ours.abs().max() > 1


def test_masked_language_model_class_and_saving_again(tmp_path):
    model = small(vocab=28)
    layout.write_stripped(tmp_path / "ours", model.state_dict(), model.config, OPTIONS)
    theirs = load(tmp_path / "ours", "RnaErnieForMaskedLM")
    auto = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")(
        SEQUENCES, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        assert torch.equal(theirs(**encoded).logits, auto(**encoded).logits)
    load(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], x) for name, x in ours.items())


def test_published_size_has_the_tensors_and_parameters_of_the_specification(tmp_path):
    """Spec 12: 204 tensors on disk; 86,655,772 parameters with 28 tokens and 86,678,073 with 57; 12 is the depth."""
    config = RNAErnieConfig(layers=12, width=24, heads=4, ffn=48)  # the names of the published size, small
    layout.write_stripped(tmp_path, RNAErnie(config).state_dict(), config, OPTIONS)
    assert len(load_file(tmp_path / "model.safetensors")) == 204
    assert sum(len(row.multimolecule) for row in layout.rows(RNAErnieConfig.named("base", pooler=True))) == 204
    for vocab, count in ((28, 86_655_772), (57, 86_678_073)):
        with torch.device("meta"):
            theirs = multimolecule.RnaErnieForPreTraining(multimolecule.RnaErnieConfig(vocab_size=vocab))
        assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize("tokens", [28, 57])
def test_configuration_and_tokenizer_files_are_those_that_the_library_writes(tmp_path, tokens):
    config = RNAErnieConfig.named("nano", vocab=tokens)
    write = layout.write_full if tokens == 57 else layout.write_stripped
    write(tmp_path / "ours", RNAErnie(config).state_dict(), config, OPTIONS)
    theirs = multimolecule.RnaErnieForPreTraining(
        multimolecule.RnaErnieConfig(
            vocab_size=tokens, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    multimolecule.RnaTokenizer(
        additional_special_tokens=list(FULL[28:tokens]) or None, model_max_length=512
    ).save_pretrained(tmp_path / "theirs")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    for name in ("config.json", "tokenizer_config.json"):
        ours, expected = (json.loads((tmp_path / side / name).read_text()) for side in ("ours", "theirs"))
        expected.pop("transformers_version", None), ours.pop("transformers_version", None)
        assert ours == expected, name
    ours, expected = ((tmp_path / side / "vocab.txt").read_text().split() for side in ("ours", "theirs"))
    assert ours == expected


def test_fill_mask_pipeline(tmp_path):
    torch.manual_seed(0)
    config = RNAErnieConfig(layers=2, width=48, heads=4, ffn=96)
    state = RNAErnie(config).state_dict()
    layout.write_stripped(tmp_path / "stripped", state, config, OPTIONS)
    layout.write_full(tmp_path / "full", state, config, OPTIONS)
    stripped = transformers.pipeline("fill-mask", model=str(tmp_path / "stripped"))
    assert len(stripped("ACGU<mask>GCAU", top_k=28)) == 28
    # As the model card loads the part of a release.
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, subfolder="full")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, subfolder="full")
    full = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer)
    assert full.tokenizer("ACGU[IND][miRNA]")["input_ids"] == [1, 6, 7, 8, 9, 28, 38, 2]
    found = full("AC<mask>U[IND][miRNA]", top_k=57)
    assert {answer["token_str"] for answer in found} >= {"A", "C", "G", "U", "[miRNA]", "[vaultRNA]"}
    assert found[0]["sequence"].replace(" ", "").startswith("AC")


def test_bf16_and_sharded_exports_load_silently(tmp_path):
    model = small(vocab=28)
    layout.write_stripped(tmp_path / "s", model.state_dict(), model.config, WriteOptions("m", shard_bytes=100_000))
    assert not (tmp_path / "s" / "model.safetensors").exists()
    name = "model.encoder.layer.2.output.dense.bias"
    assert torch.equal(load(tmp_path / "s").state_dict()[name], model.state_dict()["blocks.2.ffn.down.bias"])
    layout.write_stripped(tmp_path / "b", model.state_dict(), model.config, WriteOptions("m", dtype=torch.bfloat16))
    loaded = load(tmp_path / "b", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.state_dict()[name], model.state_dict()["blocks.2.ffn.down.bias"].bfloat16())


@pytest.mark.parametrize("tokens", [28, 57])
def test_directories_written_by_multimolecule_are_read(tmp_path, pack, tokens):
    """The other direction: their class, filled with telling numbers and saved by itself, in ours."""
    torch.manual_seed(0)
    config = multimolecule.RnaErnieConfig(
        vocab_size=tokens, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    theirs = multimolecule.RnaErnieForPreTraining(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.2 if p.dim() > 1 else 0.5)
    theirs.save_pretrained(tmp_path)
    tokenizer = multimolecule.RnaTokenizer(additional_special_tokens=list(FULL[28:tokens]) or None)
    tokenizer.save_pretrained(tmp_path)
    ours_config, state = layout.from_directory(tmp_path)
    assert (ours_config.vocab, ours_config.pooler) == (tokens, True)
    ours = RNAErnie(ours_config).eval()
    ours.load_state_dict(state)
    encoded = tokenizer(SEQUENCES[:4] if tokens == 28 else TYPED, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**encoded).logits[encoded["attention_mask"].bool()]
        assert (ours(*pack(token_rows(encoded))) - expected).abs().max() <= 2e-5


def original_tensors():
    """The authors' tensors of a small model, at random: nothing symmetric, no two rows alike."""
    generator = torch.Generator().manual_seed(9)
    model = small(pooler=True)
    shapes = {name: x.shape for name, x in layout.to_original(model.state_dict(), model.config).items()}
    original = {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.5)
        for name, shape in shapes.items()
    }
    original["cls.predictions.decoder_weight"] = original["ernie.embeddings.word_embeddings.weight"]
    return original


def converted_by_multimolecule(original, untransposed=()):
    """Their (model, state) from the authors' tensors; names that end like ``untransposed`` keep the authors' layout."""
    from multimolecule.models.rnaernie import convert_checkpoint as converter

    config = multimolecule.RnaErnieConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    state = converter._convert_checkpoint(
        config, {k: x.clone() for k, x in original.items()}, list(STRIPPED), converter.original_vocab_list
    )
    for key in state:
        if untransposed and key.endswith(untransposed):
            state[key] = state[key].T
    model = multimolecule.RnaErnieForPreTraining(config).eval()
    model.load_state_dict({k: x.clone() for k, x in state.items()})
    return model, state


def test_conversion_of_the_original_agrees_with_multimolecule(tmp_path, pack):
    original = original_tensors()
    theirs, state = converted_by_multimolecule(original)
    config, ours_state = layout.from_original(original, heads=4)
    ours = RNAErnie(config).eval()
    ours.load_state_dict(ours_state)
    _, tensors = layout.to_multimolecule(ours_state, config, STRIPPED, ())
    settled = [i for i, token in enumerate(STRIPPED) if token not in "I|.*-?"]  # the rest they draw at random
    assert len(settled) == 22
    for name, x in tensors.items():
        if x.shape[0] == 28:
            assert torch.equal(x[settled], state[name][settled]), name
        else:
            assert torch.equal(x, state[name]), name
    tokenizer = multimolecule.RnaTokenizer()
    encoded = tokenizer(["ACGUNRYA", "GG<mask>AUKMSUCGAUA", "U<mask>"], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**encoded).logits[encoded["attention_mask"].bool()][:, settled]
        found = ours(*pack(token_rows(encoded)))[:, settled]
    assert (found - expected).abs().max() <= 1e-5
    # The wrong rule of MultiMolecule before 0.2.0 left square matrices as they were: these tests would show it.
    square = ("query.weight", "key.weight", "value.weight", "pooler.dense.weight", "transform.dense.weight")
    wrong, _ = converted_by_multimolecule(original, untransposed=square)
    with torch.no_grad():
        other = wrong(**encoded).logits[encoded["attention_mask"].bool()][:, settled]
    assert (found - other).abs().max() > 1


def test_rows_of_the_types_survive_only_in_the_full_directory(tmp_path):
    original = original_tensors()
    config, state = layout.from_original(original, heads=4)
    words = original["ernie.embeddings.word_embeddings.weight"]
    layout.write_full(tmp_path, state, config, AS_IT_IS)
    full = layout.to_original(layout.from_directory(tmp_path)[1], layout.from_directory(tmp_path)[0])
    restored = [i for i, token in enumerate(ORIGINAL) if token != "[DEL]"]
    assert torch.equal(full["ernie.embeddings.word_embeddings.weight"][restored], words[restored])
    layout.write_stripped(tmp_path, state, config, AS_IT_IS)
    config, state = layout.from_directory(tmp_path)
    stripped = layout.to_original(state, config)["ernie.embeddings.word_embeddings.weight"]
    assert torch.equal(stripped[35:], words[35:])
    assert (stripped[5:35] == words[34]).all()  # all of them are <null>, which was vaultRNA
