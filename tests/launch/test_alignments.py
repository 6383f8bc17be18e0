"""`launch/prepare.py` on alignments: what it prints, its exit codes, a kill at any moment, synthetic families."""

from __future__ import annotations

import gzip
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.alignment_config import load_alignment_config
from data.alignments import AlignmentCorpus
from data.manifest import SPLITS
from data.synthetic import SyntheticCorpus
from data.synthetic_alignments import write_stockholm as write_synthetic
from data.synthetic_family import SyntheticConfig, pair_table
from data.verify_alignments import verify_alignments
from launch.alignment_tables import histogram
from launch.cli import ROOT, find_config
from launch.prepare import main
from tests.data.alignments import many_families, stockholm, write_stockholm
from tests.data.corpora import content


def test_alignments_verify_describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, corpus = write_stockholm(tmp_path / "a.sto", many_families(40, clan_of=3)), tmp_path / "corpus"
    (tmp_path / "out.txt").write_text("RF00002\n")
    options = [f"exclude={tmp_path / 'out.txt'}", "split_by=clan", "validation_fraction=0.1"]
    assert main(["alignments", "--from", str(source), "--to", str(corpus), *options]) == 0
    shown = capsys.readouterr().out
    for text in ("alignments read", "dropped: excluded", "Depths", "Lengths", "median", "fingerprint"):
        assert text in shown, text
    assert "the first alignment dropped as excluded: a.sto, alignment 2 (RF00002)" in shown
    assert main(["verify", str(corpus)]) == 0
    assert f"{corpus}: intact; 39 alignments with" in capsys.readouterr().out
    assert main(["describe", str(corpus)]) == 0
    shown = capsys.readouterr().out
    assert "8 - 15" in shown
    assert "25 - 49" in shown
    assert "tRNA" in shown
    card = (corpus / "README.md").read_text()
    assert "No clan is in both splits." in card
    assert card.startswith("---\npretty_name:")
    assert (corpus / "describe.png").stat().st_size > 1000
    assert verify_alignments(corpus).problems == []  # the card is no damage
    (corpus / "README.md").write_text("mine")
    assert main(["describe", str(corpus)]) == 0
    assert "was left alone" in capsys.readouterr().out
    assert (corpus / "README.md").read_text() == "mine"
    with open(corpus / "train-000000.tar", "r+b") as file:
        file.seek(3000)
        file.write(b"!")
    assert main(["verify", str(corpus)]) == 2
    assert "train-000000.tar" in capsys.readouterr().err


def test_histograms() -> None:
    depths = {"train": np.array([1, 2, 3, 4, 9000], dtype=np.uint32), "validation": np.array([3], dtype=np.uint32)}
    assert histogram(depths, (1, 2, 4, 8192)) == [("1", [1, 0]), ("2 - 3", [2, 1]), ("4 - 8191", [1, 0]),
                                                 ("8192 - more", [1, 0])]  # fmt: skip


def test_kind_of_the_config_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families = many_families(30)
    (tmp_path / "Rfam.seed.gz").write_bytes(gzip.compress("".join(map(stockholm, families)).encode()))
    given = [f"sources.0.path={tmp_path / 'Rfam.seed.gz'}"]
    for command, output in (([], "a"), (["alignments"], "b")):
        arguments = [*command, "--config", "data/rfam_14_7.yaml", *given, f"output={tmp_path / output}"]
        assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "published: families 4,069; here 30" in shown
    assert "published: families used 3,932; here 30" in shown
    assert "published: median depth 2,184; here" in shown
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_shipped_config() -> None:
    shipped = load_alignment_config(find_config("data/rfam_14_7.yaml"))
    assert (shipped.name, shipped.columns, shipped.query, shipped.split_by) == ("rfam_14_7", "rf", "first", "clan")
    assert shipped.published == {"families": 4069, "families_used": 3932, "median_depth": 2184}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alignments"], "give either --config NAME.yaml or --from PATH"),
        (["alignments", "--from", "x.sto"], "--from needs --to DIR"),
        (["alignments", "--from", "nowhere.sto", "--to", "out"], "source source1: nowhere.sto does not exist"),
        (["alignments", "--from", "a.sto", "--to", "out", "colums=rf"], "nearest valid key is columns"),
        (["alignments", "--config", "data/rnacentral.yaml"], "there is no key"),
        (["synthetic", "--stockholm", "x.sto"], "--stockholm needs --alignments"),
        (["synthetic", "--alignments", "4"], "--alignments goes with either --to DIR"),
        (["synthetic", "--alignments", "0", "--to", "x"], "needs at least one family"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_no_command_loads_torch(tmp_path: Path) -> None:
    source, corpus = write_stockholm(tmp_path / "a.sto", many_families(10)), tmp_path / "corpus"
    probe = (
        "import sys\nfrom launch.prepare import main\n"
        f"assert main(['alignments', '--from', {str(source)!r}, '--to', {str(corpus)!r}]) == 0\n"
        f"assert main(['verify', {str(corpus)!r}]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_synthetic_alignments(tmp_path: Path) -> None:
    assert main(["synthetic", "--alignments", "12", "--rows", "30", "--to", str(tmp_path / "c")]) == 0
    small = SyntheticConfig(12, 40, 70, 0.08, 0.08, 0.01, 0.01)  # the preset `demo` with 12 families
    synthetic = SyntheticCorpus(7, small)
    seen = 0
    for split in SPLITS:
        corpus = AlignmentCorpus.open(tmp_path / "c", split)
        for one in corpus.alignments(np.arange(corpus.count)):
            number = int(one.family.rpartition("-")[2])
            letters, structure = synthetic.alignment(number, 30)
            assert one.structure == structure
            assert np.array_equal(one.partners, pair_table(structure))
            rows = one.rows(np.arange(30))
            assert np.array_equal(rows[0], letters[0])  # the consensus
            assert sorted(map(bytes, rows)) == sorted(map(bytes, letters))
            assert corpus.type_names[corpus.types([one.id])[0]] == synthetic.families[number].rna_type
            seen += 1
    assert seen == 12
    path = write_synthetic(synthetic, tmp_path / "one.sto", 30)
    assert main(["synthetic", "--alignments", "12", "--rows", "30", "--stockholm", str(tmp_path / "two.sto")]) == 0
    assert path.read_bytes() == (tmp_path / "two.sto").read_bytes()
    assert main(["alignments", "--from", str(path), "--to", str(tmp_path / "d")]) == 0
    fingerprints = [AlignmentCorpus.open(tmp_path / name).fingerprint for name in ("c", "d")]
    assert fingerprints[0] != fingerprints[1]  # the name of the source is in every description
    letters_of = [AlignmentCorpus.open(tmp_path / name).alignments([0])[0].rows([0]) for name in ("c", "d")]
    assert np.array_equal(*letters_of)


# Slowed down, so that the kills fall into every phase.
SLOW_BUILD = """
import sys, time
from data.alignment_config import load_alignment_config
from data.alignment_corpus import prepare_alignments
def progress(*_):
    print(flush=True)
    time.sleep(0.005)
config = load_alignment_config(None, ["shard_megabytes=1"], name="my", output=sys.argv[2], overwrite=True,
                               sources=[{"name": "my", "path": sys.argv[1]}])
prepare_alignments(config, progress)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_restarted(tmp_path: Path) -> None:
    source = write_stockholm(tmp_path / "a.sto", many_families(40))
    command = [sys.executable, "-c", SLOW_BUILD, str(source)]
    expected, output, partial = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / ".killed.partial"
    began = time.monotonic()
    subprocess.run([*command, str(expected)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    chance, left = random.Random(0), set()
    for attempt in range(4):
        with subprocess.Popen([*command, str(output)], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work
            time.sleep(chance.uniform(0, seconds) * (attempt > 0))
            process.send_signal(signal.SIGKILL)
        if partial.exists():
            left.add(tuple(sorted(path.name for path in partial.rglob("*"))))
        assert not output.exists() or content(output) == content(expected), attempt
    subprocess.run([*command, str(output)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert content(output) == content(expected)
    assert not partial.exists()
    assert len(left) >= 2  # kills during both reading and writing
