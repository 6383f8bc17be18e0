"""The script of one rank: validation on alignments under DeepSpeed, argument 1 the corpus, argument 2 the ZeRO stage.

Rank 0 prints the reports of all ranks.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)


def main(corpus: str, stage: int) -> None:
    import torch

    from data.alignments import AlignmentCorpus
    from models.rnamsm import RNAMSM, RNAMSMConfig
    from pretrain import distributed
    from pretrain.config import DeepSpeedConfig, OptimizerConfig, Recipe
    from pretrain.engine import Engine
    from pretrain.objectives.msa import MSA
    from pretrain.objectives.msa_config import MSAConfig
    from pretrain.validation_alignments import AlignmentValidation
    from tests.models.conftest import telling_weights

    world = distributed.start(threads=1)
    model = RNAMSMConfig(layers=2, width=24, heads=3, ffn=32, piece_tokens=100)
    settings = Recipe(
        model=model, objective=MSAConfig(max_columns=64, max_tokens=512), optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    # At stage 3 every parameter is partitioned, the small ones too.
    everything = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if stage == 3 else {}
    settings.deepspeed = DeepSpeedConfig(zero_stage=stage, config=everything)
    torch.manual_seed(1)
    engine = Engine(telling_weights(RNAMSM(model)), settings, world)
    validation = AlignmentValidation(AlignmentCorpus.open(corpus, "validation"), MSA(settings.objective), 64, 512)
    validation.learn_from(AlignmentCorpus.open(corpus, "train"))
    reports = world.gather(validation.run(engine, world, world.meet))
    world.barrier()
    distributed.finish()
    if world.first:
        print(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
