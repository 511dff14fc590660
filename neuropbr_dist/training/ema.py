"""Exponential moving average of the generator's weights (Polyak & Juditsky 1992).

Kept over the float32 masters where they lie: a rank averages the pieces it holds
(all of them, where the engine replicates), on any engine, without communication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from neuropbr_dist.fragment import Fragment
from neuropbr_dist.parallel import Network, StepResult

PREFIX = "ema/"


def decay_at(step: int, decay: float) -> float:
    """Return the decay of a run's `step`-th update: `decay`, but early about the last third of the steps is averaged over.

    At 0.999 a thousand steps in, a third of the average would still be the random weights that the run began with.
    """
    return min(decay, (1 + step) / (4 + step))


class WeightAverage:
    """`training.ema_decay`: after each update `average <- decay * average + (1 - decay) * weights`.

    Starts from the weights as they are; while few steps are made the decay is smaller, see `decay_at`. Parameters only: running statistics of
    batch norm are averages already, and are shared.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.decay = network, decay
        self.average: list[Tensor] = [master.clone() for master in network.masters()]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Asked for each time: an engine may hand out other views after a load.
        return zip(self.average, self.network.masters(), strict=True)

    @torch.no_grad()
    def update(self, result: StepResult, share: float | Tensor) -> None:
        """Go a `share` of 1 towards the weights after an optimizer step, `1 - decay_at` of the run's step; one that was
        skipped changes nothing. No host sync on masters that lie on the device.

        Three calls for all tensors of a device: one each would keep the host busy for longer. Meanwhile they hold the
        differences, as many bytes as the weights.
        """
        weight = torch.isfinite(result.grad_norm) * share
        by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for average, master in self._pairs():
            by_device[average.device].append((average, master))
        for device, pairs in by_device.items():
            averages, masters = [average for average, _ in pairs], [master for _, master in pairs]
            # A copy to the host that isn't waited for would be read too early (offloaded masters).
            on_device = weight.to(device, averages[0].dtype, non_blocking=device.type != "cpu")
            steps = torch._foreach_sub(masters, averages)
            torch._foreach_mul_(steps, on_device)
            torch._foreach_add_(averages, steps)

    @torch.no_grad()
    def restart(self) -> None:
        """Start from the weights again, as after a load of weights alone."""
        for average, master in self._pairs():
            average.copy_(master)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the network compute with the averages inside, and with its own weights, bit for bit, afterwards.

        Collective: engines that compute in copies of the masters gather them. No optimizer step inside.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, master in self._pairs():
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)
        self.network.refresh()

    def fragments(self) -> list[Fragment]:
        """Return this rank's pieces as a checkpoint holds them: `ema/NAME` beside the masters' `param/NAME`."""
        masters = [piece for piece in self.network.fragments() if piece.name.startswith("param/")]
        return [
            replace(master, name=PREFIX + master.name.removeprefix("param/"), data=average)
            for average, master in zip(self.average, masters, strict=True)
        ]
