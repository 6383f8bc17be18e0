"""`init_from` that does not fit, is damaged or holds code: one sentence, and no run begins."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.pretrain.bad_input import Bomb, flip, require_no_run, state_file


@pytest.mark.parametrize("ranks", [1, 2])
def test_initial_weights_of_another_architecture(new, tmp_path, ranks) -> None:
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(30, 32)}, bert / "model.safetensors")
    require_no_run([*new, f"init_from={bert}"], tmp_path, "bert", ranks=ranks)


def test_initial_weights_of_another_size(new, run, tmp_path) -> None:
    require_no_run([*new, f"init_from={run}", "model.layers=3"], tmp_path, "model.layers", "3")


def test_initial_weights_that_do_not_exist(new, tmp_path) -> None:
    require_no_run([*new, f"init_from={tmp_path / 'nothing'}"], tmp_path, "nothing")


def test_initial_weights_of_a_run_without_checkpoint(new, tmp_path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    require_no_run([*new, f"init_from={tmp_path / 'empty'}"], tmp_path, "empty")


def test_a_corpus_in_place_of_initial_weights(new, synthetic_corpus, tmp_path) -> None:
    require_no_run([*new, f"init_from={synthetic_corpus}"], tmp_path, f"init_from={synthetic_corpus} is a corpus")


def test_initial_weights_with_a_flipped_byte(new, run, tmp_path) -> None:
    path = state_file(run, 6)
    flip(path, path.stat().st_size // 2)
    require_no_run([*new, f"init_from={run}"], tmp_path, str(path))


@pytest.mark.parametrize("saved", ["torch", "pickle", "directory"])
def test_code_in_initial_weights_is_not_executed(new, tmp_path, saved) -> None:
    touched, path = tmp_path / "executed", tmp_path / "weights.pt"
    if saved == "torch":
        torch.save({"model": Bomb(touched)}, path)
    elif saved == "pickle":
        path.write_bytes(pickle.dumps(Bomb(touched)))
    else:
        path = tmp_path / "release"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "rinalmo"}))
        (path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(touched)))
    require_no_run([*new, f"init_from={path}"], tmp_path, str(path))
    assert not touched.exists()
