"""A parsing process of `data.workers`: pieces of text on standard input, one line of JSON per piece on standard output.

The end of the input ends it: the last line then holds the tallies. It is not meant to be started by hand.
"""

from __future__ import annotations

import json
import sys

from data.errors import DataError
from data.formats.fasta import FastaText
from data.normalise import LetterPolicy
from data.records import FilterRules, Origin
from data.workers import HEADER, ParseJob, Parser


def main(description: str, who: str) -> int:
    job = json.loads(description)
    rules = job["rules"]
    rules["policy"] = LetterPolicy(**rules["policy"])
    parser = Parser(ParseJob(**{**job, "rules": FilterRules(**rules)}), int(who))
    source, answers = sys.stdin.buffer, sys.stdout.buffer

    def answer(content: dict[str, object]) -> None:
        answers.write(json.dumps(content).encode() + b"\n")
        answers.flush()

    try:
        while header := source.read(HEADER.size):
            described, text = HEADER.unpack(header)
            given = json.loads(source.read(described))
            piece = FastaText(given.pop("first"), given.pop("records"), source.read(text))
            parser.put(piece, Origin(**given))
            answer({})
        answer({"tallies": {source: tally.as_json() for source, tally in parser.finish().items()}})
    except DataError as error:
        answer({"error": str(error)})
        return 2
    except OSError as error:
        answer({"error": f"writing failed ({error.strerror or error})."})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
