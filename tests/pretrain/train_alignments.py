"""A few steps of a small RNA-MSM under the engine, as one rank; prints the losses.

    train_alignments.py ZERO_STAGE [checkpointing]

The ranks' alignments differ in shape, one micro-batch is empty, one alignment has a single row. Then one alignment each
is read in pieces, of which every rank has another number.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

SHAPES = ((7, 20), (1, 33), (12, 9))  # of the alignments of a step


def main(stage: int, checkpointing: bool) -> None:
    import torch

    from data import randomness
    from models.rnamsm import RNAMSM, RNAMSMConfig
    from pretrain import distributed
    from pretrain.config import DeepSpeedConfig, OptimizerConfig, Recipe
    from pretrain.engine import Engine
    from pretrain.objectives.msa import MSA
    from pretrain.objectives.msa_config import MSAConfig
    from tests.pretrain.drawn_alignments import Drawn

    world = distributed.start(threads=1)
    model = RNAMSMConfig.named(
        "nano", layers=2, attention_dropout=0.0, residual_dropout=0.0, piece_tokens=40, checkpointing=checkpointing
    )
    settings = Recipe(model=model, objective=MSAConfig(), optimizer=OptimizerConfig(learning_rate=3e-3))
    # At stage 3 every parameter is partitioned, the small ones too.
    everything = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {}
    settings.deepspeed = DeepSpeedConfig(zero_stage=stage, config=everything)
    objective = MSA(settings.objective)
    torch.manual_seed(1)
    engine = Engine(RNAMSM(settings.model), settings, world)
    losses = []
    for step in range(4):
        keys = randomness.keys(randomness.key("step", step), range(3))
        every = [objective.collate([Drawn(*SHAPES[i], seed=i)], keys[i : i + 1]) for i in range(3)]
        mine = every[world.rank :: world.ranks]
        mine += [objective.collate([], keys[:0])] * (-(-3 // world.ranks) - len(mine))
        weight = sum(batch.weight for batch in every)
        found = 0.0
        for batch in mine:
            loss, _ = objective.loss(engine.module, batch)
            engine.backward(loss, weight)
            found += loss.item()
        engine.step(3e-3)
        losses.append(world.sum([found])[0] / weight)
    engine.deepspeed.eval()
    with torch.no_grad():
        rows = 3 + 20 * world.rank
        out = engine.module(torch.full((1, rows, 12), 7), everything=True)
        whole = torch.isfinite(out.logits).all() and out.maps.shape == (1, 8, 12, 12)
    world.barrier()
    distributed.finish()
    if world.first:
        print(json.dumps({"losses": losses, "whole": bool(whole)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), len(sys.argv) > 2)
