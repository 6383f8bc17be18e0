"""How `launch/plan.py` shows a plan: a line on what is planned, tables of memory and time, and what was assumed."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from pretrain.console import duration, quantity
from pretrain.planning import Plan, StagePlan, described
from pretrain.planning_memory import usable
from pretrain.planning_report import Swept, assumptions, longest

_GIB = 2**30


def print_plan(found: Plan) -> None:
    console = _console()
    own = found.assumptions
    console.print(f"{described(found)}; {found.ranks} x {own.gpu.name}", highlight=False)
    for stage in found.stages:
        console.print(_memory_table(found, stage))
    console.print(_run_table(found))
    for line in assumptions(found):
        console.print(f"- {line}", highlight=False, soft_wrap=True)


def print_sweep(swept: Swept) -> None:
    console = _console()
    first = next(found for _, found in swept if found is not None)
    settings = first.settings
    named = f" of stage {longest(first).name}" if longest(first).name else ""
    table = Table(title=f"A step{named} on more GPUs, ZeRO {settings.deepspeed.zero_stage}")
    for column in (
        "GPUs", "arithmetic", "waiting", "step", "micro-batches", "balance", "MFU", "GiB per GPU", "days", "cost"
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for ranks, found in swept:
        if found is None:
            continue
        stage = longest(found)
        time, now = stage.time, stage.zero[settings.deepspeed.zero_stage]
        table.add_row(
            f"{ranks}",
            _seconds(time.compute),
            _seconds(time.communication),
            _seconds(time.seconds),
            f"{time.micro_batches:g}",
            f"{time.balance:.0%}",
            f"{found.mfu:.0%}",
            f"{now.peak / _GIB:.1f}" + ("" if now.fits else " (too much)"),
            "?" if found.seconds is None else f"{found.seconds / 86400:.2f}",
            "?" if found.cost is None else f"{found.cost:,.0f}",
        )
    console.print(table)
    beyond = [ranks for ranks, found in swept if found is None]
    if beyond:
        most = min(stage.samples.sequences for stage in first.stages)
        console.print(
            f"{' and '.join(map(str, beyond))} GPUs are not possible: a step has {most} samples, and every rank needs "
            "one (batch.sequences)",
            highlight=False,
        )


def _console() -> Console:
    # A log file has no width of its own, and 80 columns would break the tables.
    return Console(width=None if sys.stdout.isatty() else 140)


def _memory_table(found: Plan, stage: StagePlan) -> Table:
    """GiB on one GPU; one column per ZeRO stage."""
    recomputing = found.settings.model.checkpointing
    chosen = found.settings.deepspeed.zero_stage
    title = f"Memory on one GPU, GiB{', stage ' + stage.name if stage.name else ''}"
    table = Table("", title=f"{title} (micro-batches of {stage.micro_batch:,} {stage.unit})")
    for one in stage.zero:
        table.add_column(f"ZeRO {one.stage}" + " (recipe)" * (one.stage == chosen), justify="right")
    rows = [
        ("weights", [one.states.weights for one in stage.zero]),
        ("gradients", [one.states.gradients for one in stage.zero]),
        ("optimizer", [one.states.masters + one.states.optimizer for one in stage.zero]),
        ("bf16 copies of weights", [one.states.casts for one in stage.zero]),
        ("reduction buckets", [one.states.buckets for one in stage.zero]),
        (f"activations, {'recomputed' if recomputing else 'kept'} (recipe)", [stage.activations] * 4),
        ("peak", [one.peak for one in stage.zero]),
        (
            f"peak with activations {'kept' if recomputing else 'recomputed'}",
            [one.peak_kept if recomputing else one.peak_recomputed for one in stage.zero],
        ),
    ]
    for name, values in rows:
        if any(values):
            refused = [one.refused for one in stage.zero]
            table.add_row(
                name, *("-" if no else f"{value / _GIB:.2f}" for value, no in zip(values, refused, strict=True))
            )
    room = usable(found.assumptions.gpu.memory_gib) / _GIB
    fits = ["refused" if one.refused else "yes" if one.fits else "no" for one in stage.zero]
    table.add_row(f"fits into {room:.1f}", *fits)
    key = "objective.max_tokens" if stage.samples.alone else "tokens_per_micro_batch"
    table.add_row(f"largest {key}", *("-" if one.largest is None else f"{one.largest:,}" for one in stage.zero))
    return table


def _run_table(found: Plan) -> Table:
    table = Table("", title="The run")
    for stage in found.stages:
        table.add_column(stage.name or "", justify="right")
    several = len(found.stages) > 1
    if several:
        table.add_column("all", justify="right")

    def row(name: str, values: list[str], whole: str = "") -> None:
        table.add_row(name, *values, *([whole] if several else []))

    stages = found.stages
    row("samples per step", [f"{stage.samples.sequences:,}" for stage in stages])
    row("tokens per step", [quantity(stage.tokens) for stage in stages])
    row("PFLOP per step", [f"{stage.flops / 1e15:,.3g}" for stage in stages])
    row("micro-batches per rank and step", [f"{stage.time.micro_batches:g}" for stage in stages])
    row("seconds per step: arithmetic", [_seconds(stage.time.compute) for stage in stages])
    row("seconds per step: waiting for other GPUs", [_seconds(stage.time.communication) for stage in stages])
    row("MFU of all GPUs together", [""] * (len(stages) - 1 if several else 0) + [f"{found.mfu:.1%}"])
    steps = "?" if found.steps is None else f"{found.steps:,}"
    row("steps", ["?" if stage.steps is None else f"{stage.steps:,}" for stage in stages], steps)
    row("passes over the data", [_epochs(stage) for stage in stages])
    row("validations, samples of each", [_validations(stage) for stage in stages])
    last = [""] * (len(stages) - 1)

    def whole(name: str, value: str) -> None:
        row(name, [*last, "" if several else value], value)

    whole(
        "checkpoint",
        f"{found.checkpoint / 1e9:.2f} GB, {_seconds(found.save_seconds)} s at {found.assumptions.disk:g} GB/s"
        f" (training waits {_seconds(found.wait_seconds)} s)",
    )
    if found.checkpoints is not None and found.checkpoints_kept is not None:
        kept = found.checkpoints_kept
        size = kept * found.checkpoint / 1e9
        whole("checkpoints", f"{found.checkpoints:,} written, {kept:,} kept: {size:,.{0 if size >= 10 else 2}f} GB")
    if found.seconds is not None:
        whole("time", f"{found.seconds / 86400:.2f} days ({duration(found.seconds)})")
        whole("GPU-hours", f"{found.seconds / 3600 * found.ranks:,.0f}")
    if found.cost is not None:
        whole("cost", f"{found.cost:,.0f} at {found.assumptions.price:g} per GPU-hour")
    return table


def _epochs(stage: StagePlan) -> str:
    if not stage.samples.epochs:
        return "?"
    several = len(stage.samples.epochs) > 1
    return "\n".join(f"{name} {n:.3g}" if several else f"{n:.3g}" for name, n in stage.samples.epochs.items())


def _validations(stage: StagePlan) -> str:
    if stage.validations == 0:
        return "none"
    count = "?" if stage.validations is None else f"{stage.validations:,}"
    return f"{count} of {stage.samples.held_out:,}, {_seconds(stage.validation_seconds)} s each"


def _seconds(seconds: float) -> str:
    return "0" if seconds == 0 else f"{seconds:.2g}" if seconds < 1 else f"{seconds:,.1f}"
