"""The real command: what it prints, its exit codes, configs, and a kill at any moment."""

from __future__ import annotations

import gzip
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.alignment_config import load_alignment_config
from data.errors import DataError
from data.prepare_config import files_of, load_prepare_config
from launch.cli import CONFIGS, ROOT, find_config, main_guard
from launch.prepare import main
from tests.data.clustered import families_of, needs_mmseqs, write_families
from tests.data.corpora import config, content, random_sequences, write_fasta


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "my.fa", random_sequences(300, shortest=16))


def test_prepare_verify_describe(tmp_path: Path, fasta: Path) -> None:
    done = run("--fasta", fasta, "--to", "corpora/my", "min_length=20", "seed=3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "records read" in done.stdout
    assert "too short" in done.stdout
    assert "rRNA" in done.stdout
    assert "reading my: 100 %" in done.stderr  # plain lines: stderr is no terminal here
    corpus = tmp_path / "corpora" / "my"
    assert run("verify", corpus).stdout.startswith(f"{corpus}: intact; ")
    described = run("describe", corpus)
    assert described.returncode == 0
    assert "100 - 199" in described.stdout
    assert "validation" in described.stdout
    with open(corpus / "train-000000.tar", "r+b") as file:
        file.seek(3000)
        file.write(b"!")
    broken = run("verify", corpus)
    assert broken.returncode == 2
    assert "train-000000.tar" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.parametrize("command", ["describe", "verify", "--help", "--config", "--fasta"])
def test_no_command_loads_torch(tmp_path: Path, fasta: Path, command: str) -> None:
    """Importing torch costs a second and 200 MB that preparing has no use for."""
    assert main(["--fasta", str(fasta), "--to", str(tmp_path / "corpus")]) == 0
    probe = (
        "import sys, atexit, launch.prepare\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "sys.exit(launch.prepare.main(sys.argv[1:]))\n"
    )
    arguments = [command, str(tmp_path / "corpus")] if command != "--help" else [command]
    if command == "--fasta":
        arguments = ["--fasta", str(fasta), "--to", str(tmp_path / "another")]
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (2 if command == "--config" else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "False"


BAD = {
    "missing.fa": (None, "does not exist"),
    "empty.fa": (b"", "empty (0 bytes)"),
    "text.fa": (b"hello\n>a\nACGU\n", "line 1: expected a FASTA header"),
    "reads.fa": (b"@r\nACGU\n+\nIIII\n", "FASTQ"),
    "cut.fa.gz": (gzip.compress(b">a\nACGU\n" * 9000)[:-30], "was cut"),
    "twice.fa.gz": (gzip.compress(gzip.compress(b">a\nACGU\n")), "gzip inside gzip"),
    "protein.fa": (b">p\nMKTAYIAKQRQISFVKSHFSRQ\n" * 30, "protein"),
    "binary.fa": (b">a\nAC\0GU\n", "NUL"),
    "short.fa": (b">a\nACGU\n", "1 too short (the first: short.fa, record 1 (a)). Change min_length=16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fasta: Path
) -> None:
    text, message = BAD[name]
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text)
    # Through main(): the same code as the command, without starting Python nine times.
    sources = [str(path)] if name == "short.fa" else [str(fasta), str(path)]
    assert main(["--fasta", *sources, "--to", str(tmp_path / "out" / "corpus")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    if name != "short.fa":
        assert name in errors[0]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verfy", "corpora/x"], "did you mean launch/prepare.py verify?"),
        (["{fasta}", "--to", "{out}"], "--fasta {fasta} --to DIR"),
        (["corpora", "--to", "{out}"], "one of the commands verify"),
        (["verify", "{fasta}"], "{fasta}: is a file, and a corpus is a directory"),
        (["describe", "{fasta}"], "{fasta}: is a file, and a corpus is a directory"),
        (["--config", "rinalmo.yaml"], "the file is for launch/pretrain.py"),
        (["alignments", "--config", "demo_rnamsm.yaml"], "the file is for launch/pretrain.py"),
    ],
)
def test_a_wrong_command_or_file_says_which_is_right(arguments, says, tmp_path, fasta, capsys) -> None:
    places = {"fasta": fasta, "out": tmp_path / "out"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert says.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_real_command_ends_with_code_2(tmp_path: Path) -> None:
    done = run("--fasta", tmp_path / "none.fa", "--to", tmp_path / "corpus")
    assert done.returncode == 2
    assert done.stderr.startswith("error: source none: ")
    assert done.stderr.count("\n") == 1


def yaml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


GOOD = "name: x\nsources:\n- {name: a, path: a.fa}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "min_lenght: 3\n", [], "c.yaml: there is no key min_lenght; the nearest valid key is min_length"),
        (
            "name: x\nsources:\n- {nme: a, path: a.fa}\n",
            [],
            "no key sources[0].nme; the nearest valid key is sources[0].name",
        ),
        (GOOD + "min_length: many\n", [], "c.yaml: min_length: Value 'many'"),
        ("sources:\n- {name: a, path: a.fa}\n", [], "c.yaml and the command line: name must be given"),
        ("name: x\nsources:\n- {name: a}\n", [], "sources[0].path must be given"),
        ("name: x\n", [], "sources is empty"),
        ("name: x\nsources: a.fa\n", [], "sources must be a list of entries with name, path"),
        ("name: x\nsources: [a.fa]\n", [], "sources[0] must be an entry with name, path"),
        ("- a\n", [], "must hold `key: value` pairs"),
        ("name: [x\n", [], "not a readable YAML file"),
        (GOOD, ["ambiguity=maybe"], "ambiguity is 'maybe', expected one of keep, drop, N"),
        (GOOD, ["inosine=X"], "inosine is 'X'"),
        (GOOD, ["other_letters=keep"], "other_letters is 'keep', expected one of drop, N"),
        (GOOD, ["min_length=0"], "min_length is 0"),
        (GOOD, ["max_length=5"], "max_length is 5"),
        (GOOD, ["validation_fraction=1.5"], "validation_fraction is 1.5"),
        (GOOD, ["validation_minimum=-1"], "validation_minimum is -1"),
        (GOOD, ["shard_megabytes=0"], "shard_megabytes is 0"),
        (GOOD, ["name=a/b"], "name is 'a/b'"),
        (GOOD, ["seeds=1"], "there is no key seeds; the nearest valid key is seed"),
        (GOOD, ["seed"], "the argument 'seed' is not understood"),
        (GOOD, ["sources.0.typ=tRNA"], "there is no key sources[0].typ; the nearest valid key is sources[0].type"),
        (GOOD, ["sources.0.type=tRNAs"], "sources[0].type 'tRNAs' is no RNA type; did you mean 'tRNA'?"),
        (GOOD, ["sources.4.path=x"], "sources has 1 entries, numbered from 0"),
        (GOOD, ["reverse_complement=drop"], "reverse_complement is 'drop', expected one of keep, merge"),
        (GOOD, ["split_by=clan"], "split_by is 'clan', expected one of cluster, sequence, family"),
        (GOOD, ["clusters.methd=none"], "no key clusters.methd; the nearest valid key is clusters.method"),
        (GOOD, ["clusters.method=linclust"], "clusters.method is 'linclust'"),
        (GOOD, ["clusters.identity=70"], "clusters.identity is 70.0, expected a fraction"),
        (GOOD, ["clusters.coverage=0"], "clusters.coverage is 0.0, expected a fraction"),
        (GOOD, ["clusters.missing=ignore"], "clusters.missing is 'ignore'"),
        (GOOD, ["clusters.method=table"], "give both, or neither"),
        (GOOD, ["clusters.table=x.tsv"], "give both, or neither"),
        (GOOD, ["clusters.method=table", "clusters.table=x.tsv"], "clusters.table: x.tsv does not exist"),
        (GOOD, ["held_out=families.txt"], "split_by is 'cluster', expected family"),
        (GOOD, ["held_out=families.txt", "split_by=family"], "held_out: families.txt does not exist"),
        (GOOD + "exclude: [{fasta: no.fa}]\n", [], "exclude: no.fa does not exist"),
        (GOOD + "exclude: [{fasta: no.fa, action: warn}]\n", [], "exclude[0].action is 'warn'"),
        (GOOD + "exclude: [{fasta: no.fa}]\n", ["exclude.0.identity=2"], "exclude[0].identity is 2.0"),
        (GOOD + "exclude: [{fast: no.fa}]\n", [], "the nearest valid key is exclude[0].fasta"),
        (GOOD, ["threads=-1"], "threads is -1"),
        (GOOD + "- {name: a, path: b.fa}\n", [], "sources[1].name is 'a', expected a name that no other source has"),
    ],
)
def test_bad_configs_name_file_key_and_cure(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(DataError) as error:
        load_prepare_config(yaml(tmp_path / "c.yaml", text), overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    loaded = load_prepare_config(yaml(tmp_path / "c.yaml", GOOD + "seed: 1\n"), ["seed=2", "sources.0.path=b.fa"])
    assert (loaded.seed, loaded.sources[0].path, loaded.min_length) == (2, "b.fa", 16)
    assert loaded.output_path == Path("corpora/x")


def test_shipped_configs_are_valid() -> None:
    loaders = {
        "sequences": load_prepare_config,
        "alignments": load_alignment_config,
    }  # others have own tests
    for path in sorted((CONFIGS / "data").glob("*.yaml")):
        kind = re.search(r"^kind: (\w+)", path.read_text(), flags=re.MULTILINE)
        load = loaders.get(kind[1] if kind else "sequences")
        if "sources" in path.read_text() and load is not None:
            assert load(path).name == path.stem
    rnacentral = load_prepare_config(find_config("data/rnacentral.yaml"))
    assert (rnacentral.min_length, rnacentral.max_length) == (16, 8192)


def test_find_config(tmp_path: Path) -> None:
    assert find_config("data/rnacentral.yaml") == CONFIGS / "data" / "rnacentral.yaml"
    own = yaml(tmp_path / "own.yaml", GOOD)
    assert find_config(str(own)) == own
    with pytest.raises(DataError, match=r"did you mean data/rnacentral\.yaml\?"):
        find_config("data/rnacentrl.yaml")


def test_source_paths(tmp_path: Path) -> None:
    for name in ("b.fa.gz", "a.fasta", "c.FNA", "notes.txt", ".hidden.fa", "deep/d.fa"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b">a\nACGU\n")

    def names(path: str) -> list[str]:
        chosen = config(tmp_path / "x", tmp_path / path).sources[0]
        return [p.relative_to(tmp_path).as_posix() for p in files_of(chosen)]

    assert names("") == ["a.fasta", "b.fa.gz", "c.FNA"]
    assert names("**/*.fa") == ["deep/d.fa"]
    assert names("notes.txt") == ["notes.txt"]
    for path in ("none", "*.gb"):
        with pytest.raises(DataError, match="source0"):
            names(path)
    (tmp_path / "higher").mkdir()
    (tmp_path / "deep").rename(tmp_path / "higher/deep")
    with pytest.raises(DataError, match=r"not looked into; a pattern as `path` is: .*/higher/\*\*/\*\.fa\)"):
        names("higher")


def test_main_guard() -> None:
    def raises(error: BaseException) -> int:
        def fail() -> None:
            raise error

        return main_guard(fail)()

    assert main_guard(lambda: None)() == 0
    assert main_guard(lambda: 75)() == 75
    assert raises(DataError("x")) == 2
    assert raises(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        raises(ZeroDivisionError())


# Slowed down, so that the kills fall into every phase.
SLOW_BUILD = """
import sys, time
from data import scan
from data.corpus import prepare
from data.prepare_config import load_prepare_config
scan._WORTH_A_PROCESS = 0
def progress(*_):
    print(flush=True)
    time.sleep(0.02)
config = load_prepare_config(None, sys.argv[3:], name="my", output=sys.argv[2], overwrite=True,
                             sources=[{"name": "my", "path": sys.argv[1]}])
prepare(config, progress, buckets=16, chunk_bytes=100_000)
"""


def kill_until_done(tmp_path: Path, fasta: Path, kills: int, seconds: float, *options: str) -> set[tuple[str, ...]]:
    """kill -9 after random times, then to the end: the bytes of an undisturbed build. Returns what the kills left."""
    command = [sys.executable, "-c", SLOW_BUILD, str(fasta)]
    expected, output, partial = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / ".killed.partial"
    subprocess.run([*command, str(expected), *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    chance = random.Random(0)
    left = set()
    for attempt in range(kills):
        with subprocess.Popen([*command, str(output), *options], cwd=ROOT, stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # it is at work
            time.sleep(chance.uniform(0, seconds) * (attempt > 0))
            process.send_signal(signal.SIGKILL)
        if partial.exists():
            left.add(tuple(sorted(path.name for path in partial.iterdir())))
        assert not output.exists() or content(output) == content(expected), attempt
    subprocess.run([*command, str(output), *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert content(output) == content(expected)
    assert not partial.exists()
    return left


@pytest.mark.slow
def test_killed_at_any_moment_and_restarted(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "my.fa", random_sequences(20_000, shortest=16))
    left = kill_until_done(tmp_path, fasta, 6, 1.0, "threads=1")
    assert len(left) >= 2  # kills during both scanning and writing


@pytest.mark.slow
@needs_mmseqs
def test_killed_while_clustering_and_restarted(tmp_path: Path) -> None:
    fasta = write_families(tmp_path / "my.fa", families_of(1500, 6))
    options = ("clusters.method=mmseqs", "validation_fraction=0.1", "threads=2")
    left = kill_until_done(tmp_path, fasta, 10, 3.0, *options)
    assert len(left) >= 2
    assert any("groups" in names for names in left)
    running = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running  # nothing of a killed build is left at work
