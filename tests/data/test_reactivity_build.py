"""Preparing profiles: pairing, the rule for duplicates, determinism, memory, restart."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.reactivity import ReactivityCorpus
from data.reactivity_build import prepare_reactivity
from data.reactivity_config import load_reactivity_config
from data.verify_reactivity import verify_reactivity
from launch.cli import CONFIGS, ROOT
from tests.data.corpora import content
from tests.data.reactivity_files import Row, as_array, build, dropped, other, rows_of, samples, write_table

pytest.importorskip("pyarrow")


def test_every_value_arrives_in_its_channel(tmp_path: Path) -> None:
    rows = rows_of(30)
    shuffled = random.Random(1).sample(rows, len(rows))  # pairs are far apart, in either order
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", shuffled))
    found = samples(tmp_path / "c")
    assert len(found) == 30
    for row in rows:
        channel = ["2A3_MaP", "DMS_MaP"].index(row.experiment)
        profile = found[row.sequence]
        np.testing.assert_array_equal(profile.values[:, channel], as_array(row.values))
        np.testing.assert_array_equal(profile.errors[:, channel], as_array(row.errors))
        assert profile.signal_to_noise[channel] == np.float32(row.snr)
    assert manifest["channels"] == ["2A3", "DMS"]
    assert manifest["type_names"] == ["LIB0_NULL", "LIB1_NULL"]
    assert not dropped(manifest)
    classes = {
        name: sum(manifest["splits"][s]["classes"][name] for s in manifest["splits"])
        for name in ("clean", "dirty", "noisy")
    }
    assert classes == {"clean": 10, "dirty": 10, "noisy": 10}
    assert verify_reactivity(tmp_path / "c").intact


def test_channels_are_named_and_not_ordered(tmp_path: Path) -> None:
    rows = rows_of(30)
    table = write_table(tmp_path / "t.csv", rows)
    build(tmp_path / "a", table)
    build(tmp_path / "b", table, channels=["DMS", "2A3"])
    a, b = samples(tmp_path / "a"), samples(tmp_path / "b")
    for letters, profile in a.items():
        np.testing.assert_array_equal(profile.values[:, ::-1], b[letters].values)
        np.testing.assert_array_equal(profile.signal_to_noise[::-1], b[letters].signal_to_noise)
    assert ReactivityCorpus.open(tmp_path / "b").channels == ["DMS", "2A3"]


def test_order_of_rows_files_and_buckets_changes_no_byte(tmp_path: Path) -> None:
    rows = rows_of(40, seed=3)
    rows += [other(row, values=tuple(None if x is None else x + 1 for x in row.values)) for row in rows[:8]]  # ties
    folders = []
    for number, buckets in ((0, 1), (1, 8)):
        mixed = random.Random(number).sample(rows, len(rows))
        folder = tmp_path / f"raw{number}"
        for part in range(3):
            write_table(folder / f"part{part}.csv", mixed[part::3])
        folders.append(folder)
        manifest = build(tmp_path / f"c{number}", folder, buckets=buckets)
        assert dropped(manifest) == {"duplicate": 8}
    first, second = (content(tmp_path / f"c{number}") for number in range(2))
    for name in first.keys() - {"manifest.json"}:  # which names the hashes of its files
        assert first[name] == second[name], name
    assert samples(tmp_path / "c0").keys() == samples(tmp_path / "c1").keys()


def test_same_input_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for place in ("x", "y/z"):
        write_table(tmp_path / place / "train.csv", rows_of(25))
        build(tmp_path / place / "c", tmp_path / place / "train.csv")
    assert content(tmp_path / "x" / "c") == content(tmp_path / "y/z" / "c")


def test_parquet_and_csv_make_the_same_corpus(tmp_path: Path) -> None:
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    table = write_table(tmp_path / "t.csv", rows_of(40))
    parquet.write_table(csv.read_csv(table), tmp_path / "t.parquet")
    found = [build(tmp_path / path.suffix[1:], path) for path in (table, tmp_path / "t.parquet")]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]


def test_highest_signal_to_noise_stays(tmp_path: Path) -> None:
    rows = rows_of(12)
    low, none = other(rows[0], snr=rows[0].snr - 0.5, values=rows[2].values[:1] * 50), other(rows[1], snr=None)
    better = other(rows[2], snr=99.0, values=tuple(None if x is None else 7.0 for x in rows[2].values))
    manifest = build(tmp_path / "c", write_table(tmp_path / "t.csv", [low, none, *rows, better]))
    found = samples(tmp_path / "c")
    np.testing.assert_array_equal(found[rows[0].sequence].values[:, 0], as_array(rows[0].values))
    np.testing.assert_array_equal(found[rows[1].sequence].values[:, 1], as_array(rows[1].values))
    assert np.nanmin(found[rows[2].sequence].values[:, 0]) == 7
    assert found[rows[2].sequence].signal_to_noise[0] == 99
    assert dropped(manifest) == {"duplicate": 3}


def test_of_equals_the_first_source_stays(tmp_path: Path) -> None:
    rows = rows_of(12)
    again = [other(row, values=tuple(None if x is None else 3.0 for x in row.values)) for row in rows]
    a, b = write_table(tmp_path / "a.csv", rows), write_table(tmp_path / "b.csv", again)
    build(tmp_path / "ab", a, b)
    build(tmp_path / "ba", b, a)
    assert np.nanmax(samples(tmp_path / "ab")[rows[0].sequence].values) != 3
    assert np.nanmax(samples(tmp_path / "ba")[rows[0].sequence].values) == 3


def test_half_measured_sequences(tmp_path: Path) -> None:
    rows = [row for i, row in enumerate(rows_of(12)) if i != 1]  # the first sequence, clean, lacks DMS
    table = write_table(tmp_path / "t.csv", rows)
    build(tmp_path / "keep", table)
    profile = samples(tmp_path / "keep")[rows[0].sequence]
    assert np.isnan(profile.values[:, 1]).all()
    assert np.isnan(profile.signal_to_noise[1])
    assert ReactivityCorpus.open(tmp_path / "keep").manifest["splits"]["train"]["classes"]["dirty"] == 5
    manifest = build(tmp_path / "drop", table, unpaired="drop")
    assert rows[0].sequence not in samples(tmp_path / "drop")
    assert dropped(manifest) == {"unpaired": 1}


# Memory that is no page cache: mapped files count as resident, but are let go of when memory is wanted.
BOUNDED_BUILD = """
import re, sys, threading, time
from pathlib import Path
from data import buckets
from tests.data.reactivity_files import build
peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
buckets._FLUSH_BYTES = 4 << 20  # what is collected before it is written: 64 MB otherwise, which would hide the rest
build(Path(sys.argv[1]), Path(sys.argv[2]), buckets=32)
print(peak)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Three times as many profiles take hardly more memory: the peak of a process of its own, for some 25 and 75 MB."""
    rows = rows_of(60, shortest=170, longest=177)
    header, *lines = write_table(tmp_path / "small.csv", rows, width=206).read_text().splitlines()
    generator, peaks, sizes = np.random.default_rng(0), [], []
    for copies in (150, 450):
        table = tmp_path / f"{copies}.csv"
        with open(table, "w") as file:
            file.write(header + "\n")
            for copy in range(copies):
                head = "".join(generator.choice(list("ACGU"), 12))
                for row, line in zip(rows, lines, strict=True):
                    other_id = f"{copy}-{row.id}"
                    file.write(line.replace(row.sequence, head + row.sequence[12:]).replace(row.id, other_id) + "\n")
        command = [sys.executable, "-c", BOUNDED_BUILD, str(tmp_path / f"c{copies}"), str(table)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout) / 1024)
        sizes.append(table.stat().st_size / 1e6)
    assert sizes[1] - sizes[0] > 40
    # Allocators and pyarrow's read-ahead vary by some 25 MB with the load; what held the text alone would take 50 more.
    assert peaks[1] - peaks[0] < 0.65 * (sizes[1] - sizes[0]), peaks  # MB


# Slowed down, so that the kills fall into every phase.
SLOW_BUILD = """
import sys, time
from pathlib import Path
from data.reactivity_build import prepare_reactivity
from tests.data.reactivity_files import config
def progress(*_):
    print(flush=True)
    time.sleep(0.01)
prepare_reactivity(config(Path(sys.argv[2]), Path(sys.argv[1]), overwrite=True), progress, buckets=8)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_restarted(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", rows_of(600))
    command = [sys.executable, "-c", SLOW_BUILD, str(table)]
    expected, output, partial = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / ".killed.partial"
    subprocess.run([*command, str(expected)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    chance, left = random.Random(0), set()
    for attempt in range(4):
        with subprocess.Popen([*command, str(output)], cwd=ROOT, stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # it is at work
            time.sleep(chance.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
        if partial.exists():
            left.add(tuple(sorted(path.name for path in partial.iterdir())))
        assert not output.exists() or content(output) == content(expected), attempt
    subprocess.run([*command, str(output)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert content(output) == content(expected)
    assert not partial.exists()
    assert left


def test_rows_of_make_the_three_classes() -> None:
    """The helper itself: what the other tests rely on."""
    rows: list[Row] = rows_of(9)
    assert [(rows[i].snr > 1, rows[i + 1].snr > 1) for i in (0, 2, 4)] == [(True, True), (True, False), (False, False)]


def test_all_rules_of_the_recipe_on_one_table(tmp_path: Path) -> None:
    """Spec 13, 8: PK50 and PK90 libraries, duplicate rows, the three classes and a fold, in shuffled rows."""
    names = ["PK50_Old", "PK90_x", "PK50_AltChemMap_NovaSeq_a", "PK90_Twist_epPCR", "SL5", "Round9"]
    rows = [other(row, dataset=f"{names[i // 2 % 6]}_{row.experiment[:3]}") for i, row in enumerate(rows_of(140))]
    rows += [other(row, snr=row.snr - 0.7, values=rows[0].values) for row in rows[::7]]  # measured worse before
    table = write_table(tmp_path / "train_data.csv", random.Random(2).sample(rows, len(rows)))
    settings = load_reactivity_config(
        CONFIGS / "data" / "ribonanza.yaml", [f"sources.0.path={table}", f"output={tmp_path / 'c'}"]
    )
    manifest = prepare_reactivity(settings)

    kept = [row for row in rows if not row.dataset.startswith(("PK50_Old", "PK90_x"))]
    best: dict[tuple[str, str], Row] = {}
    for row in kept:
        key = (row.sequence, row.experiment)
        best[key] = max(best.get(key, row), row, key=lambda one: one.snr)
    assert dropped(manifest) == {"dataset": len(rows) - len(kept), "duplicate": len(kept) - len(best)}
    pairs = [(best[s, "2A3_MaP"].snr, best[s, "DMS_MaP"].snr) for s in {s for s, _ in best}]
    classes = [sum((pair[0] > 1) + (pair[1] > 1) == above for pair in pairs) for above in (2, 1, 0)]
    splits = manifest["splits"]
    assert [sum(splits[s]["classes"][name] for s in splits) for name in ("clean", "dirty", "noisy")] == classes
    held_out = splits["validation"]["classes"]
    assert held_out == {"clean": -(-classes[0] // 6), "dirty": 0, "noisy": 0}
    for sequence, profile in samples(tmp_path / "c").items():
        for channel, experiment in enumerate(("2A3_MaP", "DMS_MaP")):
            row = best[sequence, experiment]
            np.testing.assert_array_equal(profile.values[:, channel], as_array(row.values))
            assert profile.signal_to_noise[channel] == np.float32(row.snr)
