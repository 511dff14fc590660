"""Learning rates: a pure function of progress, plus the plateau's small state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from neuropbr_dist.config import OptimizerConfig


@dataclass
class Plateau:
    """Best validation loss, validations since, and the factor reached."""

    best: float | None = None
    waited: int = 0
    factor: float = 1.0


class Schedule:
    """`optimizer.scheduler` for one peak learning rate.

    Args:
        optimizer: the configuration; `scheduler_epochs` is set by now.
        peak: learning rate after warm-up.
    """

    def __init__(self, optimizer: OptimizerConfig, peak: float) -> None:
        self.o, self.peak = optimizer, peak
        self.plateau = Plateau()

    def at(self, epochs: float) -> float:
        """Return the learning rate of the step that ends at `epochs` epochs into the run."""
        warmup = self.o.scheduler_warmup_epochs
        if epochs < warmup:
            return self.peak * epochs / warmup
        return max(self.peak * self._decay(epochs), min(self.o.scheduler_min_lr, self.peak))

    def _decay(self, epochs: float) -> float:
        warmup, horizon = self.o.scheduler_warmup_epochs, self.o.scheduler_epochs or math.inf
        if self.o.scheduler == "cosine":
            done = min((epochs - warmup) / max(horizon - warmup, 1e-9), 1.0)
            floor = min(self.o.scheduler_min_lr / self.peak, 1.0)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
        if self.o.scheduler == "step":
            return self.o.gamma ** math.floor(epochs / self.o.step_size)
        if self.o.scheduler == "plateau":
            return self.plateau.factor
        return 1.0

    def validated(self, loss: float) -> None:
        """Tell the plateau one validation loss; the same value on every rank."""
        p = self.plateau
        if loss < (math.inf if p.best is None else p.best):  # a NaN is no improvement
            p.best, p.waited = loss, 0
            return
        p.waited += 1
        if p.waited > self.o.patience:
            p.factor, p.waited = p.factor * self.o.factor, 0

    def restart(self) -> None:
        """Forget what the plateau was told: what comes is measured otherwise."""
        self.plateau = Plateau()

    def state(self) -> dict[str, Any]:
        return asdict(self.plateau)

    def load(self, state: dict[str, Any]) -> None:
        self.plateau = Plateau(**state)
