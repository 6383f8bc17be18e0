"""What a run needs and costs: `python launch/plan.py --config rinalmo.yaml --gpus 8 --gpu h100-80gb`. Nothing is run.

Memory on one GPU by ZeRO stage, the largest micro-batch that fits, steps, days, checkpoints, passes over the data, and
the price. Lengths come from the corpus where it is there, otherwise from the recipe; what was assumed is printed.
`--sweep` shows time per step and memory from 1 to 1024 GPUs.

Communication is modelled as rings over the slowest link: with N ranks (N - 1)/N of a tensor passes every link in a
reduce-scatter or an all-gather, twice that in an all-reduce, at 80 % of the link's rate; the link is that within a node
while all ranks fit into one, else the slower of the two. S parameters, e bytes of a weight (2 in bf16, else 4):
  stage 0: all-reduce 4 S per step            stage 1: all-reduce 4 S and all-gather e S per step
  stage 2: all-reduce 4 S per micro-batch, all-gather e S per step
  stage 3: reduce-scatter 4 S and all-gather e S (or more) per micro-batch
Nothing is hidden behind arithmetic but for stage 2 with overlap_comm, where the backward pass hides what fits.
docs/planning.md says the rest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

from launch.cli import main_guard  # noqa: E402

SWEPT = [2**i for i in range(11)]  # 1 to 1024 GPUs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a recipe: a path, or a name in configs/")
    parser.add_argument("--gpus", type=int, default=1, help="how many, one rank on each (default: 1)")
    parser.add_argument("--gpu", default="h100-80gb", help="kind of GPU, such as h200, a100-40gb (default: h100-80gb)")
    parser.add_argument("--mfu", type=float, default=0.4, help="useful arithmetic of one GPU over its dense peak (0.4)")
    parser.add_argument("--price", type=float, help="of one GPU for an hour, in any currency")
    parser.add_argument("--disk-gbps", type=float, default=1.0, help="GB/s at which all ranks together write (1.0)")
    parser.add_argument("--gpus-per-node", type=int, help="default: as that kind usually comes")
    parser.add_argument("--intra-gbps", type=float, help="GB/s per GPU and direction within a node (default: by kind)")
    parser.add_argument("--inter-gbps", type=float, help="GB/s per GPU and direction between nodes (default: by kind)")
    parser.add_argument(
        "--epoch-samples", type=int, help="samples (or clusters) in an epoch, if the corpus is not here"
    )
    parser.add_argument("--sample-tokens", type=int, help="tokens of a sample, if the corpus is not here")
    parser.add_argument("--sweep", action="store_true", help="also show 1 to 1024 GPUs")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the recipe; keys: docs/keys.md"
    )
    arguments = parser.parse_args()

    from pretrain import gpus, planning, planning_report, recipe
    from pretrain.errors import PretrainError
    from pretrain.planning_network import Network
    from pretrain.planning_samples import Assumed

    for flag in ("gpus", "mfu", "price", "disk_gbps", "gpus_per_node", "intra_gbps", "inter_gbps", "epoch_samples"):
        given = getattr(arguments, flag)
        if given is not None and not 0 < given < float("inf"):
            raise PretrainError(f"--{flag.replace('_', '-')} is {given}, but must be above 0")
    if arguments.mfu > 1:
        raise PretrainError(f"--mfu is {arguments.mfu}, but must be at most 1: it is a share of the peak, such as 0.4")
    if arguments.sample_tokens is not None and arguments.sample_tokens < 3:
        raise PretrainError(f"--sample-tokens is {arguments.sample_tokens}, but must be at least 3")
    gpu = gpus.named(arguments.gpu)
    network = Network(
        arguments.intra_gbps or gpu.intra, arguments.inter_gbps or gpu.inter, arguments.gpus_per_node or gpu.per_node
    )
    assumed = Assumed(arguments.sample_tokens, arguments.epoch_samples)
    assumptions = planning.Assumptions(gpu, network, arguments.mfu, arguments.price, arguments.disk_gbps, assumed)
    settings = recipe.load(arguments.config, arguments.overrides)
    found = planning.plan(settings, arguments.gpus, assumptions)
    swept = planning.sweep(settings, SWEPT, assumptions) if arguments.sweep else []
    if arguments.json:
        print(planning_report.as_json(found, swept))
    else:
        from launch.plan_tables import print_plan, print_sweep

        print_plan(found)
        if swept:
            print_sweep(swept)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main)())
