"""Means of what steps report: over the steps since the last look, and over an epoch."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor


class Averages:
    """Sums on the device that the host reads at log steps only.

    Args:
        device: of the values.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        """Since the last look."""
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self._epoch_sums: dict[str, float] = defaultdict(float)
        self._epoch_steps: dict[str, int] = defaultdict(int)

    def add(self, name: str, value: Tensor) -> None:
        """A rank's part, scalar, of what all ranks' parts add up to."""
        self._sums[name] += value

    def look(self) -> dict[str, float]:
        """Means over the steps since the last look, by name. Waits for the device. Collective."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        if dist.is_initialized():
            dist.all_reduce(sums)
        values = dict(zip(names, sums.tolist(), strict=True))
        for name, value in values.items():
            self._epoch_sums[name] += value
            self._epoch_steps[name] += self.steps
        means = {name: value / self.steps for name, value in values.items()}
        self._sums.clear()
        self.steps = 0
        return means

    def epoch(self) -> dict[str, float]:
        """Means over the epoch's steps that were looked at; the next epoch begins."""
        means = {name: total / self._epoch_steps[name] for name, total in self._epoch_sums.items()}
        self._epoch_sums.clear()
        self._epoch_steps.clear()
        return means
