"""Pretrain a model: `deepspeed launch/pretrain.py --config rinalmo.yaml [section.key=value ...]`.

The same script runs under `torchrun`, `srun` and plain `python`. Exit code 0: the budget is used up; 75: stopped and
saved, start the same command again; 76: another rank was lost, nothing was saved, start the same command again; 2: a
sentence on stderr says what to mend.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # launch/ itself would shadow the package `pretrain`

# Read when torch loads OpenMP. Threads that wait by spinning slow a CPU run down tenfold as soon as a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from launch.cli import load_recipe, main_guard  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a recipe: a path, or a name in configs/")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by some launchers; not needed")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the recipe; keys: docs/keys.md"
    )
    arguments = parser.parse_args()

    faulthandler.enable()  # so that a crash outside Python says where on stderr
    from pretrain.signals import StopRequest, end_when_asked

    end_when_asked()  # until there is something to save
    from pretrain import contact, distributed
    from pretrain.trainer import Trainer

    settings = load_recipe(arguments.config, arguments.overrides)
    world = distributed.start(settings.compute.threads, settings.compute.timeout_minutes)
    stop = StopRequest()  # from here on a signal asks the loop to stop
    with contact.told_when_lost(world, settings.compute.timeout_minutes):
        code = Trainer(settings, world, stop).run()
        distributed.finish()
    return code


if __name__ == "__main__":
    code = main_guard(main)()
    # Not sys.exit: after a failure the process group still stands, and gloo may abort while Python takes it down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
