"""Mistakes in motif files, types and weights of RNAErnie, through launch/pretrain.py: one sentence each, and no run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.pretrain.bad_input import Bomb
from tests.ranks import QUICK, pretrain, refused

NO_MOTIFS = "objective.levels={motif: 0}"
TABLE = "Gene_name\tGene_id\tMutated\tOrganism\tMotif\tLen\n"


@pytest.fixture(scope="module")
def recipe_file(synthetic_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = OmegaConf.to_container(OmegaConf.load(QUICK[1]))
    content["model"] |= {"name": "rnaernie", "vocab": 57}
    content["data"]["corpus"] = str(synthetic_corpus)
    content["objective"] = {"name": "intervals", "max_tokens": 128}
    path = tmp_path_factory.mktemp("recipes") / "rnaernie.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


@pytest.fixture
def refusal(recipe_file: Path, tmp_path: Path) -> Callable[..., str]:
    """The one sentence that two ranks end with; nothing of a run may be left but its log."""

    def told(*settings: str) -> str:
        arguments = ["--config", str(recipe_file), f"run.directory={tmp_path}", "run.name=new", *settings]
        sentence = refused(pretrain(arguments, ranks=2))
        assert not (tmp_path / "new" / "metrics.jsonl").exists()
        assert not list((tmp_path / "new" / "checkpoints").glob("*"))
        return sentence

    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("attract.tsv", "Gene_name\tMotif\nELAVL1\tAUUUA\n", "line 1: the table has no column Mutated and no column"),
        ("mixed.txt", "ACGUACG\nACGTACG\n", "spells uracil T in line 2 and U in line 1"),
        ("empty.txt", "", "the file is empty"),
        ("cap.pwm", ">M1_0.6\t8\n" + "0.25\t0.25\t0.25\t0.25\n" * 8, "line 1: the motif NNNNNNNN stands for 65,536"),
        ("letter.txt", "ACGUACG\nACGUXCG\n", "line 2: the motif 'ACGUXCG' has 'X'"),
        ("mutated.tsv", TABLE + "A\t1\tmaybe\tHomo_sapiens\tACGUACG\t7\n", "line 2: Mutated is 'maybe'"),
        (None, "", "cannot be read"),
    ],
)
@pytest.mark.parametrize("key", ["files", "mined"])
def test_motif_files(refusal, tmp_path, name, content, said, key) -> None:
    path = tmp_path / (name or "absent.txt")
    if name:
        path.write_text(content)
    sentence = refusal(f"objective.motif.{key}=[{path}]")
    assert str(path) in sentence
    assert said in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "use the level motif, but objective.motif.files is empty"),
        (["objective.type_token.types=[tRNA,riboswitch]", NO_MOTIFS], "objective.type_token.types is 'riboswitch'"),
        (
            ["objective.alphabet=rnaernie_28", "model.vocab=28", NO_MOTIFS],
            "the alphabet rnaernie_28 has no type tokens",
        ),
        (
            ["objective.type_token.mask_prob=0.9", NO_MOTIFS],
            "objective.type_token.mask_prob is 0.9, but must be 0, or from 0.15",
        ),
        (["objective.preset=rnaernie-paper"], "objective.preset is 'rnaernie-paper', but must be one of rnaernie-code"),
        (["model.vocab=28", NO_MOTIFS], "has 57 tokens, but model.vocab is 28"),
        (["model.max_positions=100", NO_MOTIFS], "but the model has positions for 99 tokens only"),
        (
            ["objective.preset=rnaernie-card", "objective.stages=[]"],
            "schedule is staged, but objective.stages is empty",
        ),
    ],
)
def test_objectives_that_cannot_be(refusal, settings, said) -> None:
    assert said in refusal(*settings)


def test_an_organism_that_no_row_has(refusal, tmp_path) -> None:
    table = tmp_path / "attract.tsv"
    table.write_text(TABLE + "A\t1\tno\tHomo_sapiens\tACGUACG\t7\n")
    said = refusal(f"objective.motif.files=[{table}]", "objective.motif.organism=Mus_musculus")
    assert f"{table}: holds no motif of the organism Mus_musculus" in said


@pytest.mark.parametrize("inside", ["a call", "a class that torch knows"])
def test_a_paddle_file_with_a_forbidden_class_is_not_executed(refusal, tmp_path, inside) -> None:
    import collections

    touched, path = tmp_path / "executed", tmp_path / "rnaernie.pdparams"
    foreign = Bomb(touched) if inside == "a call" else collections.Counter("a")
    path.write_bytes(pickle.dumps({"ernie.pooler.dense.bias": np.zeros(4, np.float32), "x": foreign}, protocol=4))
    said = refusal(f"init_from={path}", NO_MOTIFS)
    assert str(path) in said
    assert ("system" if inside == "a call" else "Counter") in said
    assert not touched.exists()
