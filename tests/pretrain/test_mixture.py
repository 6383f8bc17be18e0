"""Several corpora in one run, and a corpus that is staged: through the real trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.corpus import prepare
from data.index import Corpus
from data.mixture import Mixture
from data.order import Order
from data.prepare_config import PrepareConfig, SourceConfig
from data.synthetic import SyntheticCorpus
from tests.archive import serving
from tests.ranks import TINY, losses, pretrain, pretrain_well


@pytest.fixture(scope="session")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("other")
    fasta = SyntheticCorpus(99, "standard").write_fasta(directory / "other.fa", 700)
    prepare(
        PrepareConfig(
            name="other",
            output=str(directory / "other"),
            sources=[SourceConfig(name="other", path=str(fasta))],
            validation_fraction=0.1,
        )
    )
    return directory / "other"


def test_a_mixture_of_one_corpus_is_that_corpus(synthetic_corpus: Path) -> None:
    corpus = Corpus.open(synthetic_corpus)
    mixture = Mixture({"only": corpus}, [5.0], seed=3, global_batch=32)
    order = Order(corpus.block_counts, 3, 32)
    for step in (0, 1, 41, 1000):
        for a, b in zip(mixture.step(step), order.step(step), strict=True):
            assert np.array_equal(a, b)
    assert mixture.fingerprint == corpus.fingerprint


def test_a_mixture_gives_each_corpus_its_share_and_its_letters(synthetic_corpus: Path, other_corpus: Path) -> None:
    corpora = {"a": Corpus.open(synthetic_corpus), "b": Corpus.open(other_corpus)}
    mixture = Mixture(corpora, [3, 1], seed=3, global_batch=32)
    _, ids = mixture.step(17)
    from_b = ids >= mixture.offsets[1]
    assert from_b.sum() == 8
    letters = mixture.letters(ids)
    for i in range(32):
        corpus, local = ("b", ids[i] - mixture.offsets[1]) if from_b[i] else ("a", ids[i])
        assert np.array_equal(letters[i], corpora[corpus].letters([int(local)])[0])
        assert mixture.lengths[ids][i] == len(letters[i])
    assert mixture.epochs_by_corpus(40) == {"a": 40 * 24 / corpora["a"].count, "b": 40 * 8 / corpora["b"].count}
    reweighted = Mixture(corpora, [2, 1], seed=3, global_batch=32)
    assert mixture.fingerprint != reweighted.fingerprint


def arguments(runs: Path, name: str, *more: str) -> list[str]:
    fixed = ["batch.sequences=16", "budget.steps=6", "schedule.warmup_steps=1", "tracking.log_every_steps=1"]
    place = [f"run.directory={runs}", f"run.name={name}", "validation.sequences=24"]
    return ["--config", "demo.yaml", *TINY, *fixed, *place, *more]


@pytest.mark.slow
def test_a_mixture_trains_and_reports_each_corpus(synthetic_corpus: Path, other_corpus: Path, tmp_path: Path) -> None:
    mixture = f"data.mixture=[{{corpus: {synthetic_corpus}, weight: 3, name: demo}}, {{corpus: {other_corpus}}}]"
    for ranks in (1, 2):
        pretrain_well(arguments(tmp_path, f"mixed{ranks}", "data.corpus=null", mixture), ranks)
    assert np.allclose(losses(tmp_path / "mixed1"), losses(tmp_path / "mixed2"), rtol=1e-5, atol=0)
    records = [json.loads(line) for line in (tmp_path / "mixed1" / "metrics.jsonl").read_text().splitlines()]
    assert {record["corpus"] for record in records if record["kind"] == "validation"} == {"demo", "other"}
    last = [record for record in records if record["kind"] == "train"][-1]
    assert last["epochs"]["demo"] == pytest.approx(6 * 12 / Corpus.open(synthetic_corpus).count)
    ((code, _, error),) = pretrain(arguments(tmp_path, "mixed1", f"data.corpus={synthetic_corpus}"))
    assert code == 2
    assert "was trained on the corpus" in error


@pytest.mark.slow
def test_a_corpus_staged_over_http_trains_as_from_disk(synthetic_corpus: Path, tmp_path: Path) -> None:
    pretrain_well(arguments(tmp_path, "disk", f"data.corpus={synthetic_corpus}"), ranks=2)
    with serving(synthetic_corpus) as server:
        server.faults["/train-000000.tar"] = ["drop:20000", "corrupt"]
        server.faults["/index.npz"] = ["status:503"]
        staged = [f"data.corpus={server.url}", f"data.cache={tmp_path / 'cache'}"]
        pretrain_well(arguments(tmp_path, "staged", *staged), ranks=2)
        counts = server.counts()
        pretrain_well(arguments(tmp_path, "again", *staged), ranks=2)
        shards_again = {path: n for path, n in server.counts().items() if n != counts[path]}
    assert losses(tmp_path / "disk") == losses(tmp_path / "staged") == losses(tmp_path / "again")
    assert counts["train-000000.tar"] == 3, "once, and once more for each of the two faults, for both ranks together"
    assert counts["lengths.npy"] == 1
    assert set(shards_again) <= {"manifest.json"}, "the second run reads the cache"
