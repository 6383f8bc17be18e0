"""Where metrics go: `metrics.jsonl` always, Weights & Biases and TensorBoard by switch, and the screen.

Only rank 0 tracks. What a full disk does not take is kept and written once it can be: whether the run has to end is
decided by its next checkpoint. A run that resumes first drops the metrics of steps it is about to repeat, so the file
holds every step once, and stays one run in every tracker.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

from data.secrets import masked_content
from pretrain.config import TrackingConfig
from pretrain.errors import PretrainError

Record = dict[str, Any]
METRICS = "metrics.jsonl"
NEWLINE = b"\n"
log = logging.getLogger("rnafoundry")
INTRODUCING = ("references", "masking")  # kinds of records that are written when a stage begins


class Tracker:
    """Writes one record per logged step or validation to every place that is switched on."""

    def __init__(
        self,
        directory: Path,
        config: TrackingConfig,
        run_name: str,
        recipe: Mapping[str, Any],
        ids: dict[str, str],
        first_step: int = 0,
    ):
        self.ids = ids  # of external runs; kept in checkpoints
        self._newest = first_step  # wandb drops what comes with an older step, as a checkpoint's record does
        self._path, self._unwritten = directory / METRICS, b""
        self._file = self._path.open("ab", buffering=0)
        self._wandb = self._start_wandb(directory, config, run_name, recipe) if config.wandb != "disabled" else None
        self._tensorboard = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What was written of later steps, before the run was killed, is repeated now.
            self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def _start_wandb(self, directory: Path, config: TrackingConfig, run_name: str, recipe: Mapping[str, Any]) -> Any:
        import wandb

        self.ids.setdefault("wandb", secrets.token_hex(4))
        arguments, sys.argv = sys.argv, masked_content(sys.argv)  # wandb keeps the command line
        try:
            return wandb.init(
                project=config.wandb_project,
                name=run_name,
                id=self.ids["wandb"],
                resume="allow",
                mode=cast(Literal["offline", "online"], config.wandb),  # checked with the recipe
                dir=str(directory),
                config=dict(recipe),
            )
        except wandb.Error as error:
            raise PretrainError(
                f"wandb cannot start ({' '.join(str(error).split())}); run `wandb login`, or set tracking.wandb=offline"
            ) from error
        finally:
            sys.argv = arguments

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append ``{"kind": ..., "step": ..., **values}``; numbers that are not finite become null."""
        record = {"kind": kind, "step": step, **{key: _finite_or_none(value) for key, value in values.items()}}
        self._append((json.dumps(record) + "\n").encode())
        numbers = dict(_flat(kind, {k: v for k, v in record.items() if k not in ("kind", "step")}))
        self._newest = max(self._newest, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=self._newest)
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)

    def _append(self, line: bytes) -> None:
        """Write ``line`` after what could not be written before it; where that fails, keep the rest."""
        waited = bool(self._unwritten)
        self._unwritten += line
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not waited:
                log.warning("%s cannot be written (%s); its records are kept until it can", self._path, error)

    def close(self) -> None:
        """Raises PretrainError where records could not be written to the end."""
        self._append(b"")
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise PretrainError(f"{self._path} cannot be written ({error}); free disk space or mend it") from error
        if self._unwritten:
            raise PretrainError(
                f"the last {self._unwritten.count(NEWLINE)} records of {self._path} could not be written, the disk is "
                "full; the checkpoints are complete"
            )
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Nested numbers as `validation/types/rRNA/loss`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_metrics(path: Path) -> list[Record]:
    """All complete records; a last line that a kill cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def of_stage(records: list[Record], stage: str | None) -> list[Record]:
    """Those of one stage; None in a run without stages. Another stage may be judged on other targets."""
    return [record for record in records if record.get("stage") == stage]


def last_validation(directory: Path) -> int:
    """The last step that metrics.jsonl holds a validation of; -1 if none."""
    steps = [record["step"] for record in read_metrics(directory / METRICS) if record["kind"] == "validation"]
    return max(steps, default=-1)


def forget_after(directory: Path, step: int) -> None:
    """Drop the records that a run continuing after ``step`` steps will write again, atomically.

    At step 0 that is every record: what is written before the first step is written once more. So is what introduces
    a stage that begins at ``step``. Raises PretrainError, with the file as it was, where the disk is full.
    """

    def again(record: Record) -> bool:
        return step == 0 or record["step"] > step or (record["step"] == step and record["kind"] in INTRODUCING)

    path = directory / METRICS
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_metrics(path) if not again(record)]
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text("".join(kept))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            text = f"{path} cannot be written ({error}); free disk space or mend it, and start the same command again"
            raise PretrainError(text) from error
