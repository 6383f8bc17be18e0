"""Sums over the steps since the last log line, and the record made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data.loader import Step
from pretrain.distributed import World


class Meter:
    """Loss and counts stay on the device until a record is asked for, so that logging less means waiting less."""

    def __init__(self, world: World, counts: tuple[str, ...]):
        """``counts``: names of what an objective counts besides loss and weight."""
        self.world, self.names = world, counts
        self._first_at, self._steps_after = 0.0, -1  # of this process's first step, which may warm up
        self._uncounted, self._counted_at = 0.0, time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        self._counts = {name: torch.zeros_like(self._loss) for name in self.names}
        self._weight = self._tokens = self._padded = self._flops = 0.0
        self._nucleotides = self._steps = 0
        self._began = time.perf_counter()

    def micro_batch(
        self, loss: Tensor, counts: dict[str, Tensor], weight: float, tokens: int, padded: int, flops: float
    ) -> None:
        """One micro-batch of this rank; ``padded`` is the number of tokens its kernel computes on."""
        self._loss += loss.detach()
        for name, count in counts.items():
            self._counts[name] += count
        self._weight += weight
        self._tokens += tokens
        self._padded += padded
        self._flops += flops
        self._uncounted += flops

    def step(self, step: Step) -> None:
        self._nucleotides += step.nucleotides
        self._steps += 1
        self._steps_after += 1
        if not self._steps_after:
            self._first_at = time.perf_counter()

    def cost(self) -> tuple[float, float]:
        """(FLOPs over all ranks, seconds) since the last call, without pauses. All ranks together."""
        (flops,), now = self.world.sum([self._uncounted]), time.perf_counter()
        seconds, self._uncounted, self._counted_at = now - self._counted_at, 0.0, now
        return flops, max(seconds, 0.0)

    def record(self, peak_flops: float | None, figures: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Over the steps since the last record; ``figures`` are the objective's. All ranks together."""
        mine = [self._weight, self._tokens, self._padded, self._flops, float(self._loss)]
        mine += [float(count) for count in self._counts.values()]
        weight, tokens, padded, flops, loss, *counts = self.world.sum(mine)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        record = {
            **figures(loss, weight, **dict(zip(self.names, counts, strict=True))),
            "nucleotides_per_second": self._nucleotides / seconds,
            "tokens_per_second": tokens / seconds,
            "tflops_per_device": flops / seconds / self.world.ranks / 1e12,
            "mfu": flops / seconds / self.world.ranks / peak_flops if peak_flops else None,
            "padding": 1.0 - tokens / max(padded, 1.0),
            "seconds_per_step": seconds / max(self._steps, 1),
        }
        self._reset()
        return record

    @property
    def seconds_per_step(self) -> float:
        """Over all steps of this process but the first, without pauses; 0 where there are none yet."""
        return (time.perf_counter() - self._first_at) / self._steps_after if self._steps_after > 0 else 0.0

    def pause(self) -> float:
        """A moment to give back to ``resume`` around work that is not training (validation, saving)."""
        return time.perf_counter()

    def resume(self, since: float) -> None:
        away = time.perf_counter() - since
        self._first_at += away
        self._began += away
        self._counted_at += away
