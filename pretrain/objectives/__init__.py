"""What a model is trained to do. One file per objective.

An objective has `costs` (what samples count for when batches are planned), `read` (corpus, ids -> samples), `collate`
(samples, keys and the moment of the run -> micro-batch, in numpy, on the loader's thread) and `loss` (model,
micro-batch -> sum over targets, counts). A micro-batch has `weight`: the loop divides the summed loss of a step by the
summed weight of the whole global batch, once.
"""

from typing import Any

from pretrain.objectives.intervals import Intervals
from pretrain.objectives.intervals_config import IntervalsConfig
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.objectives.msa import MSA
from pretrain.objectives.msa_config import MSAConfig
from pretrain.objectives.reactivity import Reactivity, ReactivityConfig

# name in recipes -> (config class, objective class)
OBJECTIVES: dict[str, tuple[type[Any], type[Any]]] = {
    "mlm": (MLMConfig, MLM),
    "intervals": (IntervalsConfig, Intervals),
    "msa": (MSAConfig, MSA),
    "reactivity": (ReactivityConfig, Reactivity),
}


def for_release(config: Any) -> Any:
    """The objective of this configuration as releases and their cards need it: files of words may be gone by then."""
    _, objective_class = OBJECTIVES[config.name]
    return getattr(objective_class, "without_files", objective_class)(config)
