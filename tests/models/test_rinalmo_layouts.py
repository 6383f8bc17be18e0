"""RiNALMo's conversions by round trips, and files that are not what they seem."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.alphabet import RINALMO
from models.errors import ModelError
from models.layouts import rinalmo as layout
from models.layouts.detect import read_checkpoint
from models.layouts.multimolecule import VOCABULARIES, row_of_token
from models.layouts.releasing import WriteOptions
from models.layouts.rinalmo_config import read_config, write_config
from models.rinalmo import RiNALMo, RiNALMoConfig, add_padding

# specs/rinalmo 2.2: original id -> MultiMolecule id
IDS = {
    28: [1, 0, 2, 3, 4, 6, 7, 8, 9, 21, 11, 12, 15, 16, 13, 14, 17, 18, 19, 20, 10, 26],
    26: [1, 0, 2, 3, 4, 6, 7, 8, 9, 25, 11, 12, 15, 16, 13, 14, 17, 18, 19, 20, 10, 24],
}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def model(small):
    return small()


@pytest.fixture
def exported(model, tmp_path):
    layout.write_multimolecule(tmp_path / "mm", model.state_dict(), model.config, WriteOptions("model"))
    return tmp_path / "mm"


def non_flash(original):
    """The authors' module without flash attention: separate q, k, v one level deeper, and a rotary buffer."""
    out = {}
    for name, x in original.items():
        if name.endswith("Wqkv.weight"):
            stem = name.removesuffix("Wqkv.weight") + "mh_attn."
            out |= {f"{stem}to_{c}.weight": part for c, part in zip("qkv", x.chunk(3), strict=True)}
            out[stem + "rotary_emb.inv_freq"] = torch.ones(10)
        else:
            out[name.replace("mh_attn.out_proj", "mh_attn.mh_attn.out_proj")] = x
    return out


def test_tokens_are_the_alphabet_of_the_data():
    assert RINALMO.tokens == layout.TOKENS


def test_table_names_every_parameter_once(model):
    table = layout.rows(model.config.layers)
    assert {row.ours for row in table} == set(model.state_dict())
    assert len({row.original for row in table}) == len(table)
    names = [name for row in table for name in row.multimolecule]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", [26, 28])
def test_token_map_of_the_specification(size, tmp_path):
    assert len(VOCABULARIES[size]) == size
    assert row_of_token(layout.TOKENS, list(VOCABULARIES[size]), tmp_path) == IDS[size]


def test_original_round_trip_is_bit_exact(model):
    state = model.state_dict()
    original = layout.to_original(state, model.config)
    assert original["transformer.blocks.2.mh_attn.Wqkv.weight"].shape == (240, 80)
    config, back = layout.from_original(original, heads=4)
    assert config == model.config
    assert same(back, state)
    assert same(layout.to_original(back, config), original)


def test_padding_is_stripped_from_what_is_published(model):
    config = RiNALMoConfig(layers=3, width=80, heads=4, ffn=213, ffn_pad_to=64)
    padded = add_padding(model.state_dict(), config)
    assert same(layout.to_original(padded, config), layout.to_original(model.state_dict(), model.config))
    assert same(layout.to_multimolecule(padded, config)[1], layout.to_multimolecule(padded, config)[1])
    assert layout.to_multimolecule(padded, config)[1]["model.encoder.layer.0.output.dense.weight"].shape == (80, 213)


@pytest.mark.parametrize("form", ["plain", "non-flash", "non-flash without inv_freq", "fine-tuned", "wrapped", "all"])
def test_every_original_form_is_read(model, form):
    state = layout.to_original(model.state_dict(), model.config)
    if form in ("all", "non-flash", "non-flash without inv_freq"):
        state = non_flash(state)
    if form == "non-flash without inv_freq":
        state = {name: x for name, x in state.items() if "inv_freq" not in name}
    if form in ("fine-tuned", "all"):
        state = {"lm." + name: x for name, x in state.items()}
        state |= {"pred_head.linear.weight": torch.zeros(2, 2), "threshold": torch.tensor(0.5)}
    if form in ("wrapped", "all"):
        state = {"model": state}
    config, back = layout.from_original(state, heads=4)
    assert config == model.config
    assert same(back, model.state_dict())


@pytest.mark.parametrize("tokens", [26, 28])
def test_multimolecule_round_trip_is_bit_exact(model, tmp_path, tokens):
    layout.write_multimolecule(tmp_path, model.state_dict(), model.config, WriteOptions("model", vocabulary=tokens))
    assert (tmp_path / "vocab.txt").read_text().split() == list(VOCABULARIES[tokens])
    config, back = layout.from_directory(tmp_path)
    assert config == model.config
    assert same(back, model.state_dict())
    name, config, state = read_checkpoint(tmp_path)
    assert (name, config) == ("rinalmo", model.config)
    assert same(state, back)


def test_export_of_rows_that_were_never_trained(model):
    config, tensors, tokens = layout.to_multimolecule(model.state_dict(), model.config, seed=3)
    untrained = [tokens.index(t) for t in ("<null>", "X", "|", ".", "*", "?")]
    assert sorted(untrained) == [5, 22, 23, 24, 25, 27]
    for name in ("model.embeddings.word_embeddings.weight", "lm_head.decoder.weight"):
        x = tensors[name]
        torch.testing.assert_close(x[tokens.index("X")], x[6:10].mean(0))
        assert x[[5, 23, 24, 25, 27]].std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(tensors["lm_head.bias"], tensors["lm_head.decoder.bias"])
    assert (tensors["lm_head.bias"] == -30).nonzero().flatten().tolist() == sorted(untrained)
    again = layout.to_multimolecule(model.state_dict(), model.config, seed=3)
    assert config == again[0]
    assert same(tensors, again[1])
    other = layout.to_multimolecule(model.state_dict(), model.config, seed=4)[1]
    assert not torch.equal(tensors["lm_head.decoder.weight"], other["lm_head.decoder.weight"])


def test_published_sizes_and_any_inner_width_survive_the_configuration(tmp_path):
    shapes = [RiNALMoConfig.named(size) for size in ("giga", "mega", "micro", "nano")]
    assert [write_config(c, 28)["intermediate_size"] for c in shapes] == [5120, 2560, 1920, 1280]
    for ffn in range(1, 1500):
        config = RiNALMoConfig(layers=1, width=80, heads=4, ffn=ffn)
        assert int(2 / 3 * write_config(config, 28)["intermediate_size"]) == ffn
    (tmp_path / "config.json").write_text(json.dumps(write_config(shapes[0], 28)))
    assert read_config(tmp_path / "config.json") == shapes[0]


def test_export_writes_the_same_bytes_twice(model, exported, tmp_path):
    layout.write_multimolecule(tmp_path / "again", model.state_dict(), model.config, WriteOptions("model"))
    files = sorted(path.name for path in exported.iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert all((exported / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


@pytest.mark.parametrize("prefix", ["rinalmo.", ""])
def test_older_key_prefixes(model, exported, prefix):
    tensors = load_file(exported / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1) if name[0] == "m" else name: x for name, x in tensors.items()}
    renamed[prefix + "pooler.dense.weight"] = torch.zeros(80, 80)
    save_file(renamed, exported / "model.safetensors", {"format": "pt"})
    assert same(layout.from_directory(exported)[1], model.state_dict())


def test_decoder_bias_is_never_read(model, exported):
    tensors = load_file(exported / "model.safetensors")
    tensors["lm_head.decoder.bias"] = torch.full((28,), 1e30)
    save_file(tensors, exported / "model.safetensors", {"format": "pt"})
    assert same(layout.from_directory(exported)[1], model.state_dict())
    del tensors["lm_head.bias"]
    save_file(tensors, exported / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor lm_head\.bias"):
        layout.from_directory(exported)


def test_sharded_bf16_and_torch_directories(model, tmp_path):
    state, config = model.state_dict(), model.config
    layout.write_multimolecule(tmp_path / "s", state, config, WriteOptions("model", shard_bytes=400_000))
    assert len(list((tmp_path / "s").glob("model-*.safetensors"))) > 2
    assert same(layout.from_directory(tmp_path / "s")[1], state)
    layout.write_multimolecule(tmp_path / "b", state, config, WriteOptions("model", dtype=torch.bfloat16))
    rounded = {name: x.bfloat16().float() for name, x in state.items()}
    assert same(layout.from_directory(tmp_path / "b")[1], rounded)
    torch.save(load_file(tmp_path / "b" / "model.safetensors"), tmp_path / "b" / "pytorch_model.bin")
    (tmp_path / "b" / "model.safetensors").unlink()
    assert same(layout.from_directory(tmp_path / "b")[1], rounded)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_read_checkpoint_of_an_original_file(tmp_path, suffix):
    model = RiNALMo(RiNALMoConfig(layers=2, width=40, heads=20, ffn=106))
    original = layout.to_original(model.state_dict(), model.config)
    path = tmp_path / f"rinalmo{suffix}"
    if suffix == ".safetensors":
        save_file(original, path)
    else:
        torch.save({"model": original} if suffix == ".pth" else original, path)
    name, config, state = read_checkpoint(path)
    assert (name, config) == ("rinalmo", model.config)
    assert same(state, model.state_dict())


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused(tmp_path):
    torch.save({"embedding.weight": torch.zeros(1), "x": Malicious()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious()))
    (tmp_path / "c.pt").write_bytes(b"no checkpoint at all")
    for name in "abc":
        with pytest.raises(ModelError, match=rf"{name}\.pt cannot be loaded as plain tensors"):
            read_checkpoint(tmp_path / f"{name}.pt")


def test_damaged_and_foreign_files_are_refused(model, exported, tmp_path):
    torch.save({"bert.embeddings.weight": torch.zeros(3)}, tmp_path / "bert.pt")
    with pytest.raises(ModelError, match=r"bert\.embeddings\.weight.*fit none of the original layouts of .*rinalmo"):
        read_checkpoint(tmp_path / "bert.pt")
    (tmp_path / "cut.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:-100])
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-5000])
    (tmp_path / "list.pt").write_bytes(b"")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name, words in (
        ("cut.safetensors", "truncated"),
        ("cut.pt", "damaged"),
        ("list.pt", "holds a list"),
        ("absent.pt", "does not exist"),
        ("mm/vocab.txt", "neither a .safetensors nor a torch file"),
    ):
        with pytest.raises(ModelError, match=words):
            read_checkpoint(tmp_path / name)


def test_original_files_with_wrong_tensors_are_refused(model):
    def refused(change, words):
        state = layout.to_original(model.state_dict(), model.config)
        change(state)
        with pytest.raises(ModelError, match=words):
            layout.from_original(state, heads=4, source="f.pt")

    key = "transformer.blocks.1.transition.0.linear_gate.bias"
    refused(lambda s: s.pop(key), rf"f\.pt has no tensor {key}")
    refused(lambda s: s.update({key: torch.zeros(214)}), rf"f\.pt: {key} has shape \[214\] where .* has \[213\]")
    refused(lambda s: s.update({"embedding.weight": torch.zeros(26, 80)}), "22 rows")
    refused(lambda s: s.update({"transformer.blocks.1.extra.weight": torch.zeros(1)}), "extra.*silence")
    with pytest.raises(ModelError, match="width 80"):
        layout.from_original(layout.to_original(model.state_dict(), model.config), heads=7)


def test_multimolecule_directories_with_wrong_contents_are_refused(exported, tmp_path):
    def refused(words, config=None, tensors=None, vocabulary=None):
        directory = tmp_path / "changed"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(exported, directory)
        if config:
            content = json.loads((directory / "config.json").read_text()) | config
            (directory / "config.json").write_text(json.dumps(content))
        if tensors:
            content = load_file(directory / "model.safetensors")
            tensors(content)
            save_file(content, directory / "model.safetensors", {"format": "pt"})
        if vocabulary is not None:
            (directory / "vocab.txt").write_text(vocabulary)
        with pytest.raises(ModelError, match=words):
            read_checkpoint(directory)

    tokens = "\n".join(VOCABULARIES[28])
    key = "model.encoder.layer.1.attention.self.key.weight"
    refused("model_type is 'rnafm'", config={"model_type": "rnafm"})
    refused("token_dropout is False", config={"token_dropout": False})
    refused("position_embedding_type", config={"position_embedding_type": "absolute"})
    refused("hidden_size must be", config={"hidden_size": "80"})
    refused(r"word_embeddings\.weight has shape \[28, 80\] where .* has \[28, 160\]", config={"hidden_size": 160})
    refused("tensors that RiNALMo of this size does not have", config={"num_hidden_layers": 2})
    refused(r"no tensor model\.encoder\.layer\.3", config={"num_hidden_layers": 4})
    refused(f"changed has no tensor {key}", tensors=lambda s: s.pop(key))
    refused(
        rf"{key} has shape \[80, 81\] where .* has \[80, 80\]", tensors=lambda s: s.update({key: torch.zeros(80, 81)})
    )
    refused(r"has shape \[28, 80\] and vocab.txt 27 tokens", vocabulary=tokens.removesuffix("\n?"))
    refused("lacks Y", vocabulary=tokens.replace("Y", "y"))
    (exported / "vocab.txt").unlink()
    refused("vocab.txt does not exist")
    (exported / "config.json").write_text("{")
    refused("is not JSON")
    (exported / "config.json").unlink()
    refused("config.json does not exist")


def test_an_index_cannot_point_outside_its_directory(model, tmp_path):
    layout.write_multimolecule(
        tmp_path / "s", model.state_dict(), model.config, WriteOptions("model", shard_bytes=400_000)
    )
    index = tmp_path / "s" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.bias"] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="not a safetensors file of the same directory"):
        read_checkpoint(tmp_path / "s")


def test_only_a_model_that_multimolecule_can_express_is_exported(small):
    model = small(normalised_residual=False)
    with pytest.raises(ModelError, match="normalised residual"):
        layout.to_multimolecule(model.state_dict(), model.config)
    model = small()
    with pytest.raises(ModelError, match="no RNA vocabulary of 27"):
        layout.to_multimolecule(model.state_dict(), model.config, tokens=27)
