"""Rfam's seed alignments through everything, without the families of known structure, recounted by a plain reader."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.alignment_corpus import prepare_alignments
from data.alignments import AlignmentCorpus
from data.manifest import SPLITS
from data.verify_alignments import verify_alignments
from tests.data.alignments import config, plain_clean, plain_stockholm


@pytest.mark.slow
def test_rfam_without_known_structures(shared_data: Path, tmp_path: Path) -> None:
    seed = shared_data / "alignments/Rfam14.2.seed.gz"
    with tarfile.open(shared_data / "alignments/rfam_3d_seed_alignments.tar.gz") as tar:
        known = {Path(name).stem for name in tar.getnames() if name.endswith(".sto")}
    assert len(known) == 129
    (tmp_path / "known.txt").write_text("\n".join(sorted(known)))
    options = {"exclude": str(tmp_path / "known.txt"), "split_by": "clan", "validation_fraction": 0.05}
    manifest = prepare_alignments(config(tmp_path / "corpus", seed, **options))
    families = {family.features["AC"]: family for family in plain_stockholm(seed)}
    assert len(families) == 3026
    left_out = known & set(families)
    assert manifest["sources"][0]["dropped"]["excluded"] == len(left_out) > 100
    clans: dict[str, set[str]] = {}
    seen: set[str] = set()
    letters = 0
    for split in SPLITS:
        corpus = AlignmentCorpus.open(tmp_path / "corpus", split)
        names = corpus.accessions(np.arange(corpus.count))
        assert not seen & set(names)
        seen |= set(names)
        clans[split] = {families[name].features.get("CL", name) for name in names}
        for one in corpus.alignments(np.arange(corpus.count)):
            expected = plain_clean(families[one.family], query=True)
            assert one.rows([0])[0].tobytes().decode() == expected[0]
            rows = one.rows(np.arange(one.depth))
            assert sorted(map(bytes, rows)) == sorted(row.encode() for row in expected)
            assert "-" not in expected[0]
            assert one.structure is not None
            letters += rows.size
    assert not clans["train"] & clans["validation"]
    assert seen == set(families) - left_out
    assert sum(manifest["letters"].values()) == letters
    assert manifest["splits"]["validation"]["alignments"] == round(0.05 * len(seen))
    assert verify_alignments(tmp_path / "corpus").problems == []
