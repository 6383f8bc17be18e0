"""Raw FASTA files -> a corpus directory of verified shards.

python launch/prepare.py --config data/rnacentral.yaml [key=value ...]
python launch/prepare.py --fasta my.fa.gz more/ --to corpora/my [key=value ...]
python launch/prepare.py verify DIR
python launch/prepare.py describe DIR                             # tables, and DIR/README.md with a picture
python launch/prepare.py download --config data/rnacentral.yaml   # raw files, checked
python launch/prepare.py tokenizer DIR --kind bpe --vocabulary 1024 --to tokenizers/my
python launch/prepare.py motifs DIR --to motifs.txt                # enriched words, for masking (npmi: NPMI words)
python launch/prepare.py synthetic --sequences 24000 --to corpora/demo [key=value ...]
python launch/prepare.py alignments --config data/rfam_14_7.yaml [key=value ...]
python launch/prepare.py alignments --from Rfam.seed.gz more_a3m/ --to corpora/msa [key=value ...]
python launch/prepare.py reactivity --config data/ribonanza.yaml [key=value ...]
python launch/prepare.py reactivity --from train_data.csv --to corpora/my_profiles [key=value ...]
python launch/prepare.py synthetic --reactivity --sequences 2000 --to corpora/demo_profiles [key=value ...]
python launch/prepare.py synthetic --alignments 64 --rows 256 --to corpora/demo_msa [key=value ...]
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":  # launch/ comes first on the path, where `pretrain` would be a script and not the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data.corpus import prepare
from data.errors import DataError
from data.prepare_config import PrepareConfig, load_prepare_config
from data.source_files import unzipped
from data.synthetic import SyntheticCorpus
from data.synthetic_family import PRESETS
from launch.alignments_command import alignments_command, synthetic_alignments
from launch.cli import find_config, main_guard
from launch.corpus_tables import build_progress, print_build
from launch.download_command import download_command
from launch.kinds import kind_of_config, kind_of_corpus
from launch.motifs_command import motifs_command, npmi_command
from launch.reactivity_command import reactivity_command, synthetic_reactivity
from launch.tokenizer_command import tokenizer_command


def build_command(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any key of the config can be set as key=value, e.g. min_length=20 overwrite=true sources.0.path=x.fa.\n"
        "docs/data.md says what is read of each kind of file, docs/keys.md lists every key.",
    )
    parser.add_argument("--config", metavar="NAME.yaml", help="a path, or a name in configs/")
    parser.add_argument("--fasta", nargs="+", metavar="PATH", help="FASTA files, folders or globs, instead of a config")
    parser.add_argument("--to", metavar="DIR", help="output directory, with --fasta")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_intermixed_args(arguments)
    other_kind = kind_of_config(parsed.config).build if parsed.config else None
    if other_kind is not None:
        return other_kind(arguments)
    config = _config(parsed)
    # The reading thread needs the interpreter for an instant per chunk and would wait 5 ms for it each time.
    sys.setswitchinterval(5e-4)
    with build_progress() as progress:
        manifest = prepare(config, progress)
    print_build(manifest, config.output_path, config.published)


def _config(parsed: argparse.Namespace) -> PrepareConfig:
    # After --fasta a b, argparse takes key=value for one more path.
    fasta = [path for path in parsed.fasta or () if "=" not in path or Path(path).exists()]
    overrides = [*parsed.overrides, *(path for path in parsed.fasta or () if path not in fasta)]
    words = [word for word in overrides if "=" not in word]
    if words and not parsed.config and not fasta:
        raise DataError(_not_understood(words[0]))
    if bool(parsed.config) == bool(fasta):
        raise DataError("give either --config NAME.yaml or --fasta PATH ... --to DIR; see launch/prepare.py --help.")
    if parsed.config:
        given = {"output": parsed.to} if parsed.to else {}
        return load_prepare_config(find_config(parsed.config), overrides, **given)
    if not parsed.to:
        raise DataError("--fasta needs --to DIR, the directory to make.")
    name = Path(parsed.to).name
    return load_prepare_config(None, overrides, name=name, output=parsed.to, sources=_named(fasta))


def _not_understood(word: str) -> str:
    """A sentence about an argument that is neither a command nor a setting."""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    if near:
        return f"there is no command {word}; did you mean launch/prepare.py {near[0]}?"
    if Path(word).exists():
        return f"{word}: say what it is: --fasta {word} --to DIR, or alignments, or reactivity, --from {word} --to DIR."
    return f"the argument {word!r} is neither a setting (key=value) nor one of the commands {', '.join(COMMANDS)}."


def _named(paths: Sequence[str]) -> list[dict[str, str]]:
    """One source per path, named after it; a name that occurs twice gets a number."""
    sources: list[dict[str, str]] = []
    for path in paths:
        name = unzipped(Path(path).name).rpartition(".")[0] or Path(path).name
        taken = {source["name"] for source in sources}
        sources.append({"name": name if name not in taken else f"{name}-{len(sources) + 1}", "path": path})
    return sources


def _directory(command: str, arguments: Sequence[str]) -> Path:
    parser = argparse.ArgumentParser(prog=f"prepare.py {command}", description=COMMANDS[command].__doc__)
    parser.add_argument("directory", type=Path, help="a corpus directory")
    directory: Path = parser.parse_args(arguments).directory
    return directory


def verify_command(arguments: Sequence[str]) -> None:
    """Checks every byte of a corpus; the exit code says whether it is intact."""
    directory = _directory("verify", arguments)
    kind = kind_of_corpus(directory)
    report = kind.verify(directory)
    if not report.intact:
        for problem in report.problems[1:]:
            print(f"error: {problem}", file=sys.stderr)
        raise DataError(report.problems[0])
    print(f"{report.path}: intact; {kind.contents(report)}")


def describe_command(arguments: Sequence[str]) -> None:
    """Prints what a corpus holds, and writes it into the directory as a dataset card with a picture."""
    directory = _directory("describe", arguments)
    kind = kind_of_corpus(directory)
    kind.describe(directory)
    print(kind.card(directory))


def synthetic_command(arguments: Sequence[str]) -> None:
    """Makes the embedded corpus: RNA families with a known structure, for trying things out."""
    parser = argparse.ArgumentParser(prog="prepare.py synthetic", description=synthetic_command.__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo", help="which families (demo)")
    parser.add_argument(
        "--sequences", type=int, default=24000, help="members drawn, before duplicates are removed (24000)"
    )
    parser.add_argument("--alignments", type=int, metavar="FAMILIES", help="alignments of so many families instead")
    parser.add_argument("--rows", type=int, default=256, help="with --alignments: rows of each (256)")
    parser.add_argument("--reactivity", action="store_true", help="chemical mapping profiles of the sequences instead")
    parser.add_argument("--csv", metavar="FILE", help="with --reactivity: write only a table like train_data.csv")
    parser.add_argument("--seed", type=int, default=7, help="of the families and their members (7)")
    parser.add_argument("--to", metavar="DIR", help="the corpus to make")
    parser.add_argument("--fasta", metavar="FILE", help="write only a FASTA file")
    parser.add_argument("--stockholm", metavar="FILE", help="with --alignments: write only a Stockholm file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.alignments is not None:
        synthetic_alignments(parsed)
        return
    if parsed.reactivity:
        synthetic_reactivity(parsed)
        return
    if parsed.csv:
        raise DataError("--csv goes with --reactivity.")
    if parsed.stockholm:
        raise DataError("--stockholm needs --alignments FAMILIES, how many alignments to write.")
    if bool(parsed.to) == bool(parsed.fasta):
        raise DataError("give either --to DIR for a corpus or --fasta FILE for a FASTA file.")
    corpus = SyntheticCorpus(parsed.seed, parsed.preset)
    if parsed.fasta:
        print(f"written to {corpus.write_fasta(parsed.fasta, parsed.sequences)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        fasta = corpus.write_fasta(Path(directory) / "synthetic.fa", parsed.sequences)
        build_command(["--fasta", str(fasta), "--to", parsed.to, *parsed.overrides])


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "verify": verify_command,
    "describe": describe_command,
    "synthetic": synthetic_command,
    "download": download_command,
    "tokenizer": tokenizer_command,
    "motifs": motifs_command,
    "npmi": npmi_command,
    "alignments": alignments_command,
    "reactivity": reactivity_command,
}


@main_guard
def main(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        build_command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
