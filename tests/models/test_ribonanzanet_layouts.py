"""RibonanzaNet's conversions by round trips, and files that are not what they seem."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import ModelError
from models.layouts import channels, own
from models.layouts import ribonanzanet as layout
from models.layouts.detect import channels_of, read_checkpoint
from models.layouts.multimolecule import VOCABULARIES
from models.layouts.releasing import Trained, WriteOptions
from models.ribonanzanet import RibonanzaNet, RibonanzaNetConfig

SMALL = RibonanzaNetConfig(layers=3, width=32, heads=4, ffn=128, pair=16, attention_dropout=0.05)
KINDS = {"plain": {}, "triangle": {"triangle_attention": True}, "specials": {"special_tokens": True}}
OPTIONS = WriteOptions(name="mine")


def trained(**overrides):
    """A model whose every number differs from its neighbours, the zero row of N aside."""
    model = RibonanzaNet(dataclasses.replace(SMALL, **overrides))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.5, generator=generator)
        model.embed.weight[4] = 0
    return model


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(params=KINDS)
def model(request):
    return trained(**KINDS[request.param])


def test_table_names_every_parameter_once(model):
    table = layout.rows(model.config)
    assert sorted(row.ours for row in table) == sorted(model.state_dict())
    for others in ("original", "multimolecule"):
        names = [name for row in table for name in getattr(row, others)]
        assert len(set(names)) == len(names)


def test_tensor_counts_of_the_specification():
    """Spec 8.3: 578 tensors, 63 per layer; 560 without the second norm."""
    for residual, count in (("double", 578), ("single", 560)):
        config = RibonanzaNetConfig.named("base", attention_residual=residual)
        assert sum(len(row.multimolecule) for row in layout.rows(config)) == count
    assert sum(len(row.original) for row in layout.rows(RibonanzaNetConfig.named("base"))) == 63 * 9 + 9


def test_original_round_trip_is_bit_exact(model, tmp_path):
    config, state = model.config, model.state_dict()
    original = layout.to_original(state, config)
    assert original["transformer_encoder.2.triangle_update_in.left_gate.weight"].shape == (16, 16)
    assert original["transformer_encoder.2.conv.weight"].shape == (32, 32, 1)
    path = layout.RELEASES["original"].write(tmp_path, state, config, OPTIONS)
    assert path == tmp_path / "mine.pt"
    name, read, back = read_checkpoint(path)
    # the authors' files hold no rates of dropout
    assert (name, dataclasses.replace(read, attention_dropout=0.05)) == ("ribonanzanet", config)
    assert same(back, state)
    assert same(layout.to_original(back, read), original)


@pytest.mark.parametrize("form", ["wrapped", "prefixed", "fine-tuned", "five outputs"])
def test_every_original_form_is_read(form):
    model = trained(channels=5 if form == "five outputs" else 2)
    state = layout.to_original(model.state_dict(), model.config)
    if form == "prefixed":
        state = {"model." + name: x for name, x in state.items()}
    elif form == "fine-tuned":
        state |= {"ct_predictor.weight": torch.zeros(1, 16), "ct_predictor.bias": torch.zeros(1)}
    assert layout.recognises_original(set(state))
    if form == "wrapped":
        state = {"model": state}
    config, back = layout.from_original(state)
    assert config.channels == model.config.channels
    assert same(back, model.state_dict())


@pytest.mark.parametrize("tokens", [26, 28])
@pytest.mark.parametrize("residual", ["double", "single"])
def test_multimolecule_round_trip_is_bit_exact(tmp_path, tokens, residual):
    for kind, overrides in KINDS.items():
        model = trained(attention_residual=residual, pair_dropout_in_axis="column", **overrides)
        directory = tmp_path / kind
        options = dataclasses.replace(OPTIONS, vocabulary=tokens, shard_bytes=200_000)
        assert layout.RELEASES["multimolecule"].write(directory, model.state_dict(), model.config, options) == directory
        assert (directory / "vocab.txt").read_text().split() == list(VOCABULARIES[tokens])
        assert not (directory / "model.safetensors").exists()
        name, config, back = read_checkpoint(directory)
        assert (name, config) == ("ribonanzanet", model.config)
        assert same(back, model.state_dict())


def test_from_the_original_to_multimolecule_and_back_is_bit_exact(model, tmp_path):
    original = layout.to_original(model.state_dict(), model.config)
    config, state = layout.from_original(original)
    layout.RELEASES["multimolecule"].write(tmp_path, state, config, OPTIONS)
    config, state = layout.from_directory(tmp_path)
    assert same(layout.to_original(state, config), original)


def test_rows_of_the_embedding_that_the_model_does_not_know():
    model = trained()
    ours = model.embed.weight.detach()
    _, tensors, theirs = layout.to_multimolecule(model.state_dict(), model.config)
    rows = dict(zip(theirs, tensors["model.embeddings.word_embeddings.weight"], strict=True))
    for letter, row in zip("ACGUN", ours, strict=True):
        assert torch.equal(rows[letter], row)
    assert not rows["<pad>"].any()
    assert not rows["X"].any()
    assert torch.equal(rows["R"], ours[[0, 2]].mean(0))
    assert torch.equal(rows["B"], ours[[1, 2, 3]].mean(0))
    for token in ("<cls>", "<eos>", "<unk>", "<mask>", "<null>", "I", "|", ".", "*", "-", "?"):
        assert 0 < rows[token].abs().max() < 0.1, token
    again = layout.to_multimolecule(model.state_dict(), model.config)[1]
    assert same(tensors, again)


def test_written_configuration(tmp_path):
    cases = {
        "fixed": (True, None),
        "signed": (False, "eager"),  # their other attention implementations drop a part of this rule
        "none": (True, None),
        "zero_logit": (True, None),
    }
    for mode, expected in cases.items():
        model = trained(mask_mode=mode)
        layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, OPTIONS)
        content = json.loads((tmp_path / "config.json").read_text())
        assert (content["fix_attention_mask"], content.get("attn_implementation")) == expected
        assert (content["vocab_size"], content["layer_norm_eps"], content["pairwise_attention_size"]) == (28, 1e-5, 32)
        assert content["cls_token_id"] is content["bos_token_id"] is content["eos_token_id"] is None
        tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert tokenizer["cls_token"] is tokenizer["bos_token"] is tokenizer["eos_token"] is None
        assert tokenizer["mask_token"] == "<mask>"


def test_names_that_multimolecule_s_own_converter_leaves_are_read(tmp_path):
    model = trained(triangle_attention=True)
    layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, OPTIONS)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.replace("triangle.gate.", "triangle.gate.0."): x for name, x in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    assert same(layout.from_directory(tmp_path)[1], model.state_dict())


def test_bfloat16_is_rounded_once(tmp_path):
    model = trained()
    options = dataclasses.replace(OPTIONS, dtype=torch.bfloat16)
    for release in layout.RELEASES.values():
        path = release.write(tmp_path, model.state_dict(), model.config, options)
        _, _, back = read_checkpoint(path)
        assert same(back, {name: x.bfloat16().float() for name, x in model.state_dict().items()})


def test_what_a_layout_cannot_express_is_refused(tmp_path):
    single, five, far = trained(attention_residual="single"), trained(channels=5), trained(reach=12)
    with pytest.raises(ModelError, match="attention_residual single"):
        layout.RELEASES["original"].write(tmp_path, single.state_dict(), single.config, OPTIONS)
    for model, words in ((five, "channels 2, but this model has 5"), (far, "reach 8, but this model has 12")):
        with pytest.raises(ModelError, match=words):
            layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, OPTIONS)
    assert same(layout.from_original(layout.to_original(far.state_dict(), far.config))[1], far.state_dict())


@pytest.mark.parametrize("order", ["published", "another"])
@pytest.mark.parametrize("names", channels.PUBLISHED)
def test_rows_of_the_output_go_by_name(tmp_path, names, order):
    """Spec 8.3: decoder row 0 is 2A3 and row 1 DMS, or five rows in the order of OpenVaccine."""
    model = trained(channels=len(names))
    mine = names if order == "published" else names[1:] + names[:1]
    options = dataclasses.replace(OPTIONS, channels=mine)
    for release in layout.RELEASES.values():
        if not release.fits(model.config, Trained("ACGU", mine)):
            assert (release.folder, len(names)) == ("", 5)
            continue
        path = release.write(tmp_path, model.state_dict(), model.config, options)
        name, config, back = read_checkpoint(path)
        assert channels_of(path, name, config) == names
        for key in ("head.weight", "head.bias"):
            rows = dict(zip(mine, model.state_dict()[key], strict=True))
            assert torch.equal(back[key], torch.stack([rows[one] for one in names]))
        assert same(channels.reordered(back, names, mine), model.state_dict())


def test_other_channels_have_no_place_in_published_layouts(tmp_path):
    model = trained()
    for names in (("1M7", "DMS"), ("2A3",), ("2A3", "DMS", "1M7")):
        for release in layout.RELEASES.values():
            assert not release.fits(model.config, Trained("ACGU", names))
            with pytest.raises(
                ModelError, match=rf"predict 2A3, DMS.* predicts {', '.join(names)}; release it in our own"
            ):
                release.write(tmp_path, model.state_dict(), model.config, dataclasses.replace(OPTIONS, channels=names))
    with pytest.raises(ModelError, match="predicts 2A3, DMS, not 1M7"):
        channels.reordered(model.state_dict(), ("2A3", "DMS"), ("1M7", "DMS"))


def test_our_own_layout_keeps_the_names(tmp_path):
    model = trained()
    write = [tmp_path, "ribonanzanet", model.state_dict(), model.config, list(layout.tokens(model.config))]
    own.write(*write, channels=("x", "y"))
    name, config, back = read_checkpoint(tmp_path)
    assert (channels_of(tmp_path, name, config), same(back, model.state_dict())) == (("x", "y"), True)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"channels": "x, y"}))
    with pytest.raises(ModelError, match="channels must be a list of names, not 'x, y'"):
        channels_of(tmp_path, name, config)
    own.write(*write)
    assert channels_of(tmp_path, name, config) is None


def test_damaged_originals_are_refused():
    model = trained()
    state = layout.to_original(model.state_dict(), model.config)
    for name, x, words in (
        ("transformer_encoder.1.norm1.bias", None, r"no tensor transformer_encoder\.1\.norm1\.bias"),
        ("transformer_encoder.1.norm1.bias", torch.zeros(31), r"shape \[31\] .* \[32\]"),
        ("transformer_encoder.1.norm9.bias", torch.zeros(32), r"1 tensors .*norm9"),
        ("encoder.weight", torch.zeros(6, 32), "6 rows where RibonanzaNet has 5 letters"),
    ):
        damaged = {k: v for k, v in state.items() if k != name} | ({} if x is None else {name: x})
        with pytest.raises(ModelError, match=words):
            layout.from_original(damaged, source="the file")


def test_damaged_directories_are_refused(tmp_path):
    model = trained()
    layout.RELEASES["multimolecule"].write(tmp_path, model.state_dict(), model.config, OPTIONS)
    content = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")

    def refused(words, **changes):
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        with pytest.raises(ModelError, match=words):
            layout.from_directory(tmp_path)

    refused("hidden_act is 'relu'", hidden_act="relu")
    refused("pairwise_intermediate_size is 128, but RibonanzaNet has 64", pairwise_intermediate_size=128)
    refused("num_hidden_layers must be a whole number", num_hidden_layers="3")
    refused("'bert' where 'ribonanzanet'", model_type="bert")
    refused(r"layer\.2\.conv\.weight has shape \[32, 32, 1\]", num_hidden_layers=4)
    refused("6 tensors that RibonanzaNet of this size does not have", fix_attention_residual=True)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARIES[26]))
    refused("28 rows and vocab.txt 26 tokens")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARIES[28]))
    save_file({k: v for k, v in tensors.items() if k != "dms_head.decoder.bias"}, tmp_path / "model.safetensors")
    refused(r"no tensor dms_head\.decoder\.bias")
