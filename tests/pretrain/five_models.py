"""The five models, tiny and without dropout, each with the objective and the synthetic corpus that it trains on."""

from __future__ import annotations

from pathlib import Path

from tests.data.reactivity_files import build, rows_of, write_table
from tests.ranks import QUICK, ROOT
from tests.synthetic_alignments import synthetic_alignments

SEQUENCES, ALIGNMENTS, PROFILES = "sequences", "alignments", "profiles"
MOTIFS = ("GGCGCC", "GCGGAU", "AACUUACG", "UUCGAA", "GGGAAA", "CCUUGG")
SMALL = "batch.tokens_per_micro_batch=256"  # two or three micro-batches a step, so that ranks divide it differently
SETTINGS = {
    "rinalmo": (SEQUENCES, [*QUICK, SMALL]),
    "aido_rna": (SEQUENCES, [*QUICK, SMALL, "model.name=aido_rna", "model.size=null", "objective.alphabet=aido_rna"]),
    "rnaernie": (
        SEQUENCES,
        [
            *(*QUICK, SMALL, "model.name=rnaernie", "model.vocab=57", "objective.name=intervals"),
            *("objective.alphabet=rnaernie", "objective.type_token.mask_prob=0.5", "objective.motif.files=[{motifs}]"),
        ],
    ),
    "rnamsm": (
        ALIGNMENTS,
        [
            *(*QUICK, "model.name=rnamsm", "objective.name=msa", "objective.max_columns=64"),
            *("objective.max_tokens=256", "batch.sequences=6"),
        ],
    ),
    "ribonanzanet": (
        PROFILES,
        [
            *("--config", str(ROOT / "tests" / "tiny_reactivity.yaml"), "batch.tokens_per_micro_batch=900"),
            *("schedule.name=cosine", "schedule.warmup_steps=4", "schedule.minimum=3e-4"),
        ],
    ),
}
MODELS = tuple(SETTINGS)


def corpora(folder: Path, sequences: Path) -> dict[str, Path]:
    """Kind -> corpus; that of sequences is given, the others and a file of motifs are made."""
    (folder / "motifs.txt").write_text("\n".join(MOTIFS) + "\n")
    build(folder / PROFILES, write_table(folder / "profiles.csv", rows_of(120, shortest=30, longest=90), width=90))
    made = {ALIGNMENTS: synthetic_alignments(folder / ALIGNMENTS), PROFILES: folder / PROFILES}
    return {SEQUENCES: sequences, **made}


def settings(model: str, corpora: dict[str, Path]) -> list[str]:
    """Arguments of launch/pretrain.py that choose a tiny model, its objective and its corpus."""
    kind, arguments = SETTINGS[model]
    motifs = corpora[PROFILES].with_name("motifs.txt")
    return [*(argument.format(motifs=motifs) for argument in arguments), f"data.corpus={corpora[kind]}"]
