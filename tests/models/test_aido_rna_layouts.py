"""AIDO.RNA's conversions by round trips, against what the classes of others saved and computed, and damaged files.

specs/aido_rna 2, 7, 8 and 9. What is in data/aido_rna, and how it was made, is said in the README.txt there.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.alphabet import ALPHABETS
from models.aido_rna import AidoRNA, AidoRNAConfig
from models.errors import ModelError
from models.layouts import aido_rna as layout
from models.layouts import aido_rna_genbio as genbio
from models.layouts import aido_rna_multimolecule as multimolecule
from models.layouts.aido_rna_table import UNTRAINED, released, rows
from models.layouts.detect import read_checkpoint
from models.layouts.releasing import WriteOptions
from tests.models.small_aido_rna import LIKE_1M, build

FROZEN = Path(__file__).parent / "data" / "aido_rna"
TRAINED = [1, 2, 3, 5, 6, 7, 8, 10]  # [MASK] [CLS] [SEP] A G C T N
THEIRS = {0: 0, 1: 4, 2: 1, 3: 2, 4: 3, 5: 6, 6: 8, 7: 7, 8: 9, 10: 10}  # spec 2.3: our id -> MultiMolecule's
OPTIONS = WriteOptions("x")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(params=["layer", "rms"])
def model(request):
    return build(**(LIKE_1M if request.param == "rms" else {}))


@pytest.fixture
def written(tmp_path):
    """Writes a model in one of the layouts and returns the directory."""

    def write(name, model, options=OPTIONS):
        directory = tmp_path / f"{name}-release"
        directory.mkdir()
        assert layout.RELEASES[name].write(directory, model.state_dict(), model.config, options) == directory
        return directory

    return write


def changed_files(directory, to, config=None, tensors=None, vocabulary=None):
    """A copy of ``directory`` with other contents; a None in ``config`` takes the key away."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    content = json.loads((to / "config.json").read_text()) | (config or {})
    content = {key: value for key, value in content.items() if not (key in (config or {}) and value is None)}
    (to / "config.json").write_text(json.dumps(content))
    if tensors:
        state = load_file(to / "model.safetensors")
        tensors(state)
        save_file(state, to / "model.safetensors", {"format": "pt"})
    if vocabulary:
        (to / "vocab.txt").write_text(vocabulary((to / "vocab.txt").read_text()))
    return to


def test_tokens_are_the_alphabet_of_the_data():
    assert layout.tokens(build().config) == ALPHABETS["aido_rna"].tokens
    assert "".join(layout.TOKENS[5:11]) == "AGCTUN"


def test_table_names_every_parameter_once(model):
    table = rows(model.config)
    assert sorted(row.ours for row in table) == sorted(model.state_dict())
    for names in ([n for row in table for n in row.genbio], [n for row in table for n in row.multimolecule]):
        assert len(set(names)) == len(names)


def test_a_release_changes_the_untrained_rows_only(model):
    state = model.state_dict()
    out = released(state)
    assert {layout.TOKENS[i] for i in UNTRAINED} | {layout.TOKENS[i] for i in TRAINED} == set(layout.TOKENS)
    assert {name for name in state if not torch.equal(out[name], state[name])} == {"embed.weight", "head.out.bias"}
    others = [*range(9), *range(10, 16)]
    assert torch.equal(out["embed.weight"][9], state["embed.weight"][8])
    assert torch.equal(out["embed.weight"][others], state["embed.weight"][others])
    assert torch.equal(out["head.out.bias"][TRAINED], state["head.out.bias"][TRAINED])
    assert (out["head.out.bias"][list(UNTRAINED)] == -30).all()
    assert same(released(out), out)


def test_genbio_conversion_is_bit_exact_both_ways(model):
    tensors = genbio.to_genbio(model.state_dict(), model.config)
    assert tensors["bert.encoder.layer.2.attention.self.key.weight"].equal(model.blocks[2].attn.qkv.weight[48:96])
    assert tensors["bert.encoder.layer.1.mlp.gate_proj.weight"].equal(model.blocks[1].ffn.swish.weight)
    back = genbio.from_tensors(tensors, model.config, "spec")
    assert same(back, model.state_dict())
    assert same(genbio.to_genbio(back, model.config), tensors)


@pytest.mark.parametrize("name", ["transformers", "genbio"])
def test_release_directories_give_back_the_released_model(model, written, name):
    directory = written(name, model)
    found, config, state = read_checkpoint(directory)
    assert (found, config) == ("aido_rna", model.config)
    assert same(state, released(model.state_dict()))
    assert (directory / "vocab.txt").read_text().split() == list(layout.TOKENS)


def test_multimolecule_directory_gives_back_what_was_trained(written):
    model = build()
    directory = written("multimolecule", model)
    found, config, state = read_checkpoint(directory)
    assert (found, config) == ("aido_rna", model.config)
    expected = released(model.state_dict())
    expected["embed.weight"][[11, 12, 13, 14, 15]] = 0  # [BOS] to [UNUSED3] do not exist there
    assert same(state, expected)
    tensors = load_file(directory / "model.safetensors")
    embed, bias = tensors["aido_rna.embeddings.word_embeddings.weight"], tensors["lm_head.bias"]
    assert embed.shape == (26, 48)
    trained = [THEIRS[i] for i in TRAINED]
    assert torch.equal(embed[trained], model.embed.weight[TRAINED])
    assert torch.equal(bias[trained], model.head.out.bias[TRAINED])
    assert (bias[[i for i in range(26) if i not in trained]] == -30).all()
    ours = model.embed.weight.detach()
    torch.testing.assert_close(embed[11], (ours[5] + ours[6]) / 2)  # R is A or G
    torch.testing.assert_close(embed[12], (ours[7] + ours[8]) / 2)  # Y is C or U, and U is our T
    torch.testing.assert_close(embed[22], ours[5:9].mean(0))  # X
    assert not any("decoder" in name for name in tensors)


@pytest.mark.parametrize("name", ["transformers", "genbio", "multimolecule"])
def test_bf16_and_sharded_releases(written, name):
    model = build()
    directory = written(name, model, WriteOptions("x", torch.bfloat16, shard_bytes=50_000))
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    _, _, state = read_checkpoint(directory)
    content = json.loads((directory / "config.json").read_text())
    assert content.get("dtype", content.get("torch_dtype")) == "bfloat16"
    rounded = released({key: x.bfloat16().float() for key, x in model.state_dict().items()})
    assert all(torch.equal(state[key], x) for key, x in rounded.items() if key != "embed.weight")
    assert torch.equal(state["embed.weight"][:11], rounded["embed.weight"][:11])


def test_a_model_that_multimolecule_cannot_express_is_refused(written):
    with pytest.raises(ModelError, match="always has LayerNorm and biases"):
        written("multimolecule", build(**LIKE_1M))
    with pytest.raises(ModelError, match=r"26 tokens where AIDO\.RNA's vocabulary has 16"):
        written("genbio", build(vocab=26))


@pytest.mark.parametrize("folder", ["genbio_layernorm", "genbio_rmsnorm", "multimolecule_0_0_8"])
def test_directories_saved_by_the_classes_of_others_give_their_outputs(folder, pack):
    name, config, state = read_checkpoint(FROZEN / folder)
    assert name == "aido_rna"
    assert (config.norm, config.bias) == (("rms", False) if folder == "genbio_rmsnorm" else ("layer", True))
    model = AidoRNA(config).eval()
    model.load_state_dict(state)
    kept = load_file(FROZEN / folder / "reference.safetensors")
    is_real = kept["attention_mask"].bool()
    ids, columns = kept["input_ids"], list(range(16))
    if folder == "multimolecule_0_0_8":
        back = {theirs: ours for ours, theirs in THEIRS.items()}
        ids = torch.tensor([[back[int(i)] for i in row] for row in ids])
        columns = [THEIRS[i] for i in TRAINED]
    assert not is_real.all()
    assert {1, 5, 6, 7, 8, 10} <= set(ids.flatten().tolist())  # [MASK], A, G, C, T, N
    batch = pack([row[real] for row, real in zip(ids, is_real, strict=True)])
    with torch.no_grad():
        logits, hidden = model(*batch), model.hidden(*batch)
    expected = kept["logits"][is_real][:, columns]
    ours = logits if len(columns) == 16 else logits[:, TRAINED]
    print(f"{folder}: logits {(ours - expected).abs().max():.1e}")
    assert (ours - expected).abs().max() <= 2e-5
    assert (hidden - kept["hidden"][is_real]).abs().max() <= 1e-5


@pytest.mark.parametrize("folder", ["genbio_layernorm", "genbio_rmsnorm"])
def test_what_genbios_class_saved_is_written_again(folder, written):
    """Same names, shapes and values, and the copy of the bias that their class needs; same configuration."""
    _, config, state = read_checkpoint(FROZEN / folder)
    theirs = load_file(FROZEN / folder / "model.safetensors")
    ours = genbio.to_genbio(state, config)
    assert torch.equal(ours.pop("cls.predictions.decoder.bias"), theirs["cls.predictions.bias"])
    assert same(ours, theirs)
    content = json.loads((FROZEN / folder / "config.json").read_text())
    mine = genbio.write_config(config)
    del content["transformers_version"], mine["tie_word_embeddings"]  # written or not by the library's version
    assert mine == content


def test_what_multimolecules_class_saved_is_written_again():
    folder = FROZEN / "multimolecule_0_0_8"
    _, config, state = read_checkpoint(folder)
    theirs = load_file(folder / "model.safetensors")
    content, ours = multimolecule.to_multimolecule(state, config)
    trained = [THEIRS[i] for i in TRAINED]
    for name in ("aido_rna.embeddings.word_embeddings.weight", "lm_head.bias"):
        assert torch.equal(ours.pop(name)[trained], theirs.pop(name)[trained])
    assert same(ours, theirs)
    kept = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "transformers_version", "id2label", "label2id"):
        kept.pop(key)
    assert {key: content[key] for key in kept} == kept
    assert (folder / "vocab.txt").read_text().split() == list(multimolecule.vocabulary(26))


def test_u_is_the_row_of_t_in_what_is_imported_from_multimolecule():
    """Their U is the letter that training used. GenBio's row of U never trained, and is not what a U is read as."""
    _, _, state = read_checkpoint(FROZEN / "multimolecule_0_0_8")
    their_u = load_file(FROZEN / "multimolecule_0_0_8" / "model.safetensors")
    their_u = their_u["aido_rna.embeddings.word_embeddings.weight"][9]
    assert torch.equal(state["embed.weight"][8], their_u)
    assert torch.equal(state["embed.weight"][9], their_u)
    assert ALPHABETS["aido_rna"].encode("UuTt").tolist() == [8, 8, 8, 8]
    assert ALPHABETS["aido_rna"].encode("ACRYG").tolist() == [5, 7, 10, 10, 6]


def test_missing_norm_means_rms_norm_as_in_their_class(written, tmp_path):
    """specs/aido_rna 7.3: a LayerNorm model whose config.json leaves the key out would be read as another model."""
    rms = build(**LIKE_1M)
    directory = changed_files(written("genbio", rms), tmp_path / "without", {"normalization_type": None})
    assert read_checkpoint(directory)[1].norm == "rms"
    (tmp_path / "genbio-release").rename(tmp_path / "of-rms")
    directory = changed_files(written("genbio", build()), tmp_path / "without", {"normalization_type": None})
    with pytest.raises(ModelError, match=r"does not have, bert\.encoder\.layer\.0\.attention\.ln\.bias first"):
        read_checkpoint(directory)


@pytest.mark.parametrize("form", ["plain", "with copies", "bin", "bin shards"])
def test_every_form_of_genbios_directory_is_read(model, written, form):
    directory = written("genbio", model)
    tensors = load_file(directory / "model.safetensors")
    if form == "with copies":
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    elif form != "plain":
        (directory / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = [names] if form == "bin" else [names[:10], names[10:]]
        files = ["pytorch_model.bin"] if form == "bin" else [f"pytorch_model-{i}.bin" for i in range(2)]
        for part, file in zip(parts, files, strict=True):
            torch.save({name: tensors[name] for name in part}, directory / file)
        if form == "bin shards":
            index = {name: file for part, file in zip(parts, files, strict=True) for name in part}
            (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(read_checkpoint(directory)[2], released(model.state_dict()))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_single_files_of_genbios_weights(model, tmp_path, suffix):
    tensors, path = genbio.to_genbio(model.state_dict(), model.config), tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    found, config, state = read_checkpoint(path, heads=4)
    assert (found, config) == ("aido_rna", model.config)
    assert same(state, model.state_dict())
    with pytest.raises(ModelError, match="how many attention heads"):
        read_checkpoint(path)


@pytest.mark.parametrize("size", ["1m", "25m", "650m", "1b6"])
def test_a_single_file_of_a_published_size_needs_no_heads(size):
    config = AidoRNAConfig.named(size, layers=1)
    with torch.device("meta"):
        model = AidoRNA(config)
    tensors = genbio.to_genbio(model.state_dict(), config)
    del tensors["cls.predictions.decoder.bias"]  # their class does not save it; and values on meta cannot be compared
    assert layout.recognises_original(set(tensors))
    assert layout.from_original(tensors)[0] == config


def test_wrong_contents_are_refused_with_a_sentence(written, tmp_path):
    theirs, mm, ours = (written(name, build()) for name in ("genbio", "multimolecule", "transformers"))
    key = "bert.encoder.layer.1.mlp.up_proj.weight"

    def untie(name, copied):
        return lambda state: state.update({name: state[copied] + 1})

    for directory, words, change in (
        (theirs, "hidden_act is 'gelu'", {"config": {"hidden_act": "gelu"}}),
        (theirs, "rotary_percent is 0.5", {"config": {"rotary_percent": 0.5}}),
        (theirs, "normalization_type must be", {"config": {"normalization_type": "BatchNorm"}}),
        (theirs, "hidden_size must be a whole", {"config": {"hidden_size": None}}),
        (theirs, "no tensor bert.encoder.layer.3", {"config": {"num_hidden_layers": 4}}),
        (theirs, "encoder tensors that", {"config": {"num_hidden_layers": 2}}),
        (theirs, "encoder tensors that", {"config": {"add_linear_bias": False}}),
        (theirs, rf"has no tensor {key}", {"tensors": lambda state: state.pop(key)}),
        (theirs, r"has shape \[128, 49\] where", {"tensors": lambda s: s.update({key: torch.zeros(128, 49)})}),
        (
            theirs,
            "decoder is its embedding",
            {"tensors": untie("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")},
        ),
        (theirs, "decoder.bias differs", {"tensors": untie("cls.predictions.decoder.bias", "cls.predictions.bias")}),
        (mm, "hidden_act is 'gelu'", {"config": {"hidden_act": "gelu"}}),
        (mm, "lacks U", {"vocabulary": lambda text: text.replace("U\n", "u\n")}),
        (mm, r"has shape \[26, 48\] where .* has \[25, 48\]", {"vocabulary": lambda text: text.replace("I\n", "")}),
        (mm, "lm_head.decoder.bias differs", {"tensors": untie("lm_head.decoder.bias", "lm_head.bias")}),
        (ours, "no use_bias", {"config": {"use_bias": None}}),
        (ours, "encoder tensors that", {"config": {"num_hidden_layers": 2}}),
    ):
        with pytest.raises(ModelError, match=words):
            read_checkpoint(changed_files(directory, tmp_path / "changed", **change))


def test_an_index_cannot_point_outside_its_directory(written):
    directory = written("genbio", build())
    (directory / "model.safetensors").unlink()
    index = directory / "pytorch_model.bin.index.json"
    for name, words in (("../secret.bin", "not a .bin file"), ("pytorch_model-0.bin", "does not exist")):
        index.write_text(json.dumps({"weight_map": {"cls.predictions.bias": name}}))
        with pytest.raises(ModelError, match=words):
            read_checkpoint(directory)
