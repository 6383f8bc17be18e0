"""The synthetic corpus follows its own law, is reproducible to the byte, and shows its structure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.synthetic import GAP, SyntheticCorpus, from_accession
from data.synthetic_family import (
    LETTERS,
    MIN_HAIRPIN,
    MIN_LENGTH,
    PAIRS,
    RNA_TYPES,
    SyntheticConfig,
    draw_structure,
    pair_table,
)

DEMO = SyntheticCorpus(7, "demo")
# Far more changes and indels than a preset, so that few sequences show them all.
WILD = SyntheticCorpus(
    3, SyntheticConfig(3, 30, 60, stem_substitution=0.4, loop_substitution=0.5, insertion=0.2, deletion=0.3)
)


def text(letters: np.ndarray) -> str:
    return letters.tobytes().decode()


class TestStructure:
    @settings(max_examples=60, deadline=None)
    @given(base=st.integers(0, 2**64 - 1), length=st.integers(MIN_LENGTH, 300))
    def test_has_the_length_and_folds(self, base: int, length: int) -> None:
        structure = draw_structure(base, length)
        partner = pair_table(structure)
        assert len(structure) == length
        assert np.count_nonzero(partner >= 0) >= 6
        assert structure[0] == structure[-1] == "."
        for i in np.flatnonzero(partner > np.arange(length)):
            assert partner[partner[i]] == i
            assert partner[i] - i > MIN_HAIRPIN

    def test_every_kind_of_loop_occurs(self) -> None:
        kinds = set()
        for base in range(40):
            partner = pair_table(draw_structure(base, 80))
            for i in np.flatnonzero(partner > np.arange(80)):
                inside = [j for j in range(i + 1, partner[i]) if partner[j] > j]
                branches = [j for j in inside if not any(k < j < partner[k] for k in inside)]
                if not branches:
                    kinds.add("hairpin")
                elif len(branches) > 1:
                    kinds.add("multiloop")
                else:
                    sides = (branches[0] - i - 1, partner[i] - partner[branches[0]] - 1)
                    kinds.add(("stack", "bulge", "interior")[sum(side > 0 for side in sides)])
        assert kinds == {"hairpin", "multiloop", "stack", "bulge", "interior"}

    @pytest.mark.parametrize("wrong", ["(.", ".)", "(x)"])
    def test_pair_table_refuses(self, wrong: str) -> None:
        with pytest.raises(DataError, match="structure"):
            pair_table(wrong)


class TestSequence:
    def test_is_the_same_on_every_machine(self) -> None:
        assert text(DEMO.sequence(3, 120).letters) == "GGUGGUUCCGGAGAUAAUCCAUUCGUAGAGCUAAUUAAAUUAAGGACCAAU"
        assert text(SyntheticCorpus(7, "standard").sequence(63, 9).letters) == (
            "UGAUUUUAUUAACUAAGUAGUCGUUUUCGUGUUAAAAGACCGGUAAAUCGUGUUUAGUGGUCUG"
            "AGGGACCAUUGCAUAUUUAUGAUACGUAUGAUAUAGAGCAUUAGGGAUGCUCUACGCGCUUA"
        )

    def test_depends_on_family_index_and_seed_alone(self) -> None:
        together = DEMO.sequences(2, np.arange(5))
        assert [text(s.letters) for s in together] == [text(DEMO.sequence(2, i).letters) for i in range(5)]
        assert text(DEMO.family(2).consensus) != text(SyntheticCorpus(8, "demo").family(2).consensus)
        assert len({text(s.letters) for s in WILD.sequences(0, np.arange(50))}) == 50
        assert len(DEMO.sequence(0, 2**62).letters) > 0

    def test_structure_and_columns_describe_the_letters(self) -> None:
        inserted = deleted = 0
        for s in WILD.stream(150):
            family = WILD.family(s.family)
            partner = pair_table(s.structure)
            assert len(s.letters) == len(s.structure) == len(s.columns)
            for i, j in enumerate(partner):
                if j >= 0:
                    assert chr(s.letters[i]) + chr(s.letters[j]) in PAIRS
                    assert family.partner[s.columns[i]] == s.columns[j]
                    if j > i:
                        assert j - i > MIN_HAIRPIN
            columns = s.columns[s.columns >= 0]
            assert np.all(np.diff(columns) > 0)
            stems = np.flatnonzero(family.partner >= 0)
            assert np.array_equal(s.columns[partner >= 0], stems)  # stems are complete, and only they are paired
            inserted += np.count_nonzero(s.columns < 0)
            deleted += len(family.structure) - len(columns)
        assert inserted > 100
        assert deleted > 100

    def test_letters_follow_the_law(self) -> None:
        family = WILD.family(1)
        members, _ = WILD.alignment(1, 4001)
        members = members[1:]
        codes = np.searchsorted(LETTERS, members)
        for (five, three), law in zip(family.stems, family.stem_law, strict=True):
            for pair, p in zip(PAIRS, law, strict=True):
                share = np.mean((members[:, five] == ord(pair[0])) & (members[:, three] == ord(pair[1])))
                assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 4000)
        for column, law in zip(family.loops, family.loop_law, strict=True):
            present = codes[members[:, column] != GAP, column]
            share = np.bincount(present, minlength=4) / len(present)
            assert np.all(np.abs(share - law) < 4.5 * np.sqrt(law * (1 - law) / len(present)))

    def test_laws_keep_the_consensus_and_change_to_another(self) -> None:
        family = DEMO.family(0)
        codes = np.searchsorted(LETTERS, family.consensus)
        kept = family.loop_law[np.arange(len(family.loops)), codes[family.loops]]
        assert np.allclose(kept, 1 - DEMO.config.loop_substitution)
        assert np.allclose(family.stem_law.max(axis=1), 1 - DEMO.config.stem_substitution)
        assert np.allclose(family.stem_law.sum(axis=1), 1)

    def test_indels_have_their_rates(self) -> None:
        family = WILD.family(0)
        members = WILD.sequences(0, np.arange(2000))
        deletable = np.flatnonzero(family.deletable)
        present = np.mean([np.isin(deletable, s.columns) for s in members])
        assert abs(1 - present - 0.3) < 0.01
        mean_inserted = np.mean([np.count_nonzero(s.columns < 0) for s in members]) / len(family.loops)
        assert abs(mean_inserted - 0.2 * (1 + 0.3 + 0.09)) < 0.01

    def test_a_single_allowed_pair_or_letter_stays(self) -> None:
        config = replace(WILD.config, pairs=(1.0, 0, 0, 0, 0, 0), loops=(1.0, 0, 0, 0))
        s = SyntheticCorpus(1, config).sequence(0, 0)
        assert text(s.letters) == s.structure.replace("(", "G").replace(")", "C").replace(".", "A")

    def test_accession_regenerates(self) -> None:
        s = DEMO.sequence(3, 120)
        assert s.accession == "SYN7-demo-3-120"
        assert text(from_accession(s.accession).letters) == text(s.letters)
        wild = WILD.sequence(1, 5)
        assert text(WILD.sequence_of(wild.accession).letters) == text(wild.letters)
        with pytest.raises(DataError, match="not of a preset"):
            from_accession(wild.accession)
        with pytest.raises(DataError, match="this one is SYN7-demo"):
            DEMO.sequence_of(wild.accession)
        for wrong in ("", "SYN7-demo-3", "SYN7-demo-3-x", "URS0000000001"):
            with pytest.raises(DataError, match="not the accession"):
                from_accession(wrong)

    def test_refuses_what_does_not_exist(self) -> None:
        with pytest.raises(DataError, match="Family 4"):
            DEMO.sequence(4, 0)
        for index in (-1, 2**63):
            with pytest.raises(DataError, match="numbered from 0"):
                DEMO.sequence(0, index)
        with pytest.raises(DataError, match="preset 'large'"):
            SyntheticCorpus(0, "large")
        with pytest.raises(DataError, match="seed"):
            SyntheticCorpus(-1)
        for wrong in (
            {"families": 0},
            {"shortest": 5},
            {"deletion": 1.5},
            {"loops": (1.0, 1.0)},
            {"pairs": (0.0,) * 6},
        ):
            with pytest.raises(DataError):
                replace(DEMO.config, **wrong)


class TestCorpus:
    def test_stream_interleaves_families_and_ranges_join(self) -> None:
        accessions = [s.accession for s in DEMO.stream(1300)]
        assert accessions[:9] == [f"SYN7-demo-{n % 4}-{n // 4}" for n in range(9)]
        assert len(set(accessions)) == 1300
        assert [s.accession for s in DEMO.stream(700, start=517)] == accessions[517:1217]
        assert list(DEMO.stream(0)) == []
        with pytest.raises(DataError, match="negative"):
            next(DEMO.stream(5, start=-1))

    def test_fasta(self, tmp_path) -> None:
        path = DEMO.write_fasta(tmp_path / "demo.fasta", 20, start=3)
        lines = path.read_text().splitlines()
        for n, s in enumerate(DEMO.stream(20, start=3)):
            rna_type = RNA_TYPES[s.family]
            assert lines[2 * n] == f">{s.accession} {rna_type} family {s.family}"
            assert lines[2 * n + 1] == text(s.letters)
        assert len(lines) == 40
        assert [p.name for p in tmp_path.iterdir()] == ["demo.fasta"]
        before = path.read_bytes()
        assert DEMO.write_fasta(path, 20, start=3).read_bytes() == before
        with pytest.raises(DataError):
            DEMO.write_fasta(path, -1)
        assert path.read_bytes() == before  # a failure leaves the old file and nothing beside it
        assert [p.name for p in tmp_path.iterdir()] == ["demo.fasta"]

    def test_alignment_is_the_sequences_without_their_insertions(self) -> None:
        family = WILD.family(2)
        letters, consensus_structure = WILD.alignment(2, 30)
        assert letters.dtype == np.uint8
        assert letters.shape == (30, len(family.structure))
        assert consensus_structure == family.structure
        assert np.array_equal(letters[0], family.consensus)
        for row, s in zip(letters[1:], WILD.sequences(2, np.arange(29)), strict=True):
            expected = np.full(len(row), GAP, dtype=np.uint8)
            expected[s.columns[s.columns >= 0]] = s.letters[s.columns >= 0]
            assert np.array_equal(row, expected)
        assert WILD.alignment(2, 1)[0].shape[0] == 1
        with pytest.raises(DataError, match="at least one row"):
            WILD.alignment(2, 0)


class TestReactivity:
    def test_shows_the_structure(self) -> None:
        rows = []
        for s in WILD.stream(400):
            profile = WILD.reactivity(s)
            assert profile.shape == (len(s.letters), 2)
            assert profile.dtype == np.float32
            assert np.array_equal(np.isnan(profile[:, 1]), np.isin(s.letters, (ord("G"), ord("U"))))
            assert not np.isnan(profile[:, 0]).any()
            rows.append((np.frombuffer(s.structure.encode(), dtype=np.uint8) == ord("."), profile))
        unpaired = np.concatenate([r[0] for r in rows])
        profile = np.concatenate([r[1] for r in rows])
        for channel in range(2):
            loops, stems = np.nanmean(profile[unpaired, channel]), np.nanmean(profile[~unpaired, channel])
            assert 0.9 < loops < 1.15
            assert stems < 0.3 * loops
        assert np.nanmin(profile) < 0

    def test_helix_ends_lie_between(self) -> None:
        ends, inner = [], []
        for s in WILD.stream(400):
            partner = pair_table(s.structure)
            profile = WILD.reactivity(s)[:, 0]
            for i in np.flatnonzero(partner >= 0):
                stacked = partner[i - 1 : i] == partner[i] + 1, partner[i + 1 : i + 2] == partner[i] - 1
                both = all(x.size and x[0] for x in stacked) and partner[i] > 0
                (inner if both else ends).append(profile[i])
        assert 2 * np.mean(inner) < np.mean(ends) < 0.6

    def test_noise_belongs_to_the_sequence(self) -> None:
        s, other = DEMO.sequences(0, np.arange(2))
        assert np.array_equal(DEMO.reactivity(s), DEMO.reactivity(s), equal_nan=True)
        assert not np.allclose(DEMO.reactivity(s)[:5, 0], DEMO.reactivity(other)[:5, 0])
