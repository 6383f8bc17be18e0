"""AIDO.RNA's layouts: which there are, how each is told, and what a release of the model holds.

    ours              a Hugging Face directory with modelling code of our own      aido_rna_transformers.py
    GenBio's          the directory of their class, or one file of its weights     aido_rna_genbio.py
    MultiMolecule's   the directory of version 0.0.8, which alone has the model    aido_rna_multimolecule.py

Source: AIDO.RNA specification 7 and 8. What this module offers is the contract of `releasing.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from models.aido_rna import AidoRNAConfig
from models.layouts import aido_rna_genbio, aido_rna_multimolecule, aido_rna_transformers
from models.layouts.aido_rna_table import TOKENS, UNTRAINED, U
from models.layouts.multimolecule import UNTRAINED_BIAS
from models.layouts.reading import read_json
from models.layouts.releasing import ReleaseLayout, python_block

_DIRECTORIES: dict[str, Callable[[Path], tuple[AidoRNAConfig, dict[str, Tensor]]]] = {
    layout.MODEL_TYPE: layout.read for layout in (aido_rna_transformers, aido_rna_genbio, aido_rna_multimolecule)
}
MODEL_TYPES = tuple(_DIRECTORIES)
HEADS = None  # differs between the published sizes and follows from their widths


def release_notes(config: AidoRNAConfig, letters: str | None = None) -> str:
    """Markdown for the model card: what stands in the rows that training on T never used (specs: aido_rna 8)."""
    never = " ".join(TOKENS[i] for i in UNTRAINED if i != U)
    return (
        "- Training spelled uracil T. The row of `U` is a copy of `T`'s, so that U can be fed; its output bias is"
        f" {UNTRAINED_BIAS:g}, so that it is never predicted, and so is that of `{never}`, which were never trained.\n"
    )


RELEASES = {
    "transformers": ReleaseLayout(
        "", aido_rna_transformers.write, aido_rna_transformers.USAGE, library="transformers", notes=release_notes
    ),
    "genbio": ReleaseLayout(
        "genbio",
        aido_rna_genbio.write,
        "`genbio/` holds the same weights for GenBio's class (the packages `aido_rna` or `modelgenerator`), which has"
        " its tokenizer inside: spell uracil T.\n\n"
        '```python\nmodel = RNABertForMaskedLM.from_pretrained("PATH_OR_ID", subfolder="genbio")\n```\n',
    ),
    "multimolecule": ReleaseLayout(
        "multimolecule",
        aido_rna_multimolecule.write,
        "`multimolecule/` holds the same weights for MultiMolecule 0.0.8 with transformers 4.46; no other version of"
        " MultiMolecule has the model.\n\n"
        + python_block(
            "import multimolecule  # registers the model, so it comes first",
            "from transformers import AutoModelForMaskedLM, AutoTokenizer",
            "",
            'model = AutoModelForMaskedLM.from_pretrained("PATH_OR_ID", subfolder="multimolecule")',
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID", subfolder="multimolecule")',
        ),
        fits=lambda config, trained: aido_rna_multimolecule.expresses(config),
    ),
}


def tokens(config: AidoRNAConfig) -> tuple[str, ...]:
    """The tokens in the order of their ids."""
    return TOKENS


def from_directory(directory: Path | str) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """A directory in any of the three layouts -> (configuration, our state); ModelError if it is damaged or foreign."""
    directory = Path(directory)
    model_type = read_json(directory / "config.json").get("model_type")
    return _DIRECTORIES[str(model_type)](directory)


def recognises_original(names: set[str]) -> bool:
    """Whether the names are those of a file of GenBio's class."""
    return aido_rna_genbio.recognises(names)


def from_original(
    state: dict[str, Tensor], heads: int | None = HEADS, source: str = "the checkpoint"
) -> tuple[AidoRNAConfig, dict[str, Tensor]]:
    """The weights of GenBio's class in one file -> (configuration, our state); ``source`` names it in errors."""
    return aido_rna_genbio.from_file(state, heads, source)
