"""RNAErnie from files to a release: clusters, mined and published motifs, three stages, types, a kill, an export.

On real sequences: the 13 classes of nRC and a part of the large collection. Clusters come from a table, as a user with
a clustering of his own would give it, so that no MMseqs2 is needed.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from data.corpus import prepare
from data.formats.motifs import read_motifs
from data.index import Corpus
from data.prepare_config import ClusterConfig, PrepareConfig, SourceConfig
from launch.motifs_command import motifs_command
from tests.ranks import ROOT, finish, last, logged_steps, losses, records, same_bits, start, wait_for

pytestmark = pytest.mark.slow

STEPS = {"base": 300, "span": 200, "motif": 200}
SIZES = {"layers": 2, "width": 64, "heads": 4, "ffn": 128, "attention_dropout": 0.0}  # residual dropout stays at 0.1
SHARES = {"nrc": 4, "others": 1}  # of a batch
OTHERS = 3000  # sequences of the large collection
PATIENCE = 1200  # seconds, for machines that are shared
K = 24  # letters that members of a cluster share
TRNA = "GCCGGCGUAGCUCAGUUGGUAGAGCAACUGACUUGUAAUCAGUAGGUUGUGGGUUCGACUCCUGCCGCCGGCA"


def fasta(path: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(path, "rt", encoding="latin-1") as file:
        for record in ("\n" + file.read()).split("\n>")[1:]:
            header, *lines = record.split("\n")
            yield header, "".join(lines).upper().replace("T", "U")


def corpus(directory: Path, name: str, records: list[tuple[str, str]]) -> Path:
    """Clusters: sequences whose alphabetically first word of K letters is the same."""
    first: dict[str, str] = {}
    with (directory / f"{name}.fa").open("w") as file, (directory / f"{name}.tsv").open("w") as table:
        for header, letters in records:
            accession = header.split()[0].split("|")[1] if "|" in header else header.split()[0]
            word = min((letters[i : i + K] for i in range(max(len(letters) - K + 1, 1))), default="")
            table.write(f"{first.setdefault(word, accession)}\t{accession}\n")
            file.write(f">{header}\n{letters}\n")
    config = PrepareConfig(
        name=name,
        output=str(directory / name),
        sources=[SourceConfig(name=name, path=str(directory / f"{name}.fa"))],
        clusters=ClusterConfig("table", table=str(directory / f"{name}.tsv")),
        validation_fraction=0.15,
    )
    manifest = prepare(config)
    assert manifest["clusters"]["found"] < len(records)
    return directory / name


@pytest.fixture(scope="module")
def corpora(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("corpora")
    nrc = list(fasta(shared_data / "sequences/nrc_train_6320_13classes.fasta.gz"))
    known = {letters for _, letters in nrc}
    others: dict[str, tuple[str, str]] = {}
    for header, letters in fasta(shared_data / "corpus/real_ncrna_distinct.fasta.gz"):
        source, accession, _ = header.split("|", 2)
        if source in ("rfam14.2_seed", "gtrnadb") and len(letters) <= 120 and letters not in known:
            others.setdefault(accession, (header, letters))
    some = list(others.values())[:: len(others) // OTHERS]
    return {"nrc": corpus(directory, "nrc", nrc), "others": corpus(directory, "others", some)}


@pytest.fixture(scope="module")
def recipe_file(corpora: dict[str, Path], shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the run, its motifs mined and unpacked."""
    directory = tmp_path_factory.mktemp("recipe")
    motifs_command([str(corpora["nrc"]), "--to", str(directory / "mined.txt"), "--top", "500"])
    with tarfile.open(shared_data / "motifs/rnaernie_motifs.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    lists = [
        shared_data / "motifs/attract_db.tsv.gz",
        *(directory / "motif" / f"{n}.txt" for n in ("ATtRACT", "SpliceAid")),
    ]
    content = {
        "run": {"seed": 1, "directory": str(directory / "runs")},
        "model": {"name": "rnaernie", "size": "nano", **SIZES},
        "data": {
            "mixture": [{"corpus": str(corpora[name]), "name": name, "weight": share} for name, share in SHARES.items()]
        },
        "objective": {
            "name": "intervals",
            "max_tokens": 160,
            "motif": {"files": [str(path) for path in lists], "mined": [str(directory / "mined.txt")], "min_len": 7},
            "type_token": {"drop_prob": 0.15, "mask_prob": 0.5},
        },
        "batch": {"sequences": 32, "tokens_per_micro_batch": 4096},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"name": "trapezoid", "warmup_steps": 20, "decay_steps": 80, "minimum": 1e-4},
        "validation": {"every_steps": 0, "sequences": 600},
        "checkpoint": {"every_steps": 25},
        "tracking": {"log_every_steps": 1},
        "stages": {
            level: {
                "budget": {"steps": steps},
                "objective": {"levels": {other: float(other == level) for other in STEPS}},
            }
            for level, steps in STEPS.items()
        },
    }
    (directory / "recipe.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return directory / "recipe.yaml"


def train(arguments: list[str]) -> None:
    results = finish(start(arguments, ranks=2), timeout=PATIENCE)
    assert [code for code, _, _ in results] == [0, 0], results


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> Path:
    """Trained on 2 ranks, killed in the second stage, and continued: steps done again have the losses that they had."""
    arguments, run = ["--config", str(recipe_file), "run.name=killed"], recipe_file.parent / "runs" / "killed"
    ranks = start(arguments, ranks=2)
    wait_for(lambda: logged_steps(run) >= STEPS["base"] + 40, timeout=PATIENCE)
    for rank in ranks:
        rank.kill()
    assert all(code != 0 for code, _, _ in finish(ranks))
    before = losses(run)
    assert STEPS["base"] < last(run).progress.step < len(before) < STEPS["base"] + STEPS["span"]
    train(arguments)
    assert losses(run)[: len(before)] == before
    return run


@pytest.fixture(scope="module")
def released(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("release") / "rnaernie"
    command = [sys.executable, str(ROOT / "launch/export.py"), str(run), "--to", str(to), "--licence", "cc0-1.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()[1:]] == [
        "multimolecule",
        "full",
        "original",
    ]
    return to


@pytest.mark.soak  # for its seven hundred steps; test_stages.py kills small runs in their stages
def test_a_run_killed_in_its_second_stage_equals_one_that_was_not(run: Path, recipe_file: Path) -> None:
    train(["--config", str(recipe_file), "run.name=whole"])
    whole = run.parent / "whole"
    assert last(run).progress.step == sum(STEPS.values())
    assert same_bits(last(run), last(whole))
    assert losses(run) == losses(whole)
    kept = [
        [{key: value for key, value in record.items() if key != "time"} for record in records_of(path, "validation")]
        for path in (run, whole)
    ]
    assert kept[0] == kept[1]


def records_of(run: Path, kind: str) -> list[dict]:
    """As `records`, where a step has one record per corpus."""
    return [
        record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if record["kind"] == kind
    ]


def test_motif_targets_are_spelled_as_the_corpus(run: Path, recipe_file: Path) -> None:
    """The failure of the published code, no U among motif targets, would show here and in the log."""
    described = {record["stage"]: record for record in records(run, "masking")}
    assert list(described) == list(STEPS)
    motif = described["motif"]["levels"]["motif"]
    assert described["motif"]["warnings"] == []
    assert motif["hits_per_kilobase"] > 10
    assert motif["enrichment"] > 1
    assert 0.2 < motif["coverage"] < 0.95
    assert motif["without_targets"] == 0
    assert motif["composition"]["U"] == pytest.approx(described["motif"]["composition"]["U"], abs=0.08)
    words = described["motif"]["words"]["motif"]
    mined = read_motifs([recipe_file.parent / "mined.txt"], min_len=7).words
    assert words["words"] >= 3000 + len(mined)
    for level in STEPS:
        assert described[level]["levels"][level]["masked_fraction"] == pytest.approx(0.15, abs=0.01)


def test_it_learns_letters_and_types(run: Path) -> None:
    validated = [record for record in records_of(run, "validation") if record["corpus"] == "nrc"]
    assert [record["stage"] for record in validated] == list(STEPS)
    references = [record for record in records_of(run, "references") if record["corpus"] == "nrc"]
    trivial, first, final = references[-1]["letter_frequencies"]["perplexity"], validated[0], validated[-1]
    print(f"perplexity over A, C, G, U: letter frequencies {trivial:.4f}, RNAErnie {final['perplexity_acgu']:.4f}")
    print(f"type: majority {final['type_majority']:.3f}, RNAErnie {final['type_accuracy']:.3f}")
    assert first["type_sequences"] == final["type_sequences"] > 300
    assert final["perplexity_acgu"] < trivial
    standard_error = (0.25 / final["type_sequences"]) ** 0.5
    assert final["type_accuracy"] > final["type_majority"] + 3 * standard_error


def test_types_are_named_from_the_command_line(
    run: Path, released: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    """From the run and from its release alike; and right as often as the validation counts."""
    held_out = Corpus.open(corpora["nrc"], "validation")
    heads = held_out.clusters[:-1][:600].astype(np.int64)
    accessions, types = held_out.accessions(heads), held_out.types(heads)
    path = tmp_path / "held_out.fa"
    letters = [view.tobytes().decode() for view in held_out.letters(heads)]
    path.write_text("".join(f">{a}\n{x}\n" for a, x in zip(accessions, letters, strict=True)))
    printed = []
    for model in (run, released / "full"):
        command = [
            sys.executable,
            str(ROOT / "launch/rank_types.py"),
            str(model),
            "--sequences",
            str(path),
            "--top",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    header, *lines = printed[0]
    assert header == "accession\ttype\tprobability"
    named = [line.split("\t")[:2] for line in lines]
    assert [accession for accession, _ in named] == accessions
    true = [held_out.type_names[i].replace("_", "") for i in types]
    known = [i for i, name in enumerate(true) if name not in ("riboswitch", "leader", "IRES", "unknown")]
    right = np.mean([named[i][1] == true[i] for i in known])
    final = [record for record in records_of(run, "validation") if record["corpus"] == "nrc"][-1]
    assert len(known) == final["type_sequences"]
    assert right == pytest.approx(final["type_accuracy"], abs=1e-9)
    # The release does not tell at how many tokens training cut sequences: it reads up to 508 nucleotides.
    short = [i for i, text in enumerate(letters) if len(text) <= 156]
    of_release = [line.split("\t")[:2] for line in printed[1][1:]]
    assert [of_release[i] for i in short] == [named[i] for i in short]


@pytest.mark.parametrize("folder", ["", "full"])
def test_fill_mask_of_transformers_fills_a_released_model(released: Path, folder: str) -> None:
    pytest.importorskip("multimolecule", reason="the optional extra `test` is not installed")
    from transformers import pipeline

    fill = pipeline("fill-mask", model=str(released / folder), tokenizer=str(released / folder))
    text = "GCGGAUUUAGCUCAGUU<mask>GGGAGAGCGCCAGACUG" + ("[IND][tRNA]" if folder else "")
    answers = fill(text, top_k=28)
    assert {answer["token_str"] for answer in answers[:4]} == set("ACGU")
    assert sum(answer["score"] for answer in answers[:4]) > 0.9
    card = (released / "README.md").read_text()
    assert 'mask_token: "<mask>"' in card
    assert "Validation accuracy of the RNA type" in card
    if folder:
        asked = fill(TRNA + "[IND]<mask>", top_k=1)
        assert asked[0]["token_str"].startswith("["), asked
