"""RNAErnie's layouts: the tables of names and rows, round trips, and refusals. RNAErnie specification 2, 7 and 8."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.alphabet import RNAERNIE, RNAERNIE_28
from models.errors import ModelError
from models.layouts import rnaernie as layout
from models.layouts.detect import read_checkpoint
from models.layouts.multimolecule import VOCABULARIES
from models.layouts.paddle import read_pdparams
from models.layouts.releasing import WriteOptions
from models.layouts.rnaernie_rows import ADDED, BY_TOKEN, FULL, MEANINGS, ORIGINAL, STRIPPED, fill, never_trained
from models.rnaernie import RNAErnie, RNAErnieConfig
from tests.models.rnaernie_models import small

OPTIONS = WriteOptions("model")
AS_IT_IS = WriteOptions("model", letters=None)  # every row is meant
LETTERS = ("<null>", *"NRYSWKMBDHVIX|.*-?")  # that training reads as <unk>


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def changed(ours, theirs):
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_tokens_are_the_alphabets_of_the_data():
    assert layout.tokens(RNAErnieConfig.named("nano")) == RNAERNIE.tokens == FULL
    assert layout.tokens(RNAErnieConfig.named("nano", vocab=28)) == RNAERNIE_28.tokens == VOCABULARIES[28]
    with pytest.raises(ModelError, match="39 tokens"):
        layout.tokens(RNAErnieConfig.named("nano", vocab=39))


def test_original_vocabulary_of_the_specification():
    """Spec 2.1 and 2.4: our id = original id + 22 for the original ids 6 to 34."""
    assert len(ORIGINAL) == 39
    assert ORIGINAL[:7] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEL]", "[IND]")
    assert (ORIGINAL[7], ORIGINAL[16], ORIGINAL[31], ORIGINAL[34]) == ("RNaseMRPRNA", "miRNA", "tRNA", "vaultRNA")
    assert ORIGINAL[35:] == ("A", "T", "C", "G")
    assert [f"[{token.strip('[]')}]" for token in ORIGINAL[6:35]] == list(FULL[28:57])


@pytest.mark.parametrize("pooler", [False, True])
def test_table_names_every_parameter_once(pooler):
    model = small(pooler=pooler)
    table = layout.rows(model.config)
    assert {row.ours for row in table} == set(model.state_dict())
    for names in ([n for row in table for n in row.original], [n for row in table for n in row.multimolecule]):
        assert len(set(names)) == len(names)
    transposed = {row.ours.split(".", 2)[-1] for row in table if row.transposed}
    linear = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert transposed == {f"{name}.weight".split(".", 2)[-1] for name in linear}


def test_names_of_the_specification():
    """Spec 7.2 and 7.3, written out for one block."""
    config = RNAErnieConfig(layers=1, width=8, heads=2, ffn=16, vocab=57)
    original = layout.to_original(RNAErnie(config).state_dict(), config)
    block = "ernie.encoder.layers.0."
    names = {f"{block}self_attn.{x}_proj" for x in ("q", "k", "v", "out")}
    names |= {block + x for x in ("linear1", "linear2", "norm1", "norm2")}
    names |= {"ernie.embeddings.layer_norm", "ernie.pooler.dense", "cls.predictions.transform"}
    names |= {"cls.predictions.layer_norm"}
    expected = {f"{name}.{x}" for name in names for x in ("weight", "bias")}
    expected |= {f"ernie.embeddings.{x}_embeddings.weight" for x in ("word", "position", "token_type")}
    expected |= {"cls.predictions.decoder_weight", "cls.predictions.decoder_bias"}
    assert set(original) == expected
    assert original[block + "linear1.weight"].shape == (8, 16)  # (in, out)
    assert original["ernie.embeddings.word_embeddings.weight"].shape == (39, 8)
    assert torch.equal(original["cls.predictions.decoder_weight"], original["ernie.embeddings.word_embeddings.weight"])


def test_linear_weights_of_the_original_are_transposed():
    model = small(pooler=True)
    state, original = model.state_dict(), layout.to_original(model.state_dict(), model.config)
    query, key, value = state["blocks.1.attn.qkv.weight"].chunk(3)
    for letter, ours in (("q", query), ("k", key), ("v", value)):
        assert torch.equal(original[f"ernie.encoder.layers.1.self_attn.{letter}_proj.weight"], ours.T)
    for theirs, ours in (
        ("ernie.encoder.layers.1.self_attn.out_proj", "blocks.1.attn.out"),
        ("ernie.encoder.layers.1.linear2", "blocks.1.ffn.down"),
        ("ernie.pooler.dense", "pooler"),
        ("cls.predictions.transform", "head.dense"),
    ):
        assert torch.equal(original[f"{theirs}.weight"], state[f"{ours}.weight"].T)
        assert torch.equal(original[f"{theirs}.bias"], state[f"{ours}.bias"])
    assert torch.equal(original["ernie.embeddings.position_embeddings.weight"], state["positions.weight"])


@pytest.mark.parametrize("vocab", [28, 57])
def test_ours_to_original_and_back(vocab):
    model = small(vocab=vocab, pooler=True)
    state, tokens = model.state_dict(), layout.tokens(model.config)
    original = layout.to_original(state, model.config)
    config, back = layout.from_original(original, heads=4)
    assert config == RNAErnieConfig(layers=3, width=48, heads=4, ffn=96, vocab=57, pooler=True)
    assert changed(state, back) <= set(BY_TOKEN)
    kept = [t for t in ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", *"ACGU", *ADDED) if t in tokens]
    for name in BY_TOKEN:
        ours = {t: state[name][tokens.index(t)] for t in tokens}
        found = {t: back[name][i] for i, t in enumerate(FULL)}
        assert all(torch.equal(found[t], ours[t]) for t in kept)
        for code, letters in MEANINGS.items():
            torch.testing.assert_close(found[code], sum(ours[x] for x in letters) / len(letters))
        assert all(torch.equal(found[t], ours["<unk>"]) for t in "I|.*-?")
        last = ours["[vaultRNA]"] if vocab == 57 else ours["<null>"]
        assert torch.equal(found["<null>"], last)
    again = layout.to_original(back, config)
    only = {"ernie.embeddings.word_embeddings.weight", "cls.predictions.decoder_weight", "cls.predictions.decoder_bias"}
    assert changed(again, original) <= only  # their unused [DEL]
    for name in only:
        rows = [i for i in range(39) if i != ORIGINAL.index("[DEL]")]
        assert torch.equal(again[name][rows], original[name][rows])


def test_original_to_ours_and_back_is_bit_exact_but_for_the_unused_token():
    generator = torch.Generator().manual_seed(4)
    model = small(pooler=True)
    original = {
        name: torch.randn(x.shape, generator=generator)
        for name, x in layout.to_original(model.state_dict(), model.config).items()
    }
    original["cls.predictions.decoder_weight"] = original["ernie.embeddings.word_embeddings.weight"]
    config, state = layout.from_original(original, heads=4)
    back = layout.to_original(state, config)
    for name, x in original.items():
        if x.shape[0] == 39:
            rows = [i for i in range(39) if i != 5]
            assert torch.equal(back[name][rows], x[rows]), name
        else:
            assert torch.equal(back[name], x), name


@pytest.mark.parametrize("file", ["model.pdparams", "model.safetensors", "model.pt"])
def test_read_checkpoint_of_an_original_file(tmp_path, file):
    model = small(pooler=True)
    state = fill(model.state_dict(), model.config, never_trained(model.config))
    path = tmp_path / file
    if path.suffix == ".pdparams":
        assert layout.write_original(tmp_path, model.state_dict(), model.config, OPTIONS) == path
        assert len(read_pdparams(path)) == 3 * 16 + 12 + 1
    else:
        original = {k: x.contiguous().clone() for k, x in layout.to_original(state, model.config).items()}
        save_file(original, path) if path.suffix == ".safetensors" else torch.save(original, path)
    name, config, back = read_checkpoint(path, heads=4)
    assert (name, config) == ("rnaernie", model.config)
    assert changed(state, back) <= set(BY_TOKEN)


@pytest.mark.parametrize("tokens", [26, 28, 57])
@pytest.mark.parametrize("vocab", [28, 57])
def test_multimolecule_round_trip(tmp_path, tokens, vocab):
    model = small(vocab=vocab)
    state, options = model.state_dict(), WriteOptions("model", vocabulary=26 if tokens == 26 else 28)
    write = layout.write_full if tokens == 57 else layout.write_stripped
    assert write(tmp_path, state, model.config, options) == tmp_path
    assert (tmp_path / "vocab.txt").read_text().split() == list(FULL if tokens == 57 else VOCABULARIES[tokens])
    name, config, back = read_checkpoint(tmp_path)
    assert name == "rnaernie"
    assert (config.vocab, config.pooler) == (57 if tokens == 57 else 28, True)
    ours = fill(state, model.config, never_trained(model.config))
    for key in state.keys() - set(BY_TOKEN):
        assert torch.equal(back[key], state[key]), key
    for key in BY_TOKEN:  # every token that both have; the rows that are added are those of <unk>
        both = min(vocab, config.vocab)
        assert torch.equal(back[key][:both], ours[key][:both])
        assert (back[key][both:] == ours[key][3]).all()
    without = layout.drop_pooler(back, config)
    assert without[0] == RNAErnieConfig(layers=3, width=48, heads=4, ffn=96, vocab=config.vocab)
    assert set(without[1]) == set(state)


def test_rows_that_were_never_trained():
    model = small()
    state = model.state_dict()
    assert never_trained(model.config) == LETTERS
    assert never_trained(model.config, "ACGUNRYKMSWBDHV") == ("<null>", *"IX|.*-?")
    _, tensors = layout.to_multimolecule(state, model.config, STRIPPED, never_trained(model.config))
    for name, ours in (
        ("model.embeddings.word_embeddings.weight", state["embed.weight"]),
        ("lm_head.bias", state["head.out.bias"]),
    ):
        for i, token in enumerate(STRIPPED):
            assert torch.equal(tensors[name][i], ours[3 if token in LETTERS else i]), token
    untouched = layout.to_multimolecule(state, model.config, STRIPPED, ())[1]
    assert torch.equal(untouched["model.embeddings.word_embeddings.weight"], state["embed.weight"][:28])


def test_pooler_of_a_release_is_the_same_every_time_unless_the_model_has_one(tmp_path):
    model = small()
    weights = []
    for folder, write in (("a", layout.write_stripped), ("b", layout.write_full)):
        write(tmp_path / folder, model.state_dict(), model.config, OPTIONS)
        weights.append(load_file(tmp_path / folder / "model.safetensors"))
    path = layout.write_original(tmp_path, model.state_dict(), model.config, OPTIONS)
    pooler = weights[0]["model.pooler.dense.weight"]
    assert torch.equal(pooler, weights[1]["model.pooler.dense.weight"])
    assert torch.equal(pooler.T, read_pdparams(path)["ernie.pooler.dense.weight"])
    assert pooler.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.count_nonzero(weights[0]["model.pooler.dense.bias"]) == 0
    assert "pooler" in layout.release_notes(model.config)
    trained = small(pooler=True)
    _, tensors = layout.to_multimolecule(trained.state_dict(), trained.config, STRIPPED, ())
    assert torch.equal(tensors["model.pooler.dense.weight"], trained.state_dict()["pooler.weight"])
    assert layout.release_notes(trained.config, letters=None) == ""
    assert "`<null> I X | . * - ?`" in layout.release_notes(trained.config, letters="ACGUNRYKMSWBDHV")


def test_types_are_added_to_a_model_of_28_tokens(pack):
    model = small(vocab=28)
    before = model.state_dict()
    config, state = layout.grow_vocabulary(before, model.config, torch.Generator().manual_seed(2))
    assert config == RNAErnieConfig(layers=3, width=48, heads=4, ffn=96, vocab=57)
    assert torch.equal(state["embed.weight"][:28], before["embed.weight"])
    assert state["embed.weight"][28:].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.count_nonzero(state["head.out.bias"][28:]) == 0
    grown = RNAErnie(config).eval()
    grown.load_state_dict(state)
    row = pack([torch.tensor([1, 6, 4, 9, 2])])
    torch.testing.assert_close(grown(*row)[:, :28], model(*row), atol=1e-5, rtol=1e-5)
    again = layout.grow_vocabulary(before, model.config, torch.Generator().manual_seed(2))[1]
    assert same(state, again)
    with pytest.raises(ModelError, match="this one has 57"):
        layout.grow_vocabulary(state, config)


def test_contract_of_a_layout_file(tmp_path):
    assert layout.MODEL_TYPES == ("rnaernie",)
    assert layout.HEADS == 12
    assert {name: release.folder for name, release in layout.RELEASES.items()} == {
        "multimolecule": "",
        "full": "full",
        "original": "original",
    }
    model = small()
    for name, release in layout.RELEASES.items():
        directory = tmp_path / name
        directory.mkdir()
        path = release.write(directory, model.state_dict(), model.config, WriteOptions("run"))
        found, config, state = read_checkpoint(path, heads=4)
        assert found == "rnaernie"
        assert config.vocab == state["embed.weight"].shape[0] == {"multimolecule": 28}.get(name, 57)
        back = RNAErnie(config)
        back.load_state_dict(state)
        assert "```python" in release.usage
    assert path.name == "run.pdparams"


def test_export_writes_the_same_bytes_twice(tmp_path):
    model = small()
    for folder in ("a", "b"):
        for part, write in (("s", layout.write_stripped), ("f", layout.write_full)):
            write(tmp_path / folder / part, model.state_dict(), model.config, OPTIONS)
        layout.write_original(tmp_path / folder, model.state_dict(), model.config, OPTIONS)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    four = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert [str(f) for f in files] == [*(f"f/{n}" for n in four), "model.pdparams", *(f"s/{n}" for n in four)]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize("prefix", ["rnaernie.", ""])
def test_older_key_prefixes_and_a_missing_pooler(tmp_path, prefix):
    model = small(vocab=28)
    layout.write_stripped(tmp_path, model.state_dict(), model.config, AS_IT_IS)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1) if name[0] == "m" else name: x for name, x in tensors.items()}
    renamed = {name: x for name, x in renamed.items() if "pooler" not in name}
    renamed["lm_head.decoder.bias"] = torch.full((28,), 1e30)  # a copy that is never read
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    config, state = layout.from_directory(tmp_path)
    assert config == model.config
    assert same(state, model.state_dict())


def test_sharded_and_bf16_exports(tmp_path):
    model = small(vocab=28, pooler=True)
    state = model.state_dict()
    sharded = WriteOptions("model", shard_bytes=100_000, letters=None)
    layout.write_stripped(tmp_path / "s", state, model.config, sharded)
    assert len(list((tmp_path / "s").glob("model-*.safetensors"))) > 2
    assert same(layout.from_directory(tmp_path / "s")[1], state)
    half = WriteOptions("model", dtype=torch.bfloat16, letters=None)
    layout.write_stripped(tmp_path / "b", state, model.config, half)
    rounded = {name: x.bfloat16().float() for name, x in state.items()}
    assert same(layout.from_directory(tmp_path / "b")[1], rounded)
    path = layout.write_original(tmp_path, state, model.config, half)
    back = layout.from_original(read_pdparams(path), heads=4)[1]
    assert torch.equal(back["blocks.0.ffn.up.weight"], rounded["blocks.0.ffn.up.weight"])


def test_original_files_with_wrong_tensors_are_refused():
    model = small()

    def refused(change, words):
        state = layout.to_original(model.state_dict(), model.config)
        change(state)
        with pytest.raises(ModelError, match=words):
            layout.from_original(state, heads=4, source="f.pdparams")

    key = "ernie.encoder.layers.1.linear2.weight"
    refused(lambda s: s.pop(key), rf"f\.pdparams has no tensor {key}")
    refused(lambda s: s.update({key: s[key].T}), rf"f\.pdparams: {key} has shape \[48, 96\] where .* has \[96, 48\]")
    refused(lambda s: s.update({"ernie.encoder.layers.1.extra": torch.zeros(1)}), "extra.*silence")
    refused(lambda s: s.update({"ernie.embeddings.task_type_embeddings.weight": torch.zeros(1)}), "task_type.*silence")
    words = "ernie.embeddings.word_embeddings.weight"
    refused(lambda s: s.update({words: torch.zeros(28, 48)}), "39 rows")
    refused(lambda s: s.update({words: s[words] + 1}), "decoder_weight differs")
    refused(lambda s: s.pop("ernie.pooler.dense.bias"), "no tensor ernie.pooler.dense.bias")


def test_multimolecule_directories_with_wrong_contents_are_refused(tmp_path):
    model = small(vocab=28)
    layout.write_stripped(tmp_path / "mm", model.state_dict(), model.config, OPTIONS)

    def refused(words, config=None, tensors=None, vocabulary=None):
        directory = tmp_path / "changed"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "mm", directory)
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

    key = "model.encoder.layer.1.attention.self.key.weight"
    refused("hidden_act is 'gelu'", config={"hidden_act": "gelu"})
    refused("layer_norm_eps is 1e-05", config={"layer_norm_eps": 1e-5})
    refused("tie_word_embeddings is False", config={"tie_word_embeddings": False})
    refused("transform_act is 'gelu'.*before 0.2.0.*untransposed", config={"lm_head": {"transform_act": "gelu"}})
    refused("hidden_size must be", config={"hidden_size": "48"})
    refused("tensors that RNAErnie of this size does not have", config={"num_hidden_layers": 2})
    refused(r"no tensor model\.encoder\.layer\.3", config={"num_hidden_layers": 4})
    refused(r"position_embeddings\.weight has shape \[513, 48\]", config={"max_position_embeddings": 512})
    refused(f"changed has no tensor {key}", tensors=lambda s: s.pop(key))
    refused(r"word_embeddings\.weight has shape \[28, 48\]", vocabulary="\n".join(STRIPPED[:-1]))
    refused("lacks Y", vocabulary="\n".join(STRIPPED).replace("Y", "y"))
    refused(r"lacks \[vaultRNA\]", vocabulary="\n".join(FULL[:-1]))
