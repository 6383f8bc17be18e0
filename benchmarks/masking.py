"""Nucleotides per second that are masked: the interval engine against a plain per-sample implementation.

    python benchmarks/masking.py --corpus DIR --motifs ATtRACT.txt SpliceAid.txt --mined Statistics.txt --rounds 5

The reference does what the original does, sample by sample in Python, written from its description (specs: rnaernie
4.1, 4.2): base level (shuffle, take the first n), span level (shuffled starts, drawn lengths, shorter ones tried),
motif level (Aho-Corasick, greedy), then 80/10/10 per token. Variants:

- three / one: builds all three masked versions of a sample and picks one, as the original does, or only the one picked
- python / c: the Aho-Corasick automaton in plain Python, as the original's, or pyahocorasick, as ours

Ours is the preset rnaernie-code through `Intervals.collate`: rows, masks, corruption and packed tensors, in
micro-batches of 16,384 tokens planned from lengths. The reference's time holds masks and corruption only, neither rows
nor tensors. One core; the sequences are the same, cut to 508 nucleotides. Every variant runs once per round; the median
is reported.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import ahocorasick
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import layout, randomness  # noqa: E402
from data.formats.motifs import read_motifs  # noqa: E402
from data.index import Corpus  # noqa: E402
from pretrain.objectives.intervals import Intervals, Sample  # noqa: E402
from pretrain.objectives.intervals_config import IntervalsConfig  # noqa: E402

LONGEST, MASK, LETTERS = 508, 4, {"A": 6, "C": 7, "G": 8, "U": 9}
LENGTHS, WEIGHTS = (5, 6, 7, 8), (12, 6, 4, 3)
Hits = list[tuple[int, int]]  # first, last + 1


class Trie:
    """Aho-Corasick in plain Python: one dictionary per state, fail links, the lengths of the words that end there."""

    def __init__(self, words: list[str]) -> None:
        self.edges: list[dict[str, int]] = [{}]
        self.ends: list[list[int]] = [[]]
        for word in words:
            state = 0
            for letter in word:
                if letter not in self.edges[state]:
                    self.edges[state][letter] = len(self.edges)
                    self.edges.append({})
                    self.ends.append([])
                state = self.edges[state][letter]
            self.ends[state].append(len(word))
        self.fail = [0] * len(self.edges)
        waiting = deque(self.edges[0].values())
        while waiting:
            state = waiting.popleft()
            for letter, target in self.edges[state].items():
                other = self.fail[state]
                while other and letter not in self.edges[other]:
                    other = self.fail[other]
                self.fail[target] = self.edges[other].get(letter, 0)
                self.ends[target] = self.ends[target] + self.ends[self.fail[target]]
                waiting.append(target)

    def find(self, text: str) -> Hits:
        found, state = [], 0
        for place, letter in enumerate(text):
            while state and letter not in self.edges[state]:
                state = self.fail[state]
            state = self.edges[state].get(letter, 0)
            for size in self.ends[state]:
                found.append((place + 1 - size, place + 1))
        return found


class Compiled:
    """The same by pyahocorasick."""

    def __init__(self, words: list[str]) -> None:
        self.automaton = ahocorasick.Automaton()
        for word in words:
            self.automaton.add_word(word, len(word))
        self.automaton.make_automaton()

    def find(self, text: str) -> Hits:
        return [(end + 1 - size, end + 1) for end, size in self.automaton.iter(text)]


class Reference:
    """One sample at a time."""

    def __init__(self, database: Trie | Compiled, mined: Trie | Compiled, all_levels: bool, seed: int) -> None:
        self.database, self.mined, self.all_levels = database, mined, all_levels
        self.random = random.Random(seed)

    def __call__(self, text: str) -> tuple[list[int], list[int]]:
        tokens = [LETTERS.get(letter, 3) for letter in text]
        budget = min(int(0.15 * 512), max(1, round(0.15 * len(text))))
        levels = (self.base, self.span, self.motif)
        if self.all_levels:
            masked = [self.corrupt(tokens, level(text, budget)) for level in levels]
            return self.random.choice(masked)
        return self.corrupt(tokens, self.random.choice(levels)(text, budget))

    def base(self, text: str, budget: int) -> list[int]:
        places = list(range(len(text)))
        self.random.shuffle(places)
        return places[:budget]

    def span(self, text: str, budget: int) -> list[int]:
        last = len(text) - 9
        starts = list(range(max(last, 0)))
        self.random.shuffle(starts)
        covered: set[int] = set()
        for start in starts:
            if len(covered) >= budget:
                break
            size = self.random.choices(LENGTHS, WEIGHTS)[0]
            window = range(start, min(start + size, last))
            while len(covered) + len(window) > budget and size > LENGTHS[0]:
                size -= 1
                window = range(start, min(start + size, last))
            if len(covered) + len(window) > budget or any(place in covered for place in window):
                continue
            covered.update(window)
        return list(covered)

    def motif(self, text: str, budget: int) -> list[int]:
        hits = self.database.find(text)
        self.random.shuffle(hits)
        covered: set[int] = set()
        for start, stop in hits + self.mined.find(text):
            if len(covered) >= budget:
                break
            if len(covered) + stop - start > budget or any(place in covered for place in range(start, stop)):
                continue
            covered.update(range(start, stop))
        return list(covered)

    def corrupt(self, tokens: list[int], places: list[int]) -> tuple[list[int], list[int]]:
        shown, labels = list(tokens), [-1] * len(tokens)
        for place in places:
            labels[place] = tokens[place]
            fate = self.random.random()
            if fate < 0.8:
                shown[place] = MASK
            elif fate < 0.9:
                shown[place] = self.random.choice((6, 7, 8, 9))
        return shown, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus directory")
    parser.add_argument("--motifs", nargs="+", required=True, help="motif files of a database")
    parser.add_argument("--mined", nargs="*", default=[], help="files of mined motifs")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    torch.set_num_threads(1)

    corpus = Corpus.open(parsed.corpus)
    letters = [view[:LONGEST] for view in corpus.letters(np.arange(min(parsed.sequences, corpus.count)))]
    texts = [view.tobytes().decode() for view in letters]
    total = sum(map(len, texts))
    database = read_motifs(parsed.motifs, 4, 200).words
    mined = [word for word in read_motifs(parsed.mined, 4, 200).words if word not in set(database)]
    print(f"{len(texts):,} sequences, {total:,} nucleotides; {len(database):,} + {len(mined):,} motifs")

    def reference(automaton: type, all_levels: bool) -> Callable[[], None]:
        masks = Reference(automaton(database), automaton(mined) if mined else Trie([]), all_levels, 0)

        def run() -> None:
            for text in texts:
                masks(text)

        return run

    files = {"files": list(parsed.motifs), "mined": list(parsed.mined)}
    objective = Intervals(IntervalsConfig.of(preset="rnaernie-code", motif=files))
    costs = objective.token_lengths(np.array([len(text) for text in texts]))
    plan = layout.plan_step(costs, 1, 16384)[0]
    samples = [Sample(view) for view in letters]
    keys = randomness.keys(randomness.key("benchmark"), np.arange(len(texts)))

    def ours() -> None:
        for chosen in plan:
            objective.collate([samples[i] for i in chosen.tolist()], keys[chosen])

    variants: dict[str, Callable[[], None]] = {
        "reference, three, python": reference(Trie, True),
        "reference, one, python": reference(Trie, False),
        "reference, three, c": reference(Compiled, True),
        "reference, one, c": reference(Compiled, False),
        "ours": ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(parsed.rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for line in table(medians, total, len(texts)):
        print(line)


def table(medians: dict[str, float], total: int, count: int) -> Iterator[str]:
    yield "| variant | nucleotides/s | ms per sequence | ours is faster by |"
    yield "|---|---|---|---|"
    for name, seconds in medians.items():
        factor = seconds / medians["ours"]
        yield f"| {name} | {total / seconds:,.0f} | {1000 * seconds / count:.3f} | {factor:.1f} |"


if __name__ == "__main__":
    main()
