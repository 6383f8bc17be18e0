"""RNAErnie and AIDO.RNA from a run to a release, and from every part of a release to the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.aido_rna import AidoRNA, AidoRNAConfig
from models.layouts.aido_rna_genbio import write as write_genbio
from models.layouts.releasing import WriteOptions
from pretrain import recipe, release
from pretrain.card import model_card
from pretrain.errors import PretrainError
from pretrain.release import Options
from tests.models.conftest import telling_weights
from tests.ranks import QUICK, last, pretrain, pretrain_well, records, refused

SIZES = ["model.layers=2", "model.width=32", "model.heads=2", "model.ffn=40"]
BRIEF = ["schedule.warmup_steps=1", "validation.sequences=32"]
STILL = ["optimizer.learning_rate=1e-9", "schedule.minimum=1e-9", "optimizer.weight_decay=0"]  # weights stay put
RNAERNIE = ["model.name=rnaernie", "objective.name=intervals", "objective.levels={base: 1, span: 1, motif: 0}"]
AIDO = ["model.name=aido_rna", "model.size=null", "objective.alphabet=aido_rna"]
CASES = {
    "rnaernie": [*RNAERNIE, "objective.alphabet=rnaernie", "model.vocab=57"],
    "rnaernie_iupac": [*RNAERNIE, "objective.alphabet=rnaernie_iupac", "model.vocab=57"],
    "rnaernie_28": [*RNAERNIE, "objective.alphabet=rnaernie_28", "model.vocab=28", "objective.type_token.append=false"],
    "aido_rna": AIDO,
    "aido_rna_1m": [*AIDO, "model.norm=rms", "model.bias=false"],
}
LAYOUTS = {
    "rnaernie": ["multimolecule", "full", "original"],
    "rnaernie_iupac": ["multimolecule", "full"],  # the authors' file has no rows for ambiguity codes
    "rnaernie_28": ["multimolecule", "full", "original"],
    "aido_rna": ["transformers", "genbio", "multimolecule"],
    "aido_rna_1m": ["transformers", "genbio"],  # MultiMolecule's class has neither RMSNorm nor layers without biases
}
QUICKLY = [("rnaernie", "full"), ("rnaernie_28", "original"), ("aido_rna", "genbio")]
PAIRS = [
    pytest.param(case, layout, marks=() if (case, layout) in QUICKLY else pytest.mark.slow)
    for case in CASES
    for layout in LAYOUTS[case]
]
TRAINED = {  # rows of the vocabulary that training used, and that every layout therefore keeps
    "rnaernie": [0, 1, 2, 3, 4, 6, 7, 8, 9],
    "rnaernie_iupac": [0, 1, 2, 3, 4, *range(6, 23)],
    "rnaernie_28": [0, 1, 2, 3, 4, 6, 7, 8, 9],
    "aido_rna": [1, 2, 3, 5, 6, 7, 8, 10],
    "aido_rna_1m": [1, 2, 3, 5, 6, 7, 8, 10],
}
BY_TOKEN = ("embed.weight", "head.out.bias")


@pytest.fixture(scope="module")
def train(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    directory = tmp_path_factory.mktemp("runs")

    def run(name: str, *settings: str) -> Path:
        place = [f"data.corpus={synthetic_corpus}", f"run.directory={directory}", f"run.name={name}"]
        pretrain_well([*QUICK, *SIZES, *BRIEF, *place, *settings])
        return directory / name

    return run


@pytest.fixture(scope="module")
def trained(train) -> Callable[[str], Path]:
    """Three steps of a case, once."""
    done: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in done:
            done[case] = train(case, "budget.steps=3", *CASES[case])
        return done[case]

    return run


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Path]]]:
    """(release, path of each of its layouts) of a case, once."""
    directory, done = tmp_path_factory.mktemp("releases"), {}

    def publish(case: str) -> tuple[Path, dict[str, Path]]:
        if case not in done:
            to = directory / case
            _, checked = release.release(trained(case), to, Options(licence="cc-by-4.0"))
            assert all(result.largest_difference == 0 for result in checked), checked
            done[case] = to, {result.layout: to / result.path for result in checked}
        return done[case]

    return publish


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_release_has_every_layout_that_can_express_the_model(released, case) -> None:
    _, layouts = released(case)
    assert list(layouts) == LAYOUTS[case]
    for path in layouts.values():
        assert path.exists()


TOLD = {
    "rnaernie": [
        'mask_token: "<mask>"',
        'library_name: "multimolecule"',
        "GCGGAUUUAGCUCAGUU<mask>GGGAGAGCGCCAGACUG",
        "| Parameters (as trained, 57 tokens) | 33,513 |",
        "| Tokens | single nucleotides, and the RNA type after `[IND]` |",
        "| RNA type left out, masked | 50%, 15% |",
        "masked intervals (base 1, span 1; mix): 15% of every sequence, of these 80% `<mask>`",
        "import multimolecule  # registers the model with transformers",
        'AutoTokenizer.from_pretrained("PATH_OR_ID", subfolder="full")',
        "a Paddle file for the authors' code (39 tokens, T for U)",
        "The rows of `<null> N R Y S W K M B D H V I X | . * - ?` (embedding and bias) are copies of `<unk>`'s",
        "The pooler is at initial values",
        "Validation accuracy of the RNA type at step 3",
        "Validation accuracy of always naming the most frequent type at step 3",
    ],
    "rnaernie_iupac": ["The rows of `<null>` (embedding and bias) are copies of `<unk>`'s", "57 tokens"],
    "rnaernie_28": [
        "| Parameters (as trained, 28 tokens) |",
        "| Tokens | single nucleotides |",
        "`full/`: the model was trained without RNA types, whose rows are copies of `<unk>`'s as well.",
    ],
    "aido_rna": [
        'mask_token: "[MASK]"',
        'library_name: "transformers"',
        "GCGGAUUUAGCUCAGUU[MASK]GGGAGAGCGCCAGACUG",
        "| Parameters (as trained, 16 tokens) | 18,320 |",
        "of these 80% `[MASK]`, 10% a random one, never the same",
        'from_pretrained("PATH_OR_ID", trust_remote_code=True)',
        "for GenBio's class",
        "for MultiMolecule 0.0.8 with transformers 4.46",
        "The row of `U` is a copy of `T`'s",
        "its output bias is -30",
        "`[PAD] [UNK] [BOS] [EOS] [UNUSED1] [UNUSED2] [UNUSED3]`, which were never trained",
    ],
    "aido_rna_1m": ["| Parameters (as trained, 16 tokens) |", "The row of `U` is a copy of `T`'s"],
}
NOT_TOLD = {
    "rnaernie": ["without RNA types"],
    "rnaernie_iupac": ["Paddle", "without RNA types"],
    "rnaernie_28": ["RNA type left out", "accuracy of the RNA type"],
    "aido_rna": ["pooler", "<mask>"],
    "aido_rna_1m": ["MultiMolecule 0.0.8", "<mask>"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_card_tells_tokens_mask_usage_and_what_was_not_trained(released, case) -> None:
    card = (released(case)[0] / "README.md").read_text()
    for fact in TOLD[case]:
        assert fact in card, fact
    for falsehood in NOT_TOLD[case]:
        assert falsehood not in card, falsehood


def test_motif_files_may_be_gone_when_a_run_is_released(train, tmp_path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("GGCGGC\nGCGCCG\nACGUACGU\n")
    stages = [
        "budget.steps=null",
        "stages.base={budget: {steps: 1}, objective: {levels: {base: 1, motif: 0}}}",
        "stages.motif={budget: {steps: 2}, objective: {levels: {base: 0, span: 0, motif: 1}}}",
    ]
    run = train("motifs", *CASES["rnaernie"], f"objective.motif.files=[{words}]", *stages)
    words.unlink()
    _, checked = release.release(run, tmp_path / "out", Options())
    assert {result.largest_difference for result in checked} == {0.0}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Stages | base, motif |" in card
    assert "masked intervals (motif 1; mix)" in card


def test_a_full_release_with_the_types_in_another_order_is_not_published(trained, tmp_path, monkeypatch) -> None:
    """The outputs that are compared include those of the types where a layout has them."""
    from models.layouts import rnaernie as layout

    original = layout.to_multimolecule

    def swapped(state, config, wanted, untrained):
        content, tensors = original(state, config, wanted, untrained)
        if len(wanted) == 57:
            name = "model.embeddings.word_embeddings.weight"
            tensors[name] = tensors[name].clone()
            tensors[name][[30, 31]] = tensors[name][[31, 30]]
        return content, tensors

    monkeypatch.setattr(layout, "to_multimolecule", swapped)
    with pytest.raises(PretrainError, match="read back from the full layout, the model's outputs differ"):
        release.release(trained("rnaernie"), tmp_path / "wrong", Options())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("case", "layout"), PAIRS)
def test_training_starts_from_every_layout(train, trained, released, tmp_path, case, layout) -> None:
    path = released(case)[1][layout]
    run = train(f"{case}-from-{layout}", "budget.steps=2", f"init_from={path}", *STILL, *CASES[case])
    found, expected = last(run).weights(), last(trained(case)).weights()
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        rows = TRAINED[case] if name in BY_TOKEN else slice(None)
        torch.testing.assert_close(found[name][rows], x[rows], rtol=0, atol=1e-7)
    assert len(records(run)) == 2
    release.release(run, tmp_path / "next", Options())
    card = (tmp_path / "next" / "README.md").read_text()
    stated = "`cc-by-4.0`" if (path / "README.md").is_file() else "not stated there"
    assert f"Training started from `{path.name}`, whose licence is {stated}." in card


def test_types_are_added_to_weights_without(train, trained, released) -> None:
    """28 -> 57 tokens: the rows of letters are kept, those of [IND] and types begin anew and are then trained."""
    settings = [f"init_from={released('rnaernie_28')[0]}", *CASES["rnaernie"], "optimizer.learning_rate=1e-3"]
    run = train("28-to-57", "budget.steps=2", *settings)
    before, after = last(trained("rnaernie_28")).weights(), last(run).weights()
    assert after["embed.weight"].shape == (57, 32)
    rows = TRAINED["rnaernie_28"]
    moved = (after["embed.weight"][rows] - before["embed.weight"][rows]).abs().max()
    assert 0 < moved < 5e-3
    assert after["embed.weight"][28:].std() == pytest.approx(0.02, rel=0.1)
    assert last(run).progress.origin["licence"] == "cc-by-4.0"


def test_weights_without_a_pooler_or_with_one_are_the_same_model(train, trained, released) -> None:
    """A release has a pooler, which a run leaves out; one that asks for it gets it."""
    path = released("rnaernie")[1]["full"]
    run = train("pooler", "budget.steps=1", f"init_from={path}", *STILL, *CASES["rnaernie"])
    assert not any(name.startswith("pooler") for name in last(run).weights())


@pytest.mark.parametrize("form", ["directory", pytest.param("file", marks=pytest.mark.slow)])
def test_continued_pretraining_of_aido_rna_on_coding_sequences(
    form: str, synthetic_corpus: Path, tmp_path: Path
) -> None:
    """The recipe aido_rna_650m_cds at a tiny size, from weights as GenBio publishes them."""
    base = telling_weights(AidoRNA(AidoRNAConfig(layers=2, width=32, heads=2, ffn=64)))
    (tmp_path / "AIDO.RNA-tiny").mkdir()
    path = write_genbio(tmp_path / "AIDO.RNA-tiny", base.state_dict(), base.config, WriteOptions("x"))
    (path / "README.md").write_text("---\nlicense: other\n---\n# AIDO.RNA\n")
    if form == "file":
        path = path / "model.safetensors"
    size = ["model.size=null", "model.layers=2", "model.width=32", "model.heads=2", "model.ffn=64"]
    brief = ["batch.sequences=8", "budget.epochs=null", "budget.steps=2", "schedule.warmup_steps=1"]
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=cds", f"init_from={path}"]
    quick = ["compute.precision=fp32", "validation.sequences=16", "tracking.log_every_steps=1"]
    pretrain_well(["--config", "aido_rna_650m_cds.yaml", *size, *brief, *place, *quick], ranks=2)
    found = last(tmp_path / "cds").weights()
    moved = (found["blocks.1.attn.qkv.weight"] - base.state_dict()["blocks.1.attn.qkv.weight"]).abs().max()
    assert 0 < moved < 5e-5  # two steps of at most 1e-5
    release.release(tmp_path / "cds", tmp_path / "out", Options())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Training started from `{path.name}`, whose licence is `other`." in card


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("genbio-ai/AIDO.RNA-650M", "whose licence is `other`. GenBio's weights are for non-commercial use only"),
        ("multimolecule/rnaernie", "whose licence is `other`. MultiMolecule's weights are under AGPL-3.0"),
        ("some-lab/rnaernie", "whose licence is `other`.\n"),
    ],
)
def test_the_card_names_the_terms_of_the_weights_that_a_run_started_from(trained, source, told) -> None:
    """Also through a run in between."""
    found = last(trained("aido_rna"))
    settings = recipe.read_resolved(found.recipe_path)
    first = {"init_from": source, "licence": "other", "before": None}
    found.progress.origin = {"init_from": "/runs/base", "licence": "other", "before": first}
    card = model_card(None, found, settings, settings, "x", None, release.release_layouts(settings))
    assert "Training started from `base`, whose licence is `other`.\n" in card
    assert f"Training started from `{source}`, {told}" in card


@pytest.mark.parametrize("local", [True, False])
def test_a_local_directory_that_is_gone_is_not_taken_for_a_hub_id(trained, local) -> None:
    found = last(trained("aido_rna"))
    settings = recipe.read_resolved(found.recipe_path)
    found.progress.origin = {"init_from": "multimolecule/gone", "local": local, "licence": None, "before": None}
    card = model_card(None, found, settings, settings, "x", None, release.release_layouts(settings))
    assert ("base_model" in card) is not local
    assert ("AGPL-3.0" in card) is not local
    assert f"started from `{'gone' if local else 'multimolecule/gone'}`" in card


def test_weights_of_another_model_are_refused(released, synthetic_corpus, tmp_path) -> None:
    path = released("aido_rna")[1]["genbio"]
    place = [f"data.corpus={synthetic_corpus}", f"run.directory={tmp_path}", "run.name=new", f"init_from={path}"]
    said = refused(pretrain([*QUICK, *SIZES, *BRIEF, *place, *CASES["rnaernie"]]))
    assert "holds a aido_rna model, but the recipe trains rnaernie" in said
