"""`launch/extract.py`: arrays equal to the model's own, contacts of the probe, bad input in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.alignments import AlignmentCorpus
from data.synthetic_alignments import write_stockholm as write_synthetic
from models.layouts import rnamsm as layout
from models.layouts.releasing import WriteOptions
from models.rnamsm import RNAMSM, RNAMSMConfig
from pretrain import contacts
from pretrain.errors import PretrainError
from pretrain.extract import FAMILIES, Options, extract
from tests.data.alignments import Family, random_family, write_stockholm
from tests.models.conftest import telling_weights
from tests.ranks import ROOT, finish, refused, start
from tests.synthetic_alignments import synthetic_alignments, synthetic_families

CONFIG = RNAMSMConfig(layers=2, width=24, heads=3, ffn=32)
SCRIPT = ROOT / "launch" / "extract.py"
IDS = dict(zip("ACGUX-", (6, 7, 8, 9, 22, 26), strict=True))


@pytest.fixture(scope="module")
def model() -> RNAMSM:
    torch.manual_seed(0)
    return telling_weights(RNAMSM(CONFIG)).eval()


@pytest.fixture(scope="module")
def release(model: RNAMSM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main directory of a release."""
    directory = tmp_path_factory.mktemp("release")
    layout.RELEASES["multimolecule"].write(directory, model.state_dict(), CONFIG, WriteOptions("x"))
    return directory


@pytest.fixture(scope="module")
def stockholm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(synthetic_families(6, seed=99), tmp_path_factory.mktemp("six") / "six.sto", 9)


def call(*arguments: object, cwd: Path | None = None) -> tuple[int, str, str]:
    (result,) = finish(start([str(argument) for argument in arguments], script=SCRIPT, cwd=cwd))
    return result


def tokens(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[1, *(IDS[letter] for letter in row)] for row in rows])


def test_arrays_are_those_of_the_model(model, release, stockholm, tmp_path):
    code, out, err = call(release, stockholm, "--to", tmp_path / "out")
    assert (code, err) == (0, "")
    assert f"written to {tmp_path / 'out'}" in out
    records = json.loads((tmp_path / "out" / FAMILIES).read_text())["alignments"]
    assert len(records) == 6
    synthetic = synthetic_families(6, seed=99)
    for family, record in zip(synthetic.families, records, strict=True):
        letters, _ = synthetic.alignment(family.number, 9)
        assert f"  {record['name']}: 9 of 9 rows, {letters.shape[1]} columns\n" in out
        with np.load(tmp_path / "out" / f"{record['name']}.npz", allow_pickle=False) as arrays:
            representation, maps = arrays["representation"], arrays["maps"]
            assert set(arrays) == {"representation", "maps", "partners"}
            assert arrays["partners"].shape == (letters.shape[1],)
        n = letters.shape[1]
        assert representation.shape == (n, CONFIG.width)
        assert maps.shape == (n, n, CONFIG.layers * CONFIG.heads)
        assert representation.dtype == maps.dtype == np.float32
        expected = model.extract(tokens([row.tobytes().decode() for row in letters]))  # in whatever order of rows
        assert np.abs(representation - expected[0].numpy()).max() < 1e-5
        assert np.abs(maps - expected[1].numpy()).max() < 1e-6


@pytest.mark.slow
def test_shapes_of_the_published_size(tmp_path):
    """Spec 8: (L, 768) of the query and (L, L, 120) row maps, in the file."""
    torch.manual_seed(0)
    large = RNAMSM(RNAMSMConfig.named("base"))
    (tmp_path / "base").mkdir()
    options = WriteOptions("x", torch.bfloat16)  # half the file
    layout.RELEASES["multimolecule"].write(tmp_path / "base", large.state_dict(), large.config, options)
    (tmp_path / "one.a3m").write_text(">q\nACGUACGUACGUACGUA\n>b\nAC-gguUANACGUACGU-UA\n")
    (record,) = extract(str(tmp_path / "base"), [tmp_path / "one.a3m"], tmp_path / "out", Options())
    with np.load(tmp_path / "out" / f"{record['name']}.npz") as arrays:
        assert arrays["representation"].shape == (17, 768)
        assert arrays["maps"].shape == (17, 17, 120)
        assert (arrays["maps"] > 0).all()
        assert (arrays["maps"].sum(1) < 1).all()  # what is missing went to `<cls>`


def test_formats_and_folders(model, release, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "one.a3m").write_text(">q\nACGUAC\n>b\nAC-gguUAN\n")
    (folder / "two.afa").write_text(">q\nAC-GT\n>b\nACCGU\n")
    write_stockholm(folder / "three.sto", [random_family(5)])
    assert call(release, folder, "--to", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {FAMILIES, "one.npz", "two.npz", "RF00005.npz"}
    with np.load(tmp_path / "out" / "one.npz") as arrays:
        expected = model.extract(tokens(["ACGUAC", "AC-UAX"]))[0].numpy()
        assert np.abs(arrays["representation"] - expected).max() < 1e-5
    with np.load(tmp_path / "out" / "two.npz") as arrays:  # the query's gap column is dropped
        expected = model.extract(tokens(["ACGU", "ACGU"]))[0].numpy()
        assert np.abs(arrays["representation"] - expected).max() < 1e-5


def test_contacts_are_those_of_a_probe_on_the_corpus(model, release, stockholm, tmp_path):
    corpus = synthetic_alignments(tmp_path / "corpus", families=30, rows=8)
    code, out, err = call(release, stockholm, "--to", tmp_path / "out", "--contacts", corpus)
    assert (code, err) == (0, "")
    training = AlignmentCorpus.open(corpus, "train")
    known = []
    for alignment in training.alignments(np.arange(20)):
        rows = [row.tobytes().decode() for row in alignment.rows(np.arange(8))]
        known.append((model.extract(tokens(rows))[1].permute(2, 0, 1).numpy(), alignment.partners))
    probe = contacts.fit(known)
    for record in json.loads((tmp_path / "out" / FAMILIES).read_text())["alignments"]:
        with np.load(tmp_path / "out" / f"{record['name']}.npz") as arrays:
            expected = probe.probabilities(arrays["maps"].transpose(2, 0, 1))
            assert arrays["contacts"].dtype == np.float32
            assert np.abs(arrays["contacts"] - expected).max() < 1e-3
            measured = contacts.precision(expected, arrays["partners"])
        assert {name: record[name] for name in measured} == pytest.approx(measured, abs=0.05)
    assert out.count("contacts right at L/5: ") == 6


def test_deep_alignments_are_drawn_and_wide_ones_left_out(release, tmp_path):
    rng = np.random.default_rng(0)
    deep = ["".join(row) for row in rng.choice(list("ACGU"), (3000, 12))]
    (tmp_path / "deep.afa").write_text("".join(f">r{i}\n{row}\n" for i, row in enumerate(deep)))
    (tmp_path / "wide.afa").write_text(f">a\n{'ACGU' * 300}\n>b\n{'ACGU' * 300}\n")
    files = [tmp_path / "deep.afa", tmp_path / "wide.afa"]
    code, out, _ = call(release, *files, "--to", tmp_path / "out")
    assert code == 0
    assert "deep: 1,024 of 3,000 rows, 12 columns" in out
    assert "left out: " in out
    assert "wide.afa, alignment 1 has 1,200 columns, the model reads 1,023" in out
    assert not (tmp_path / "out" / "wide.npz").exists()
    first = (tmp_path / "out" / "deep.npz").read_bytes()
    assert call(release, *files, "--to", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "deep.npz").read_bytes() == first
    assert call(release, *files, "--to", tmp_path / "other", "--seed", 1)[0] == 0
    assert (tmp_path / "other" / "deep.npz").read_bytes() != first


@pytest.mark.slow
def test_memory_does_not_grow_with_the_alignment(release, tmp_path):
    """20,000 rows of 200 columns: the model's stream of all of them alone would be 384 MB at this width."""
    row = b">r\n" + b"ACGU" * 50 + b"\n"
    (tmp_path / "huge.afa").write_bytes(row * 20_000)
    probe = (
        "import resource, runpy, sys\n"
        "import torch, deepspeed, pretrain.extract\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "from pathlib import Path\nfrom pretrain.extract import Options, extract\n"
        "print(list(extract(sys.argv[1], [Path(sys.argv[2])], Path(sys.argv[3]), Options(rows=16)))[0]['rows_used'])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    command = [sys.executable, "-c", probe, str(release), str(tmp_path / "huge.afa"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    used, mebibytes = done.stdout.split()[-2:]
    assert int(used) == 16
    assert int(mebibytes) < 200  # the file itself is 4 MB of letters, and cleaning copies them


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            ">a\nACGU\n>b\nACG\n",
            "x.a3m",
            "row 2 (b) has 3 columns once insertions are removed, the first row (a) has 4",
        ),
        (">a\nMKLEFPQ\n>b\nMKLEFPQ\n", "x.a3m", "protein"),
        ("# STOCKHOLM 1.0\na ACGU\n", "x.sto", "ends without the //"),
        (">a\n----\n>b\nACGU\n", "x.a3m", None),
        ("a,b\n", "x.csv", "its name does not tell its format"),
        (">a\n" + "A" * 2000 + "\n", "x.a3m", "no alignment was narrow enough for the model"),
        (">a\n\n>b\n\n", "x.a3m", "no column is left"),
    ],
)
def test_bad_alignments_are_one_sentence_and_leave_nothing(release, tmp_path, text, name, message):
    (tmp_path / name).write_text(text)
    result = call(release, tmp_path / name, "--to", tmp_path / "out")
    if message is None:  # a first row of gaps alone: the next one is the query
        assert result[0] == 0
        return
    assert message in refused([result])
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_other_mistakes(release, stockholm, tmp_path):
    def told(*arguments: object) -> str:
        return refused([call(*arguments)])

    out = tmp_path / "out"
    assert "does not say what it was trained on" in told(release, stockholm, "--to", out, "--contacts")
    assert "nowhere.sto does not exist" in told(release, tmp_path / "nowhere.sto", "--to", out)
    assert "--rows is 2000" in told(release, stockholm, "--to", out, "--rows", 2000)
    bare = [Family(f.rows, f.features, {}) for f in map(random_family, range(1, 12))]
    from data.alignment_corpus import prepare_alignments
    from tests.data.alignments import config

    prepare_alignments(config(tmp_path / "bare", write_stockholm(tmp_path / "bare.sto", bare)))
    assert "has a structure, so contacts have nothing" in told(
        release, stockholm, "--to", out, "--contacts", tmp_path / "bare"
    )
    (out / "mine").mkdir(parents=True)
    assert "was not made by this command" in told(release, stockholm, "--to", out, "--overwrite")
    assert (out / "mine").exists()


def test_overwrite_and_a_model_that_reads_no_alignments(release, stockholm, tmp_path):
    def made(**options):
        return list(extract(str(release), [stockholm], tmp_path / "out", Options(**options)))

    assert len(made()) == 6
    (tmp_path / "out" / "old").touch()
    with pytest.raises(PretrainError, match="give --overwrite"):
        made()
    made(overwrite=True)
    assert not (tmp_path / "out" / "old").exists()

    from models.layouts import rinalmo
    from models.rinalmo import RiNALMo, RiNALMoConfig

    config = RiNALMoConfig(layers=1, width=16, heads=2, ffn=20)
    rinalmo.RELEASES["multimolecule"].write(
        tmp_path / "rinalmo", RiNALMo(config).state_dict(), config, WriteOptions("x")
    )
    with pytest.raises(PretrainError, match="holds a rinalmo model, which reads no alignments"):
        list(extract(str(tmp_path / "rinalmo"), [stockholm], tmp_path / "other", Options()))
    assert not (tmp_path / "other").exists()
