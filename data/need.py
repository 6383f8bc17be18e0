"""In which order a run needs the shards of a corpus: from its order of samples and the block table, without reading.

Pure: the same step gives the same answer. It walks the coming steps until every shard has been met, which takes a few
steps where an epoch is shuffled over all shards and some milliseconds in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
StepIds = Callable[[int], I64]  # step -> ids of the samples of one split that it trains on

HORIZON = 4096  # steps looked ahead; a shard that is not needed by then is as good as not needed


@dataclass
class Need:
    """``block_end`` int64 [blocks]: sequences of the split up to the end of each block; ``block_shard`` [blocks]: the
    shard it lies in; ``names`` of the shards; ``steps``: the run's, ``stop`` excluded.
    """

    block_end: I64
    block_shard: I64
    names: Sequence[str]
    step_ids: StepIds
    stop: int

    def of_step(self, step: int) -> list[str]:
        """Shards that a step reads, in the order of its samples."""
        blocks = np.searchsorted(self.block_end, np.asarray(self.step_ids(step), dtype=np.int64), side="right")
        return [self.names[shard] for shard in dict.fromkeys(self.block_shard[blocks].tolist())]

    def upcoming(self, step: int) -> dict[str, int]:
        """Shard -> the first step from ``step`` on that reads it, soonest first; those beyond the horizon are left out.

        Within a step the order of its samples decides.
        """
        found: dict[str, int] = {}
        missing = len(set(self.block_shard.tolist()))
        for number in range(step, min(self.stop, step + HORIZON)):
            for name in self.of_step(number):
                found.setdefault(name, number)
            if len(found) == missing:
                break
        return found
