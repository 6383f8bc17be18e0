"""How long training waits for a checkpoint: written in the background, written at once, and by DeepSpeed's own saving.

    python benchmarks/saving.py [--ranks 2] [--width 640 --layers 12] [--steps 12]

One RiNALMo on `--ranks` CPU ranks trains `--steps` steps on a synthetic corpus under ZeRO 2 and saves every fourth;
masters and two Adam moments are 12 bytes per parameter. Three runs of the same steps in turn: `checkpoint.background`
on and off (waits as metrics.jsonl has them, copies and collectives included), and one in which DeepSpeed's
`save_checkpoint` is called in place of ours (the time that rank 0 spends in it). The ratio of a wait to a step counts:
both are taken in one run on one machine. The background writer takes processor time from training on a CPU, so the
seconds per step are given too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DEEPSPEED = """
import runpy, sys, time
sys.path[0] = {root!r}
from pretrain.saving import Saver
from pretrain.trainer import Trainer

def begin(self, progress):
    since = time.perf_counter()
    self.engine.deepspeed.save_checkpoint(str(self.directory) + "-deepspeed", tag=str(progress.step))
    self.waits = [*getattr(self, "waits", []), time.perf_counter() - since]

def conclude(self, plain=Trainer._conclude):
    if self.world.first:
        for wait in self.saver.waits:
            self.tracker.write("checkpoint", 0, {{"waited_seconds": wait, "seconds": wait, "bytes": 0}})
    plain(self)

Saver.begin, Trainer._conclude = begin, conclude
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def run(name: str, folder: Path, options: argparse.Namespace, *settings: str) -> dict[str, float]:
    """One run; the medians of its records, the first saved step aside (it allocates what the next ones reuse)."""
    script = ROOT / "launch" / "pretrain.py"
    arguments = [
        "--config",
        str(ROOT / "configs" / "rinalmo_micro.yaml"),
        f"run.name={name}",
        f"run.directory={folder}",
    ]
    arguments += [f"data.corpus={folder / 'corpus'}", "model.size=null", f"model.width={options.width}"]
    arguments += [f"model.layers={options.layers}", f"model.heads={options.width // 32}", "budget.epochs=null"]
    arguments += [f"budget.steps={options.steps}", f"batch.sequences={options.sequences}", "compute.precision=fp32"]
    arguments += ["deepspeed.zero_stage=2", "validation.sequences=0", "checkpoint.every_steps=4", "checkpoint.keep=1"]
    arguments += ["tracking.log_every_steps=1", "schedule.warmup_steps=2", f"model.ffn={2 * options.width}", *settings]
    if name == "deepspeed":
        script = folder / "with_deepspeed.py"
        script.write_text(DEEPSPEED.format(root=str(ROOT), script=str(ROOT / "launch" / "pretrain.py")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(options.ranks), str(script)]
    done = subprocess.run(
        [*launcher, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    saves = [one for one in records if one["kind"] == "checkpoint"][1:]
    steps = [one["seconds_per_step"] for one in records if one["kind"] == "train"][1:]
    found = {key: statistics.median(one[key] for one in saves) for key in ("waited_seconds", "seconds", "bytes")}
    return found | {"step": statistics.median(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=32, help="per step")
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saving-") as name:
        folder = Path(name)
        make = [sys.executable, str(ROOT / "launch" / "prepare.py"), "synthetic", "--sequences", "2000"]
        subprocess.run([*make, "--to", str(folder / "corpus")], check=True, capture_output=True)
        results = {
            "background": run("background", folder, options),
            "at once": run("at-once", folder, options, "checkpoint.background=false"),
            "DeepSpeed's own": run("deepspeed", folder, options),
        }
    print(f"{options.ranks} ranks, {results['background']['bytes'] / 1e9:.2f} GB per checkpoint, ZeRO 2, fp32")
    for title, one in results.items():
        print(
            f"{title:16s} waits {one['waited_seconds']:6.2f} s = {one['waited_seconds'] / one['step']:5.2f} steps of "
            f"{one['step']:.2f} s; complete after {one['seconds']:.2f} s"
        )


if __name__ == "__main__":
    main()
